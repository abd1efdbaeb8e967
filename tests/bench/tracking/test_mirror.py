"""W&B mirrors a cell offline; read back from the log it leaves."""

import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_cells import SMOKE, fork, wait

from topi.bench.cli import main as cli
from topi.bench.results import Store
from topi.bench.results.calibration_file import Calibration, Curves, Stability, write_calibration
from topi.bench.tracking.mirror import PLACES, Mirror, artifact_name, calibrations, kept_curve
from topi.bench.tracking.sync import offline_runs, sync, unsynced, wandb_mode
from topi.bench.tracking.wandb_log import read_log

ROOT = Path(__file__).resolve().parents[3]
SECRET = "0123456789abcdef0123456789abcdef01234567"


def run_py(folder, *arguments):
    """Run `run.py` as a user does, in a fork; returns what it prints and its exit code."""

    def main():
        os.chdir(folder)
        printed = os.open("printed", os.O_WRONLY | os.O_CREAT)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        for name in [name for name in os.environ if name.startswith(("WANDB", "XDG"))]:
            del os.environ[name]
        os.environ |= {"HOME": str(folder / "home"), "WANDB_API_KEY": SECRET}
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["run.py", *arguments]
        try:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    code = wait(fork(main))
    return (folder / "printed").read_text(), code


def test_wandb_mirrors_a_cell_offline_and_touches_no_home(tmp_path):
    (tmp_path / "home").mkdir()
    arguments = [word for word in SMOKE if not word.startswith("latency")]
    said, code = run_py(tmp_path, *arguments, "logger=wandb_offline", "latency.samples=1")
    assert code == 0, said
    (cell,) = Store(tmp_path / "results").load_cells()
    assert cell.complete
    assert not list((tmp_path / "home").rglob("*wandb*"))
    (folder,) = (tmp_path / "results" / "wandb").rglob("offline-run-*")
    mirrored = read_log(folder)
    assert (mirrored.id, mirrored.name) == (cell.key, "topi first_anchor=1 tau=0.85")
    assert mirrored.config["params"]["tau"] == 0.85
    scores = [line["psnr"] for line in mirrored.history if "psnr" in line]
    assert scores == [row["psnr"] for row in cell.rows]
    assert mirrored.exit == 0
    assert mirrored.group == "smoke"
    assert set(mirrored.tags) == {"tiny_flux", "topi", cell.manifest["device"]["name"]}
    secret = SECRET.encode()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_bytes()]
    summary = mirrored.summary
    assert summary["n"] == 2
    assert {"camera_move/psnr", "global_edit/ssim"} <= set(summary)
    assert summary["mean/keep_ratio"] == pytest.approx(sum(r["keep_ratio"] for r in cell.rows) / 2)
    assert summary["speedup"] > 0
    assert summary["samples/nrows"] == 2
    assert summary["pictures/count"] == 2
    picture = Image.open(next((folder / "files" / "media" / "images").rglob("*.png")))
    assert picture.size == (4 * 64, 64)


@pytest.fixture
def store(tmp_path, store_root, monkeypatch):
    """A copy of the hand-written store; W&B's places are its own again afterwards."""
    for name in PLACES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    shutil.copytree(store_root, tmp_path / "results")
    yield Store(tmp_path / "results")
    for name in PLACES:
        os.environ.pop(name, None)


def cell_of(store):
    return next(cell for cell in store.load_cells() if cell.manifest["method"] == "topi")


CUT_OFF = """
import os, sys, time
from topi.bench.tracking.mirror import Mirror
from topi.bench.tracking.sync import offline_runs
from topi.bench.tracking.wandb_log import read_log
from topi.bench.results import Store
from topi.bench.results.calibration_file import Calibration, Curves, Stability, write_calibration
store = Store(sys.argv[1])
cell = store.cell(sys.argv[2])
rows = cell.rows
type(cell).rows = []
with Mirror(store, cell, "offline") as mirror:
    for row in rows[:5]:
        mirror.row(row)
    (folder,) = offline_runs(store)
    while not read_log(folder).steps:  # W&B writes now and then
        time.sleep(0.05)
    mirror.row(rows[5])
    os._exit(9)
"""


def write_calibrations(store, cell):
    """Three, of which one is of the weights of the cell and one is none."""
    curves = Curves(samples=1, layers=(0,), by_layer=(0.5,), by_step=(0.5,))
    stability = Stability(subsets=1, seed=0, same_set=1.0, frequency=(1.0,))
    for name, weights in (("a", cell.manifest["weights"]), ("b", "others")):
        calibration = Calibration(curves, {}, stability, (), {"weights": weights})
        write_calibration(store.root / "calibration" / f"{name}.json", calibration)
    (store.root / "calibration" / "c.json").write_text("{}")


def test_a_manifest_names_no_other_file_than_a_calibration(store):
    cell = cell_of(store)
    write_calibrations(store, cell)
    folder = store.root / "calibration"
    secret, elsewhere = store.root / "secret.json", store.root / "own.json"
    secret.write_text('{"token": "swordfish"}')
    elsewhere.write_bytes((folder / "a.json").read_bytes())
    for named, found in ((secret, []), (elsewhere, [elsewhere])):
        about = cell.manifest | {"config": {"layers": {"file": str(named)}}}
        assert calibrations(store, about) == [folder / "a.json", *found]


def test_a_resumed_cell_continues_its_run_without_doubled_steps(store):
    cell = cell_of(store)
    write_calibrations(store, cell)
    command = [sys.executable, "-c", CUT_OFF, str(store.root), cell.key]
    assert subprocess.run(command, cwd=store.root).returncode == 9
    (first,) = offline_runs(store)
    cut = read_log(first)
    assert cut.exit is None
    assert 1 <= len(cut.steps) <= 6
    assert unsynced(store) == []  # somebody may still be writing it
    assert unsynced(store, now=first.stat().st_mtime + 3600) == [first]

    rows, count = cell.rows, cell.manifest["count"]
    with Mirror(store, cell, "offline", pictures=1) as mirror:
        for row in rows:
            mirror.row(row)
    first, second = offline_runs(store)
    again = read_log(second)
    assert (again.id, cut.id) == (cell.key, cell.key)
    assert sorted(cut.steps + again.steps) == [
        *range(count),
        *range(count + 1, count + 2 + cell.manifest["steps"]),
    ]
    scores = {
        line["_step"]: line["psnr"] for r in (cut, again) for line in r.history if "psnr" in line
    }
    assert scores == {row["index"]: row["psnr"] for row in rows}
    curve = [line["kept/keep_ratio"] for line in again.history if "kept/step" in line]
    assert curve == pytest.approx(kept_curve(cell))
    assert again.group == cell.manifest["model"]
    kept = again.artifacts[f"results-{cell.key}"]
    assert sorted(kept) == ["latency.jsonl", "manifest.json", "rows.jsonl"]
    kept = {name: found for name, found in again.artifacts.items() if "calibration" in name}
    name = artifact_name(store.root / "calibration" / "a.json")
    assert kept == {name: ["a.json"]}  # of the cell's weights
    assert re.fullmatch(r"calibration-a-[0-9a-f]{8}", name)
    (shown,) = [names for name, names in again.artifacts.items() if "masks" in name]
    table = [name for name in shown if name.endswith(".table.json")]
    assert len(table) == 1
    assert len([name for name in shown if name.startswith("media/images/mask/")]) == 1
    pictures = [n for n in shown if n.startswith("media/images/") and n.count("/") == 2]
    assert len(pictures) == 3  # reference, full, output
    assert again.exit == 0

    with Mirror(store, cell, "offline") as mirror:  # complete, timed once more
        pass
    assert read_log(offline_runs(store)[-1]).steps == []


def test_the_curve_of_kept_tokens(store):
    cell = cell_of(store)
    ratios = []
    for row in cell.rows:
        masks = json.loads((cell.path / "masks" / f"{row['sample']}.json").read_text())
        ratios.append([len(anchor["kept"]) / 256 for anchor in masks["anchors"]])
    early, late = (sum(column) / len(column) for column in zip(*ratios, strict=True))
    expected = [1, 1, 1, *[early] * 4, 1, *[late] * 4]
    assert kept_curve(cell) == pytest.approx(expected)
    toma = next(cell for cell in store.load_cells() if cell.manifest["method"] == "toma")
    assert kept_curve(toma) == [1.0] * 12


class Broken:
    """A W&B that fails from one call on."""

    def __init__(self, at):
        self.at, self.calls = at, []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append(name)
            if name == self.at:
                raise OSError(28, "No space left on device")
            return self

        return call


@pytest.mark.parametrize("at", ["init", "log", "log_artifact", "finish", "define_metric"])
def test_nothing_of_wandb_ends_a_cell(store, monkeypatch, caplog, at):
    cell, broken = cell_of(store), Broken(at)
    broken.summary = broken
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with Mirror(store, cell, "offline") as mirror:
        for row in cell.rows:
            mirror.row(row)
    assert broken.calls.count(at) == 1
    assert caplog.text.count("W&B is left out from here on") == 1


def test_a_place_that_cannot_be_written_does_not_end_a_cell(store, caplog):
    (store.root / "wandb").write_text("a file")
    with Mirror(store, cell_of(store), "offline") as mirror:
        mirror.row({"index": 0, "psnr": 1.0})
    assert "W&B is left out" in caplog.text


def test_an_error_of_the_cell_is_not_swallowed(store, monkeypatch):
    broken = Broken("finish")
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with pytest.raises(KeyboardInterrupt), Mirror(store, cell_of(store), "offline"):
        raise KeyboardInterrupt
    assert "finish" in broken.calls


def test_sync_hands_over_what_is_ready_and_notices_what_was_left(
    store, monkeypatch, capsys, caplog
):
    cells = store.load_cells()
    folders = []
    for number, cell in enumerate(cells[:3]):
        folder = store.root / "wandb" / "wandb" / f"offline-run-20260101_00000{number}-{cell.key}"
        folder.mkdir(parents=True)
        log = folder / f"run-{cell.key}.wandb"
        log.write_bytes(b":W&B\0\0\0")
        os.utime(log, (0, 0))
        folders.append(folder)
    (folders[0] / f"run-{cells[0].key}.wandb.synced").touch()
    asked = []

    def upload(command):
        asked.append([Path(part).name for part in command[2:]])
        (folders[1] / f"run-{cells[1].key}.wandb.synced").touch()
        return 0

    with cells[2].lock():
        assert unsynced(store) == [folders[1]]
    assert cli.main(["sync", "--dry-run", "--store", str(store.root)]) == 0
    assert capsys.readouterr().out.split() == [folder.name for folder in folders[1:]]
    caplog.set_level(logging.INFO)
    assert sync(store, upload) == 1
    assert asked == [["wandb", "sync", *(folder.name for folder in folders[1:])]]
    assert unsynced(store) == [folders[2]]
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("said", "wanted", "mode"),
    [
        ("disabled", "online", "none"),
        ("disabled", "offline", "none"),
        ("offline", "online", "offline"),
        ("dryrun", "online", "offline"),
        ("online", "offline", "online"),
        ("online", "none", "none"),
        ("", "offline", "offline"),
        ("nonsense", "offline", "offline"),
    ],
)
def test_the_environment_says_whether_and_where_wandb_logs(monkeypatch, said, wanted, mode, caplog):
    monkeypatch.setenv("WANDB_MODE", said)
    assert wandb_mode(wanted) == mode
    assert ("WANDB_MODE=nonsense" in caplog.text) == (said == "nonsense")


def test_disabled_writes_nothing(store, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Mirror(store, cell_of(store), "offline") as mirror:
        mirror.row(cell_of(store).rows[0])
    assert mirror.run is None
    assert not (store.root / "wandb").exists()
