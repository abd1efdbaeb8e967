"""The store tells what was done and goes on from there."""

import json
import subprocess
import sys

import pytest
from cell_records import about, row
from PIL import Image

from topi.bench.cli import main as cli
from topi.bench.results import Cell, Store
from topi.errors import ToPiError

IMAGE = Image.new("RGB", (16, 16), "red")


@pytest.fixture
def cell(tmp_path):
    return Store(tmp_path).cell("m-topi-1")


def manifest(**more):
    fields = {"key": "m-topi-1", "label": "topi tau=0.8", "params": {"tau": 0.8}}
    fields |= {"git": None, "versions": {"torch": "2"}, "device": {"name": "cpu"}}
    return about(created="2026-01-01", **fields) | more


def test_states_of_a_cell(cell):
    cell.start(manifest())
    assert cell.state == "partial 0/2"
    with cell.lock():
        cell.add_row(row("a"), IMAGE, None)
        assert cell.state == "running 1/2"
    assert cell.state == "partial 1/2"
    cell.fail("no luck")
    assert cell.state == "failed: no luck"
    cell.start(manifest())
    assert cell.state == "partial 1/2"
    cell.add_row(row("b", 1), IMAGE, None)
    cell.finish()
    assert cell.state == "complete"


def test_a_row_comes_after_its_picture_and_mask(cell, monkeypatch):
    from topi.bench.results import files

    cell.start(manifest())
    order = []
    for name in ("write", "append"):
        real = getattr(files, name)
        monkeypatch.setattr(
            files, name, lambda path, *a, real=real: (order.append(path.name), real(path, *a))
        )
    cell.add_row(row("a"), IMAGE, {"grids": [[1, 1]], "anchors": []})
    assert order == ["a.png", "a.json", "rows.jsonl"]
    assert json.loads((cell.path / "masks" / "a.json").read_text())["grids"] == [[1, 1]]


def test_a_second_start_keeps_the_manifest_and_notes_new_circumstances(cell, caplog):
    cell.start(manifest(versions={"torch": "2"}))
    cell.add_row(row("a"), IMAGE, None)
    with (cell.path / "rows.jsonl").open("a") as file:
        file.write('{"sample": "b", "ps')
    cell.start(manifest(created="2026-01-02", device={"name": "cpu", "threads": 4}))
    assert "unfinished last line of rows.jsonl" in caplog.text
    assert cell.manifest["created"] == "2026-01-01"
    assert cell.manifest["resumed"] == [
        {
            "device": {"name": "cpu", "threads": 4},
            "created": "2026-01-02",
            "rows": 1,
            "changed": [],
        }
    ]
    assert [r["sample"] for r in cell.rows] == ["a"]


def test_frames_join_rows_with_their_cells(cell, tmp_path):
    store = Store(tmp_path)
    assert list(store.rows().columns)[:3] == ["cell", "model", "method"]
    assert store.rows().empty
    assert store.latency().empty
    cell.start(manifest())
    cell.add_row(row("a", psnr=float("inf"), extra=1), IMAGE, None)
    cell.add_latency({"sample": "a", "repeat": 0, "seconds_full": 2.0, "seconds_method": 1.0})
    line = store.rows().iloc[0]
    assert (line["cell"], line["label"], line["params"]) == (
        "m-topi-1",
        "topi tau=0.8",
        {"tau": 0.8},
    )
    assert (line["psnr"], line["extra"]) == (float("inf"), 1)
    assert store.latency().to_dict("records") == [
        {
            "cell": "m-topi-1",
            "sample": "a",
            "repeat": 0,
            "seconds_full": 2.0,
            "seconds_method": 1.0,
        }
    ]
    assert cell.timed() == {"a": 1}


def test_full_outputs_are_kept_with_their_references(tmp_path):
    full = Store(tmp_path).full("m-1")
    assert full.image("a") is None
    full.add("a", IMAGE, [IMAGE.resize((8, 8)), IMAGE])
    assert full.image("a").getpixel((0, 0)) == (255, 0, 0)
    assert [image.size for image in full.references("a")] == [(8, 8), (16, 16)]


def test_results_need_no_torch():
    code = "import sys, topi.bench.results.provenance; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_second_configuration_of_a_cell_leaves_its_label(cell):
    cell.start(manifest())
    cell.start(manifest(label="topi layers=random:3"))
    cell.add_label("topi tau=0.8")
    assert cell.manifest["label"] == "topi tau=0.8"
    assert cell.labels == ["topi tau=0.8", "topi layers=random:3"]


def test_references_of_a_sample_are_its_own_and_in_order(tmp_path):
    full = Store(tmp_path).full("m-1")
    colours = [(i, 0, 0) for i in range(12)]
    full.add("1", IMAGE, [Image.new("RGB", (4, 4), colour) for colour in colours])
    full.add("1_0", IMAGE, [IMAGE])
    assert [image.getpixel((0, 0)) for image in full.references("1")] == colours
    assert len(full.references("1_0")) == 1
    assert full.has("1") and full.has("1_0")
    (full.path / "references" / "1_0_0.png").unlink()
    assert full.has("1") and not full.has("1_0")


def test_a_cell_that_ends_while_it_is_read_is_not_damaged(cell, monkeypatch):
    cell.start(manifest(count=1))
    real, waiting = Cell.rows.fget, [1]

    def rows(self):
        read = real(self)
        while waiting:
            waiting.pop()
            self.add_row(row("a"), IMAGE, None)
            self.finish()
        return read

    with monkeypatch.context() as patch:
        patch.setattr(Cell, "rows", property(rows))
        assert not cell.state.startswith("damaged")
    assert not waiting and cell.state == "complete"


@pytest.mark.parametrize("target", ["nowhere", "loop", "../full", "file"])
def test_an_entry_that_is_no_cell_hides_no_other(cell, tmp_path, capsys, target):
    cell.start(manifest())
    cells = tmp_path / "cells"
    (cells / "loop").symlink_to(target)
    (cells / "notes.txt").touch()
    (cells / "locked").mkdir()
    (cells / "locked" / ".lock").touch()
    store = Store(tmp_path)
    assert [found.key for found in store.find_cells()] == ["loop", cell.key]
    assert [found.key for found in store.load_cells()] == [cell.key]
    assert cli.main(["status", "--store", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "partial 0/2" in told and "damaged" in told
    with pytest.raises(ToPiError, match="loop"), store.cell("loop").lock():
        pass


def test_rows_of_a_damaged_cell_are_left_out_of_those_of_all(cell, tmp_path, caplog):
    store = Store(tmp_path)
    for each in (cell, store.cell("other")):
        each.start(manifest())
        each.add_row(row("a"), IMAGE, None)
    with (cell.path / "rows.jsonl").open("a") as file:
        file.write("{}\n")
    assert set(store.rows()["cell"]) == {"other"}
    assert len(store.moments(["psnr"])) == 1
    assert f"left out: {cell.key} is damaged" in caplog.text


@pytest.mark.parametrize(
    "name", ["../x", "..", "", "/etc/passwd", "a\\b", "a\0b", "x" * 201, 7, None]
)
def test_no_name_leads_out_of_the_store(tmp_path, name):
    store = Store(tmp_path / "store")
    full, cell = store.full("m"), store.cell("m")
    (tmp_path / "store").mkdir()
    for attempt in (
        lambda: store.cell(name),
        lambda: store.full(name),
        lambda: full.image(name),
        lambda: full.references(name),
        lambda: full.add(name, IMAGE, [IMAGE]),
        lambda: cell.add_row({"sample": name}, IMAGE, None),
    ):
        with pytest.raises(ToPiError, match="cannot name a file"):
            attempt()
    assert not list((tmp_path / "store").iterdir())


def test_a_sample_is_no_pattern(tmp_path):
    full = Store(tmp_path).full("m")
    full.add("abc", IMAGE, [IMAGE])
    assert full.references("*") == []


def test_a_damaged_full_output_makes_room(tmp_path):
    full = Store(tmp_path).full("m")
    full.add("a", IMAGE, [])
    path = full.path / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ToPiError, match="cannot be read"):
        full.image("a")
    full.set_aside("a")
    assert full.image("a") is None
    assert path.with_suffix(".damaged").is_file()
