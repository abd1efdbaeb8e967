"""Small copies of AnyEdit, in exactly its schemas."""

import io
import json

import numpy as np
import pytest
from PIL import Image


def png(seed: int, size=(72, 64), format="PNG", block=4) -> bytes:
    """An encoded image of (width, height), in blocks of one colour, that no other seed gives."""
    blocks = np.random.default_rng(seed).integers(0, 255, (*np.array(size[::-1]) // block, 3))
    pixels = blocks.astype(np.uint8).repeat(block, 0).repeat(block, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def encoded():
    return png


@pytest.fixture
def test_folder(tmp_path):
    """Write AnyEdit-Test: `{type: rows}` of (image, instruction); returns the folder of it all."""
    root = tmp_path / "download"

    def write(types: dict[str, int], tune: bool = False, change=lambda kind, number, row: row):
        for kind, count in types.items():
            folder = root / "anybench" / kind
            folder.mkdir(parents=True, exist_ok=True)
            rows = []
            for number in range(count):
                seed = hash_of(kind, number)
                names = {"image_file": f"{number:03d}.png", "edited_file": f"{number:03d}_out.png"}
                (folder / names["image_file"]).write_bytes(png(seed))
                (folder / names["edited_file"]).write_bytes(png(seed + 1, (32, 24)))
                row = {
                    "edit": f"{kind} number {number}",
                    "edited object": None,
                    "input": "before",
                    "output": "after",
                    "edit_type": "tune_transfer" if kind == "tone_transfer" and tune else kind,
                    "visual_input": "None",
                    **{key: f"anybench/{kind}/{name}" for key, name in names.items()},
                }
                if kind.startswith("visual"):
                    (folder / f"{number:03d}_v.jpg").write_bytes(png(seed + 2, format="JPEG"))
                    row["visual_input"] = f"anybench/{kind}/{number:03d}_v.jpg"
                rows.append(change(kind, number, row))
            (folder / "edit_result.json").write_text(json.dumps(rows))
        return root

    return write


@pytest.fixture
def parquet(tmp_path):
    """Write one parquet file in the hub's schema; `rows` are dictionaries with some columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    texts = ("image_id", "edit_instruction", "edit_type", "input", "output")
    images = ("image_file", "edited_file", "visual_input")
    schema = pa.schema([(n, pa.string()) for n in texts[:3]] + [(n, image) for n in images])
    schema = pa.schema([*schema, *((n, pa.string()) for n in texts[3:])])

    def write(name: str, rows: list[dict], group: int = 4):
        folder = tmp_path / "hub" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        table = [
            {n: row.get(n) for n in texts}
            | {n: row.get(n) and {"bytes": row[n], "path": "x.png"} for n in images}
            for row in rows
        ]
        file = folder / name
        pq.write_table(pa.Table.from_pylist(table, schema=schema), file, row_group_size=group)
        return file

    return write


def hash_of(kind: str, number: int) -> int:
    return sum(kind.encode()) * 1000 + number * 3
