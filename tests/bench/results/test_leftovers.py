"""What killed processes leave in a store is removed by the next one that may write there."""

from cell_records import about, row
from PIL import Image

from topi.bench.results import Store
from topi.bench.results.bench_run import bench_run
from topi.bench.results.probe_run import probe_run

IMAGE = Image.new("RGB", (8, 8), "red")


def plant(path, *names):
    for name in names:
        part = path / name
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"half")


def left(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.part"))


def test_partial_files_are_removed_by_whoever_works_there_next(tmp_path):
    store = Store(tmp_path)
    cell, full = store.cell("k"), store.full("f")
    plant(cell.path, ".manifest.json.7.part", "images/.a.png.7.part", "masks/.a.json.7.part")
    plant(full.path, ".manifest.json.7.part", "images/.a.png.7.part", "references/.a_0.png.7.part")
    bench, probe = bench_run(tmp_path, "b"), probe_run(tmp_path, "p")
    plant(bench.path, ".manifest.json.7.part")
    plant(probe.path, "maps/.a.npz.7.part", "references/.a_0.png.7.part")
    assert len(left(tmp_path)) == 9
    cell.start(about())
    full.start({})
    bench.start({})
    probe.start({"count": 1})
    assert left(tmp_path) == []


def test_no_empty_folder_of_shards_stays(tmp_path):
    store = Store(tmp_path)
    cells = [store.cell("k"), store.cell("l")]
    for cell in cells:
        cell.start(about(key=cell.key, count=1))
        part = cell.shard("0of1")
        part.start(about(key=cell.key, count=1))
        part.add_row(row("a"), IMAGE, None)
    for cell, there in zip(cells, (True, False), strict=True):
        cell.take_in_shards()
        assert [each["sample"] for each in cell.rows] == ["a"]
        assert (tmp_path / "shards").exists() == there
