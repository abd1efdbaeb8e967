"""`run.py` as a user runs it, on random weights."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_cells import PATIENCE, assert_equal, fork, wait, wait_for_rows
from small_cells import SMOKE as CELL

from topi.bench.results import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ("experiment=smoke", "latency.samples=0")
TIMING = ("seconds", "scoring_seconds", "selection_seconds")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `run.py` in this process; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


def rows_of(cell):
    return [{k: v for k, v in row.items() if k not in TIMING} for row in cell.rows]


def told(error):
    """The one sentence that the user is told."""
    (line,) = [line for line in error.splitlines() if line.startswith("topi: ")]
    return line


def test_the_main_sweep(run, edits, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # not imported unless asked for
    sweep = ("-m", *SMOKE, "method=topi,toma", "tau=0.8,0.85,0.9")
    code, out, _ = run(*sweep)
    assert code == 0
    assert "W&B" not in out
    store = Store("results")
    cells = store.load_cells()
    assert sorted(cell.manifest["label"] for cell in cells) == [
        "toma",
        "topi tau=0.8",
        "topi tau=0.85",
        "topi tau=0.9",
    ]
    assert {cell.state for cell in cells} == {"complete"}
    assert len(list(store.root.glob("full/*"))) == 1
    assert len(edits) == 2 + 4 * 2
    assert out.count("is complete, nothing to do") == 2
    frame = store.rows()
    assert len(frame) == 8
    assert frame.groupby("label")["keep_ratio"].mean()["toma"] == 1
    assert frame.groupby("label")["flop_speedup"].mean().min() > 1

    assert "Page:" not in out  # conf/experiment/smoke.yaml

    edits.clear()
    code, out, _ = run(*sweep, "hydra.sweeper.report=page")
    assert code == 0
    assert not edits
    assert out.count("is complete, nothing to do") == 6
    table = out[out.index("tiny_flux: against its own full-context output") :]
    assert all(label in table for label in ("toma", "topi tau=0.85"))
    assert table.splitlines()[-1] == "Page: page/index.html"
    assert Path("page/index.html").is_file()


def test_several_cells_at_a_time_on_this_machine(tmp_path, calm):
    """Through joblib, which starts processes of its own."""
    small = [word for word in CELL if not word.startswith("experiment")]
    sweep = ("-m", "experiment=smoke", *small, "data.count=4", "tau=0.85,0.9")
    parallel = ("hydra/launcher=parallel", f"store={tmp_path}")
    pid = "hydra.job_logging.formatters.simple.format='pid %(process)d'"
    subprocess.run(
        [sys.executable, ROOT / "run.py", *sweep, *parallel, pid],
        cwd=tmp_path,
        check=True,
        timeout=PATIENCE,
    )
    first, second = sorted(Store(tmp_path).load_cells(), key=lambda cell: cell.labels)
    assert (first.state, second.state) == ("complete", "complete")
    assert_equal(first, calm)
    pids = [set(log.read_text().splitlines()) for log in tmp_path.rglob("run.log")]
    assert len(pids) == 2
    assert not set.intersection(*pids)


def test_a_key_holds_what_is_used_and_not_how_it_was_said(run, edits):
    run(*SMOKE, "data.count=1")
    for same in ("tau=0.85", "method.layers=[4,3,2]", "model.device=cpu", "method.tau=0.85"):
        code, out, _ = run(*SMOKE, "data.count=1", same)
        assert code == 0
        assert "is complete, nothing to do" in out
    assert len(edits) == 2


def test_more_latency_is_added_to_a_complete_cell(run, edits):
    run(*SMOKE)
    edits.clear()
    code, _, _ = run(*SMOKE, "latency.samples=1")
    assert code == 0
    assert len(edits) == 4  # a warm-up pair and a pair
    assert len(Store("results").latency()) == 1


def test_the_manifest_says_where_a_cell_comes_from(run):
    run(*SMOKE, "data.count=1")
    (cell,) = Store("results").load_cells()
    about = cell.manifest
    assert about["key"] == cell.key
    assert about["params"]["layers"] == [2, 3, 4]
    assert about["versions"]["torch"]
    assert about["device"]["name"]
    assert about["weights"]
    assert about["data"]
    assert about["config"]["data"]["count"] == 1
    assert {"git", "seed", "steps", "full_key"} <= set(about)
    assert about["full"]["weights"] == about["weights"]


@pytest.mark.parametrize(
    ("changed", "same_full"),
    [
        ("method.update_every=2", True),
        ("seed=1", False),
        ("model.steps=6", False),
        ("data.count=1", True),
        ("trim_last=true", True),
    ],
)
def test_what_makes_another_cell(run, changed, same_full):
    run(*SMOKE)
    run(*SMOKE, changed)
    cells = Store("results").load_cells()
    assert len(cells) == 2
    assert (len({cell.manifest["full_key"] for cell in cells}) == 1) == same_full


def test_a_trimmed_last_block_is_a_cell_of_its_own_but_where_tokens_are_merged(run):
    run("-m", *SMOKE, "data.count=1", "method=topi,toma", "trim_last=true,false")
    cells = {cell.manifest["label"]: cell for cell in Store("results").load_cells()}
    plain, trimmed = (cells.pop(f"topi tau=0.85{more}") for more in ("", " trim_last=True"))
    assert list(cells) == ["toma"]
    assert "trim_last" not in plain.manifest and trimmed.manifest["trim_last"]
    (whole,), (less,) = plain.rows, trimmed.rows
    assert less["flop_speedup"] > whole["flop_speedup"]
    assert less["psnr"] == pytest.approx(whole["psnr"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("method=topy", "method=topy is unknown; choose one of: checker, dato, .*full, random"),
        ("model=flux", "model=flux is unknown; choose one of: flux2_klein, flux_kontext"),
        ("taau=0.9", "There is no taau; choose one of: .*tau"),
        ("method.tua=1", "There is no method.tua; choose one of: name, tau"),
        ("tau=0.8,0.9", "add -m to sweep"),
        ("tau=[", "cannot be read"),
        ("data=folder data.path=Büro", "is quoted: 'data.path=\"Büro\"'"),
        ("bü=1", "names of settings have ASCII letters"),
        ("tau", "write it as KEY=VALUE"),
        ("tau=0.5 ratio=0.5", "exclude each other"),
        ("tau=2", r"in \[0, 1\]"),
        ("method=toma layers=first", "method=toma does not read layers"),
        ("-m experiment=smoke tau=0.8,1.5", r"tau=1.5 must be a number in \[0, 1\]"),
        ("-m experiment=smoke method=topi,tomi", "method=tomi is unknown"),
    ],
)
def test_a_typo_or_an_impossible_combination_is_refused(run, edits, arguments, words):
    code, _, error = run(*arguments.split())
    assert code == 2
    assert re.search(words, told(error))
    assert "Traceback" not in error
    assert not edits
    assert not Store("results").load_cells()


def test_missing_weights_are_one_sentence(run, monkeypatch):
    code, _, error = run("model=flux_kontext", "lpips=false")
    assert code == 1
    assert "weights of flux_kontext" in told(error)
    assert "Traceback" not in error


def test_an_export_is_refused_and_nothing_is_written_there(run, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "manifests.parquet").touch()
    code, _, error = run(*SMOKE, f"store={export}")
    assert code == 1
    assert "is an export, which is read-only" in told(error)
    assert [path.name for path in export.iterdir()] == ["manifests.parquet"]


def test_an_unwritable_store_is_one_sentence(run, tmp_path):
    (tmp_path / "file").touch()
    code, _, error = run(*SMOKE, "store=file/results")
    assert code == 1
    assert "store=PATH" in told(error)
    assert "Traceback" not in error


def test_a_corrupt_image_is_named_and_nothing_is_computed(run, tmp_path, edits):
    folder = tmp_path / "edits"
    folder.mkdir()
    for name in ("good.png", "bad.png"):
        Image.effect_noise((64, 64), 40).save(folder / name)
    (folder / "bad.png").write_bytes((folder / "bad.png").read_bytes()[:200])
    lines = [{"image": f"{name}.png", "instruction": "make it snow"} for name in ("good", "bad")]
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, _, error = run(*SMOKE, "data=folder", "data.count=null", f"data.path={folder}")
    assert code == 1
    assert "bad.png" in told(error)
    assert not edits
    assert not Store("results").load_cells()
    code, _, _ = run(*SMOKE, "data=folder", "data.count=1", f"data.path={folder}")
    assert code == 0


def own_edits(folder, *sizes, ids=None):
    folder.mkdir()
    lines = []
    for number, size in enumerate(sizes):
        Image.effect_noise(size, 40).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "instruction": "x", "id": str(number)})
        lines[-1] |= {"id": ids[number]} if ids else {}
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return (*SMOKE, "data=folder", "data.count=null", f"data.path={folder}")


def test_a_picture_that_the_model_refuses_is_named_and_nothing_is_computed(run, tmp_path, edits):
    code, _, error = run(*own_edits(tmp_path / "edits", (64, 64), (4000, 30)))
    assert code == 1 and not edits
    assert "sample edits-1 has a reference" in told(error) and "4000 x 30" in told(error)


def test_names_that_differ_in_case_only_are_refused_where_case_does_not_count(run, tmp_path, edits):
    overrides = own_edits(tmp_path / "edits", (64, 64), (64, 64), ids=["cat", "Cat"])
    (tmp_path / "results" / "CELLS").mkdir(parents=True)  # as if "cells" were found so
    code, _, error = run(*overrides)
    assert code == 1 and not edits
    assert "edits-cat and edits-Cat are one file" in told(error)
    (tmp_path / "results" / "CELLS").rmdir()
    assert run(*overrides)[0] == 0


def test_a_complete_cell_reads_no_picture(run, tmp_path, monkeypatch):
    overrides = own_edits(tmp_path / "edits", (64, 64), (64, 64))
    assert run(*overrides)[0] == 0

    def decode(content):
        raise AssertionError("read")

    monkeypatch.setattr("topi.bench.data.folder.read_rgb", decode)
    assert run(*overrides)[0] == 0
    assert run(*overrides, "shard=0/2")[0] == 0


def test_a_cell_that_raises_is_marked_and_the_others_run(run, monkeypatch):
    from topi.methods.rivals.toma import ToMA

    def fail(self, *args):
        raise ZeroDivisionError("no tokens")

    monkeypatch.setattr(ToMA, "merge", fail)
    with pytest.raises(ZeroDivisionError):
        run("-m", *SMOKE, "method=toma,topi", "hydra.sweeper.report=page")
    assert not Path("page").exists()
    cells = Store("results").load_cells()
    states = {cell.manifest["method"]: cell.state for cell in cells}
    assert states == {"toma": "failed: ZeroDivisionError('no tokens')", "topi": "complete"}


def test_a_cell_in_other_hands_is_left_to_them(run, edits):
    run(*SMOKE, "data.count=1")
    (cell,) = Store("results").load_cells()
    (cell.path / "complete.json").unlink()
    edits.clear()
    with cell.lock():
        code, out, _ = run(*SMOKE, "data.count=1")
    assert code == 0
    assert "another process is computing" in out
    assert not edits


def test_a_killed_run_continues_with_the_same_rows(run, edits, tmp_path):
    arguments = (*SMOKE, "data.count=12")
    process = fork(lambda: run(*arguments)[0])
    wait_for_rows("results", 2)
    (cell,) = Store("results").load_cells()
    assert cell.state.startswith("running")
    os.kill(process, signal.SIGKILL)
    assert wait(process) == -signal.SIGKILL
    cells = Store("results").load_cells()
    done = len(cells[0].rows)
    assert cells[0].state == f"partial {done}/12"

    code, out, _ = run(*arguments)
    assert code == 0
    assert f"{done} of 12 samples done" in out
    assert len(edits) <= 2 * (12 - done)
    run(*arguments, "store=untouched")
    (whole,) = Store("untouched").load_cells()
    assert whole.key == cells[0].key
    assert rows_of(cells[0]) == rows_of(whole)


def test_without_wandb_a_cell_is_complete_all_the_same(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, out, _ = run(*SMOKE, "logger=wandb_offline", "data.count=1")
    assert code == 0
    assert "W&B is left out" in out
    assert [cell.state for cell in Store("results").load_cells()] == ["complete"]
