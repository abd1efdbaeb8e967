"""What `topi export` may replace: an earlier export, and nothing else."""

import shutil
from pathlib import Path

import pytest

from topi.bench.report.export import MARK, _names, check_replaceable, export
from topi.bench.report.paper.suite import suites
from topi.bench.results import Store, files
from topi.bench.results.bench_run import bench_run, load_benches
from topi.errors import ToPiError


@pytest.fixture(scope="module")
def small_store(paper_module, tmp_path_factory):
    """A store with one label in three models, which can be exported."""
    root = tmp_path_factory.mktemp("small_store")
    paper_module.write_paper_store(root, labels=["topi tau=0.85"], samples=1)
    return root


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", ["store", "store/cells", "other", ".", "link", "file"])
def test_only_an_earlier_export_is_replaced(tmp_path, small_store, out):
    shutil.copytree(small_store, tmp_path / "store")
    shutil.copytree(small_store, tmp_path / "other")
    (tmp_path / "link").symlink_to(tmp_path / "store")
    (tmp_path / "file").touch()
    before = content(tmp_path)
    with pytest.raises(ToPiError, match=r"is not an export|is in the other"):
        export(tmp_path / "store", tmp_path / out)
    assert content(tmp_path) == before


def test_an_export_to_which_something_was_added_is_kept(tmp_path, small_store):
    (tmp_path / "out").mkdir()  # an empty folder is taken
    out = export(small_store, tmp_path / "out")
    before = content(out)
    assert len(before) > 5
    assert export(small_store, out) == out
    assert content(out) == before
    added = out / "cells" / "a" / ".lock"  # as if a cell was computed here
    added.parent.mkdir(parents=True)
    added.touch()
    with pytest.raises(ToPiError, match="some were added or removed"):
        export(small_store, out)
    assert added.exists()
    assert not [path for path in tmp_path.iterdir() if path.name != "out"]


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path, small_store, monkeypatch):
    out = export(small_store, tmp_path / "out")
    before = content(out)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", fail)
    with pytest.raises(ToPiError, match="No space left on device"):
        export(small_store, out)
    assert content(out) == before


def test_an_export_of_the_earlier_layout_is_replaced(tmp_path, small_store):
    out = tmp_path / "out"
    shutil.copytree(small_store, out)
    files.write_json(out / MARK, {"schema": 1, **_names(out)})
    export(small_store, out)
    assert files.read_json(out / MARK)["files"] == len(list(out.iterdir())) - 1 < 30


def test_an_export_of_an_export_is_the_same(tmp_path, small_store):
    first = export(small_store, tmp_path / "first")
    second = export(first, tmp_path / "second")
    assert [p.read_bytes() for p in sorted(first.iterdir())] == [
        p.read_bytes() for p in sorted(second.iterdir())
    ]


def test_a_damaged_mask_is_one_sentence(tmp_path, small_store):
    shutil.copytree(small_store, tmp_path / "store")
    mask = next((tmp_path / "store").glob("cells/*/masks/*.json"))
    mask.write_bytes(b"\xff")
    with pytest.raises(ToPiError, match=f"{mask.name} is not valid"):
        export(tmp_path / "store", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_benchmarks_are_exported_whole(tmp_path, small_store):
    shutil.copytree(small_store, tmp_path / "store")
    bench = bench_run(tmp_path / "store", "flux-1")
    about = {"model": "flux", "kind": "kontext", "source": "random", "weights": "w", "steps": 2}
    about |= {"scaled_down": True, "dtype": "float32", "size": [64, 64], "references": 1}
    about |= {"compiled": None, "trim_last": False, "round_to": 1, "kernel": "sdpa"}
    bench.start({**about, "device": {"name": "cpu", "host": "node7"}, "lines": ["topi"]})
    bench.refuse("toma", "it is not supported")
    row = {"label": "topi", "method": "topi", "keep": None, "total_full": 2, "calls": 3}
    row |= {"total_method": 1.5, "transformer_full": 1.0, "transformer_method": 0.5}
    row |= {"flops_full": 10**13, "flops_method": 1e12, "uncompiled": None}
    row |= dict.fromkeys(("peak_bytes_transformer_full", "peak_bytes_transformer_method"))
    row["layout"] = {"n_text": 7, "target_grid": [4, 4], "reference_grids": [[4, 4]]}
    bench.add(row)
    bench.add(row | {"keep": 0.5, "layout": row["layout"] | {"reference_grids": []}})
    (copy,) = load_benches(export(tmp_path / "store", tmp_path / "out"))
    assert copy.rows == bench.rows
    assert copy.manifest == bench.manifest | {"device": {"name": "cpu"}}


def test_the_committed_export_is_marked():
    out = Path(__file__).resolve().parents[3] / "experiments" / "results"
    check_replaceable(out)
    assert len(list(out.iterdir())) < 30
    assert suites(Store(out))


def test_a_cell_is_complete_without_the_pictures_that_stay_behind(tmp_path, small_store):
    shutil.copytree(small_store, tmp_path / "store")
    cells = Store(tmp_path / "store").load_cells()
    for cell in cells:
        cell.finish()
    out = export(tmp_path / "store", tmp_path / "out", per_category=0)
    copies = Store(out).find_cells()
    assert len(copies) == len(cells)
    assert {copy.state for copy in copies} == {"complete"}
    assert not any((copy.path / "images").exists() for copy in copies)
