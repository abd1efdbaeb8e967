"""Files vanish or get damaged while a cell is computed, or later: it ends whole, or says so."""

import shutil

import pytest
from small_cells import config_for, only_cell, rows_of

from topi.bench.report.page.gallery import gather
from topi.bench.results import Cell, Store
from topi.bench.runs import compute
from topi.errors import ToPiError


def removing(monkeypatch, name, always=False):
    """From now on something in the store is removed after the second row; once, or always."""
    real, left = Cell.add_row, [1]

    def add_row(self, row, *more):
        real(self, row, *more)
        if len(self.rows) == 2 and left:
            if not always:
                left.clear()
            root = next(parent for parent in self.path.parents if (parent / "full").is_dir())
            for path in root.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    monkeypatch.setattr(Cell, "add_row", add_row)


def assert_whole(cell, calm, caplog):
    assert cell.state == "complete"
    assert rows_of(cell) == rows_of(calm)
    full = Store(cell.path.parents[1]).full(cell.manifest["full_key"])
    assert all(full.has(row["sample"]) for row in cell.rows)
    assert "lacks at its end" in caplog.text


@pytest.mark.parametrize(
    "name",
    ["*", "cells/*/manifest.json", "cells/*/images/*-00000.png", "full/*/references"],
)
def test_what_vanishes_meanwhile_is_computed_again(tmp_path, calm, monkeypatch, caplog, name):
    removing(monkeypatch, name)
    config = config_for(tmp_path / "s", "data.count=4")
    compute.run(config)
    assert_whole(only_cell(config.store), calm, caplog)


def test_a_shard_whose_files_vanish_computes_them_again(tmp_path, calm, monkeypatch, caplog):
    compute.run(config_for(tmp_path, "data.count=4", "shard=0/2"))
    removing(monkeypatch, "shards/*/1of2/manifest.json")
    compute.run(config_for(tmp_path, "data.count=4", "shard=1/2"))
    assert_whole(only_cell(tmp_path), calm, caplog)


def test_a_cell_that_never_gets_whole_fails(tmp_path, monkeypatch):
    removing(monkeypatch, "cells/*/manifest.json", always=True)
    with pytest.raises(ToPiError, match=r"manifest\.json cannot be read.* removes or damages"):
        compute.run(config_for(tmp_path, "data.count=2"))
    assert not only_cell(tmp_path).complete


@pytest.mark.parametrize("place", ["full", "cells"])
@pytest.mark.parametrize("damage", ["cut", "delete"])
def test_a_damaged_picture_blocks_no_report_and_is_computed_again(
    tmp_path, calm, edits, caplog, place, damage
):
    root = tmp_path / "s"
    shutil.copytree(calm.path.parents[1], root)
    store, first = Store(root), calm.rows[0]["sample"]
    (picture,) = root.glob(f"{place}/*/images/{first}.png")
    sound = picture.read_bytes()
    picture.write_bytes(sound[:-30])
    if damage == "delete":  # as the report said once
        picture.unlink()
    rows = store.rows().assign(category="one")
    assert [picture.sample for picture in gather(store, rows, 1)] == [calm.rows[1]["sample"]]
    edits.clear()
    compute.run(config_for(root, "data.count=4"))
    assert edits == [first]
    assert picture.read_bytes() == sound
    assert only_cell(root).complete
