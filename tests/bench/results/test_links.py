"""A store in which somebody planted links: nothing outside is read, changed or created."""

import os
import random
import shutil
import stat

import pytest
from cell_records import pair, row
from PIL import Image

from topi.bench.results import Store
from topi.bench.results.bench_run import bench_run, load_benches
from topi.errors import ToPiError

IMAGE = Image.new("RGB", (8, 8), "red")
SECRET = b'{"sample": "a", "secret": 1}\n'
MANIFEST = {"key": "k", "model": "m", "method": "topi", "label": "x", "params": {}, "count": 2}
MANIFEST |= {"full_key": "f", "full": {"seed": 0}, "created": "2026-01-01", "steps": 3}


def compute(root):
    """Everything that writes to a store and reads it, as a cell with a shard does it."""
    store = Store(root)
    cell, full, bench = store.cell("k"), store.full("f"), bench_run(root, "b")
    with cell.lock(), cell.shard("0of2").lock():
        cell.start(MANIFEST)
        part = cell.shard("0of2")
        part.start(MANIFEST, pictures=cell.path)
        full.start({})
        with full.claim():
            full.add("a", IMAGE, [IMAGE])
        for number, (where, name) in enumerate(((part, "a"), (cell, "b"))):
            where.add_row(row(name, number), IMAGE, {"grids": [[1, 1]], "anchors": []})
            where.add_latency(pair(name))
        part.finish()
    with cell.merging():
        cell.take_in_shards()
        cell.fail("no luck")
        cell.finish()
    with bench.lock():
        bench.start({})
        bench.add({"seconds": 1})


def read(root):
    store = Store(root)
    for cell in store.load_cells():
        _ = cell.progress
    _ = store.rows(), store.latency()
    _ = [full.image("a") for full in [store.full("f")]], store.full("f").references("a")
    _ = [bench.manifest for bench in load_benches(root)]
    store.compact()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    compute(root)
    old = (root / "cells" / "k").stat().st_mtime_ns - 10**10
    for folder in (root / "cells" / "k", root / "cells" / "k" / "images"):
        os.utime(folder, ns=(old, old))
    read(root)
    assert (root / "parquet" / "0").is_dir()
    return root


def outside_of(folder):
    outside = folder / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    (outside / "folder").mkdir()
    for name in ("a.png", "0.png", "rows.jsonl", "manifest.json", "cells.parquet"):
        (outside / "folder" / name).write_bytes(SECRET)
    return outside


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def content(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def victims(root):
    """Every file and folder of a store, and files that appear and go while it is written."""
    found = [path.relative_to(root) for path in root.rglob("*")]
    passing = ("failed.json", "quarantine", ".merge", "masks/b.json", "images/b.png")
    return sorted({*found, *(type(found[0])("cells/k") / name for name in passing)})


def test_no_link_is_followed_out_of_a_store(tmp_path, sound, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # hundreds of files
    dice = random.Random(0)
    outside = outside_of(tmp_path)
    before = content(outside)
    always = ["cells/k/rows.jsonl", "cells/k/quarantine", "shards", "full/f/images"]
    for number, victim in enumerate([*always, *dice.sample(victims(sound), 8)]):
        root = tmp_path / str(number)
        target = dice.choice(["file", "folder", "nothing"])
        shutil.copytree(sound, root)
        remove(root / victim)
        (root / victim).parent.mkdir(parents=True, exist_ok=True)
        (root / victim).symlink_to(outside / target)
        for action in (read, compute, read):
            try:
                action(root)
            except ToPiError as error:
                assert "symbolic link" in str(error), victim
        assert content(outside) == before, victim
        plain = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
        assert not [path for path in plain if SECRET in path.read_bytes()], victim


def test_a_link_in_a_cell_goes_into_quarantine_and_the_cell_is_computed(tmp_path, sound):
    root = tmp_path / "store"
    shutil.copytree(sound, root)
    outside = outside_of(tmp_path)
    cell = Store(root).cell("k")
    rows = cell.path / "rows.jsonl"
    rows.unlink()
    rows.symlink_to(outside / "file")
    with pytest.raises(ToPiError, match="symbolic link"):
        _ = cell.rows
    cell.start(MANIFEST)
    assert cell.rows == []
    assert (cell.path / "quarantine" / "0" / "rows.jsonl").is_symlink()


def test_a_store_may_be_a_link_and_lie_in_a_linked_folder(tmp_path):
    (tmp_path / "real" / "store").mkdir(parents=True)
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "store").symlink_to(tmp_path / "folder" / "store")
    compute(tmp_path / "store")
    for name in ("store", "folder/store", "real/store"):
        assert [row["sample"] for row in Store(tmp_path / name).cell("k").rows] == ["a", "b"]


@pytest.mark.parametrize("name", ["rows.jsonl", "manifest.json", "images/a.png", ".lock"])
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path, sound, name):
    root = tmp_path / "store"
    shutil.copytree(sound, root)
    path = root / "cells" / "k" / name
    path.unlink()
    os.mkfifo(path)
    for action in (read, compute, read):
        try:
            action(root)
        except ToPiError as error:
            assert "is a pipe" in str(error)
    assert not path.exists() or not stat.S_ISFIFO(path.stat().st_mode) or name == ".lock"
