"""One cell on a tiny editor: what is computed, what is recorded, how it goes on."""

import json

import pytest
from cell_records import about

from topi.bench.data import MiniEdit
from topi.bench.editors.editor import load_editor
from topi.bench.results import Store
from topi.bench.runs.cell import Bench, full_output, mask_of, run_latency, run_quality, trace_facts
from topi.bench.runs.metrics import Metrics
from topi.engine import CallRecord
from topi.errors import ToPiError
from topi.methods import make_method
from topi.models import Layout

LAYOUT = Layout(3, (2, 2), ((2, 2),))
ABOUT = about(git=None, versions={}, device={}, count=3)


@pytest.fixture(scope="module")
def editor():
    return load_editor(
        {
            "name": "tiny_flux",
            "kind": "kontext",
            "source": "tiny",
            "device": "cpu",
            "steps": 5,
            "height": 128,
            "width": 128,
            "representative_layers": [2, 3],
        }
    )


@pytest.fixture
def edits(editor, monkeypatch):
    """The ids of the samples that the editor is asked to edit."""
    seen, real = [], editor.edit
    monkeypatch.setattr(
        editor, "edit", lambda sample, seed: (seen.append(sample.id), real(sample, seed))[1]
    )
    return seen


@pytest.fixture
def bench(editor, tmp_path):
    return Bench(editor, MiniEdit(count=3), Metrics(lpips=False), Store(tmp_path).full("f"), 0)


def topi():
    return make_method("topi", tau=0.5, front_layers=1)


def new_cell(tmp_path, key):
    cell = Store(tmp_path).cell(key)
    cell.start(ABOUT)
    return cell


def rows_of(cell):
    timing = ("seconds", "scoring_seconds", "selection_seconds")
    return [{k: v for k, v in row.items() if k not in timing} for row in cell.rows]


def test_rows_hold_what_the_trace_says(bench, tmp_path):
    cell = new_cell(tmp_path, "a")
    method = topi()
    run_quality(bench, method, cell, "topi")
    assert [row["index"] for row in cell.rows] == [0, 1, 2]
    row = cell.rows[-1]
    calls = method.trace
    assert (row["calls"], row["anchor_calls"], row["pruned_calls"]) == (5, 1, 2)
    assert row["keep_ratio"] == pytest.approx((3 + 2 * calls[-1].keep_ratio) / 5)
    assert row["pruned_keep_ratio"] == pytest.approx(calls[-1].keep_ratio)
    assert row["n_reference"] == 64
    assert row["keep_ratio"] < 1 < row["flop_speedup"]
    assert row["psnr"] > 10
    assert "lpips" not in row
    mask = json.loads((cell.path / "masks" / f"{row['sample']}.json").read_text())
    assert mask["grids"] == [[8, 8]]
    assert [(a["step"], a["branch"]) for a in mask["anchors"]] == [(2, "cond")]
    assert mask["anchors"][0]["kept"] == list(calls[-1].kept)


def test_full_outputs_are_computed_once_for_all_cells(bench, tmp_path, edits):
    for key, method in (("a", topi()), ("b", make_method("full"))):
        run_quality(bench, method, new_cell(tmp_path, key), key)
    assert len(edits) == 3 + 2 * 3
    same = Store(tmp_path).cell("b")
    assert [row["psnr"] for row in same.rows] == [float("inf")] * 3
    assert not (same.path / "masks").exists()


def test_an_interrupted_cell_ends_with_the_same_rows(bench, tmp_path, edits, monkeypatch):
    whole = new_cell(tmp_path, "whole")
    run_quality(bench, topi(), whole, "whole")
    edits.clear()
    cell = new_cell(tmp_path, "cut")

    def stop(row):
        if row["index"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_quality(bench, topi(), cell, "cut", stop)
    with (cell.path / "rows.jsonl").open("a") as file:
        file.write('{"sample": "torn')
    cell.start(ABOUT)
    drawn, real = [], MiniEdit.__getitem__
    monkeypatch.setattr(MiniEdit, "__getitem__", lambda *at: (drawn.append(at[1]), real(*at))[1])
    run_quality(bench, topi(), cell, "cut")
    assert len(edits) == 3 and drawn == [2]  # what is done is not even read
    assert rows_of(cell) == rows_of(whole)
    for row in cell.rows:
        images = [c.path / "images" / f"{row['sample']}.png" for c in (cell, whole)]
        assert images[0].read_bytes() == images[1].read_bytes()


def test_latency_is_a_pass_of_its_own_and_continues(bench, tmp_path, edits):
    cell = new_cell(tmp_path, "a")
    run_latency(bench, topi(), cell, "a", samples=2, repeats=1)
    assert len(edits) == 2 * (1 + 2)  # a warm-up pair, and a pair per sample
    edits.clear()
    run_latency(bench, topi(), cell, "a", samples=2, repeats=2)
    assert len(edits) == 2 * (1 + 2)
    assert sorted((r["sample"][-1], r["repeat"]) for r in cell.latency) == [
        ("0", 0),
        ("0", 1),
        ("1", 0),
        ("1", 1),
    ]
    assert all(row["seconds_full"] > 0 and row["seconds_method"] > 0 for row in cell.latency)
    for row in cell.latency:
        assert 0 < row["scoring_seconds"] + row["selection_seconds"] < row["seconds_method"]
    edits.clear()
    run_latency(bench, topi(), cell, "a", samples=2, repeats=2)
    assert not edits


def test_a_full_disk_is_one_error_and_leaves_no_half_row(bench, tmp_path):
    import resource

    cell = new_cell(tmp_path, "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(ToPiError, match="Cannot write"):
            run_quality(bench, topi(), cell, "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not cell.rows
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.png"))


def record(step, branch="cond", anchor=False, kept=None):
    return CallRecord(step, branch, LAYOUT, 1, anchor=anchor, kept=kept)


def test_an_anchor_owns_the_mask_of_its_branch_after_it():
    trace = [
        record(0),
        record(1, anchor=True),
        record(1, "uncond", anchor=True),
        record(2, kept=(0, 3)),
        record(2, "uncond", kept=(1,)),
        record(3, anchor=True),
        record(3, "uncond", anchor=True),
    ]
    assert mask_of(trace) == {
        "grids": ((2, 2),),
        "anchors": [
            {"step": 1, "branch": "cond", "kept": (0, 3)},
            {"step": 1, "branch": "uncond", "kept": (1,)},
            {"step": 3, "branch": "cond", "kept": None},
            {"step": 3, "branch": "uncond", "kept": None},
        ],
    }
    assert mask_of([record(0), record(1, anchor=True)]) is None


def test_skipped_calls_are_told_and_leave_masks_and_ratios_alone():
    skipped = CallRecord(2, "cond", LAYOUT, 1, skipped_from=0)
    trace = [record(0), record(1, anchor=True), skipped, record(3, kept=(2,)), record(4)]
    assert mask_of(trace)["anchors"] == [{"step": 1, "branch": "cond", "kept": (2,)}]
    facts = trace_facts(trace)
    assert (facts["calls"], facts["skipped_calls"], facts["pruned_calls"]) == (5, 1, 1)
    assert facts["keep_ratio"] == (1 + 1 + 0.25 + 1) / 4


def test_facts_of_a_trace():
    facts = trace_facts([record(0), record(1, anchor=True), record(2, kept=(0,)), record(3)])
    assert facts["keep_ratio"] == (1 + 1 + 0.25 + 1) / 4
    assert facts["pruned_keep_ratio"] == 0.25
    assert (facts["calls"], facts["anchor_calls"], facts["pruned_calls"]) == (4, 1, 1)
    assert trace_facts([])["keep_ratio"] == 1
    assert trace_facts([record(0)])["pruned_keep_ratio"] is None


def test_references_are_kept_as_the_pipeline_got_them(editor, tmp_path):
    """Two side by side, as masks are of one grid."""
    data = MiniEdit(count=1, references=2)
    bench = Bench(editor, data, Metrics(lpips=False), Store(tmp_path).full("f"), 0)
    full_output(bench, data[0])
    (wide,) = bench.full.references(data[0].id)
    assert wide.size == (256, 128)
