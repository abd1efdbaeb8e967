"""A store as a few Parquet files: what goes in comes out, and nothing is written to it."""

import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topi.bench.results import Store, files
from topi.bench.results.packed import pack, store_folder, unpack
from topi.errors import ToPiError

VALUES = [None, 0, -1, 2**70, 0.5, float("inf"), "", "é\n", "\ud800", True, [], [[1, 2]], {}]
VALUES += [{"a": 1}, {"b": [None]}]


def lines(*records):
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def parsed(text):
    """The fields of JSON lines in their order; other files as they are."""
    try:
        return [list(json.loads(line).items()) for line in text.splitlines()]
    except ValueError:
        return text


def random_store(choice):
    """Files of a store whose lines have any fields with any values."""
    names = [f"field {number}" for number in range(6)]
    content = {"probe/p/maps/s.npz": b"\x00\xff", "full/f/images/s.png": b"png"}
    for key in ("a", "b"):
        content[f"cells/{key}/manifest.json"] = b'{"label": "\xc3\xa9"}'
        for name in ("rows.jsonl", "latency.jsonl"):
            chosen = [choice.sample(names, choice.randint(0, 6)) for _ in range(4)]
            records = [{field: choice.choice(VALUES) for field in fields} for fields in chosen]
            content[f"cells/{key}/{name}"] = lines(*records)
    return content


@pytest.mark.parametrize("seed", range(20))
def test_any_lines_come_back_as_they_were(tmp_path, seed):
    content = random_store(random.Random(seed))
    pack(content, tmp_path)
    back = dict(unpack(tmp_path))
    assert {path: parsed(text) for path, text in back.items()} == {
        path: parsed(text) for path, text in content.items()
    }


def test_numbers_and_lists_are_columns_of_their_own(tmp_path):
    records = [{"psnr": 1.5, "calls": 3, "grids": [[2, 3]]}, {"psnr": 2, "calls": 4, "grids": []}]
    pack({"probe/p/rows.jsonl": lines(*records)}, tmp_path)
    table = pq.ParquetFile(tmp_path / "probe_rows.parquet").read()
    types = [str(table.schema.field(name).type) for name in ("psnr", "calls")]
    assert types == ["double", "int64"]
    assert table["grids"].to_pylist() == [[[2, 3]], []]


@pytest.fixture
def packed(tmp_path):
    """A packed store with one cell that has a label."""
    about = {"model": "m", "method": "topi", "label": "topi", "params": {}, "full_key": "f"}
    manifest = {**about, "steps": 1, "count": 1, "full": {}}
    folder = tmp_path / "packed"
    folder.mkdir()
    content = {"manifest": manifest, "complete": {"samples": 1, "pictures": False}}
    pack({f"cells/a/{name}.json": lines(text) for name, text in content.items()}, folder)
    return folder


def test_a_packed_store_is_read_and_not_written(packed):
    before = {path: path.read_bytes() for path in packed.iterdir()}
    (cell,) = Store(packed).load_cells()
    assert (cell.key, cell.labels) == ("a", ["topi"])
    assert store_folder(packed) == store_folder(packed) == store_folder(store_folder(packed))
    with pytest.raises(ToPiError, match="packed is an export"), cell.lock():
        pass
    for path in (cell.path / "manifest.json", packed / "calibration" / "a.json"):
        with pytest.raises(ToPiError, match="packed is an export"):
            files.write_json(path, {})
    assert {path: path.read_bytes() for path in packed.iterdir()} == before


def test_a_packed_store_that_changes_is_read_anew(packed, tmp_path):
    first = store_folder(packed)
    shutil.copytree(packed, tmp_path / "new")
    shutil.rmtree(packed)
    (tmp_path / "new").rename(packed)
    assert store_folder(packed) != first


@pytest.mark.parametrize("name", ["rows", "manifests", "pictures"])
def test_damage_is_one_sentence(packed, name):
    path = packed / f"{name}.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content[:-3])
    with pytest.raises(ToPiError, match="packed cannot be read"):
        Store(packed)


@pytest.mark.parametrize("path", ["../x/y/manifest.json", "/a/b/c.json", "cells/../../x.json", "x"])
def test_no_path_leaves_the_folder(packed, path):
    table = pa.table({"path": [path], "content": ["{}"]})
    pq.write_table(table, packed / "manifests.parquet")
    with pytest.raises(ToPiError, match="packed cannot be read"):
        Store(packed)


def test_a_missing_table_is_not_an_empty_one(packed):
    (packed / "rows.parquet").unlink()
    with pytest.raises(ToPiError, match=r"rows\.parquet"):
        Store(packed)


def test_a_large_packed_store_is_read_without_a_warning(packed, monkeypatch, caplog):
    monkeypatch.setattr("topi.bench.results.store.WORTH_WHILE", 0)
    assert len(Store(packed).load_cells(tidy=True)) == 1
    assert not caplog.records
