"""W&B mirrors a cell offline; read back from the log it leaves.

An offline run is a file of length-prefixed protobuf records in 32 KiB blocks.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from topi.results import Store

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 32 * 1024
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def values(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def read_run(folder: Path) -> dict[str, Any]:
    """Its id, config, history, summary and exit code."""
    (path,) = folder.glob("*.wandb")
    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"id": record.run.run_id, "name": record.run.display_name}
            run["config"] |= values(record.run.config.update)
        elif kind == "config":
            run["config"] |= values(record.config.update)
        elif kind == "history":
            run["history"].append(values(record.history.item))
        elif kind == "summary":
            run["summary"] |= values(record.summary.update)
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run


def test_wandb_mirrors_a_cell_offline_and_touches_no_home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    places = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG"))}
    arguments = ("experiment=smoke", "logger=wandb_offline", "latency.samples=1")
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=tmp_path,
        env=places | {"HOME": str(home), "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (cell,) = Store(tmp_path / "results").load_cells()
    assert cell.complete
    assert not list(home.rglob("*wandb*"))
    (folder,) = (tmp_path / "results" / "wandb").rglob("offline-run-*")
    mirrored = read_run(folder)
    assert (mirrored["id"], mirrored["name"]) == (cell.key, "topi tau=0.85")
    assert mirrored["config"]["params"]["tau"] == 0.85
    scores = [line["psnr"] for line in mirrored["history"] if "psnr" in line]
    assert scores == [row["psnr"] for row in cell.rows]
    assert mirrored["exit"] == 0
    summary = mirrored["summary"]
    assert summary["n"] == 2
    assert {"camera_move/psnr", "global_edit/ssim"} <= set(summary)
    assert summary["mean/keep_ratio"] == pytest.approx(sum(r["keep_ratio"] for r in cell.rows) / 2)
    assert summary["speedup"] > 0
    assert summary["samples/nrows"] == 2
    assert summary["pictures/count"] == 2
    picture = Image.open(next((folder / "files" / "media" / "images").rglob("*.png")))
    assert picture.size == (4 * 128, 128)
