"""The `topi` command."""

import json
import subprocess
import sys

import pytest
from cell_records import about, row
from PIL import Image

from topi.bench.cli import main as cli
from topi.bench.report.checked import checked_store
from topi.bench.results import Store
from topi.errors import ToPiError

ABOUT = about(git=None, versions={}, device={})
PICTURE = Image.new("RGB", (8, 8))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "results")
    for number, label in enumerate(("done", "cut", "broken")):
        cell = store.cell(f"m-{label}")
        cell.start({**ABOUT, "key": cell.key, "label": label, "created": f"2026-01-0{number + 1}"})
        cell.add_row(row("a"), PICTURE, None)
    store.cell("m-done").add_row(row("b", 1), PICTURE, None)
    store.cell("m-done").finish()
    store.cell("m-broken").fail("out of luck [again]")
    return store


def test_status_lists_cells_with_their_state(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["status", "--store", str(store.root)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["m", "done", "2/2", "complete", "m-done"]
    assert lines[2] == ["m", "cut", "1/2", "partial", "1/2", "m-cut"]
    assert lines[3][3:] == ["failed:", "out", "of", "luck", "[again]", "m-broken"]


@pytest.mark.parametrize("command", ["report", "leaderboard", "compare", "export"])
def test_results_on_other_samples_are_not_shown(tmp_path, capsys, command):
    """Each reads the store only after a look at what its cells rest on."""
    cell = Store(tmp_path / "results").cell("m-other")
    data = {"name": "mini_edit", "split": "evaluation", "size": 64}
    told = {"data": "0123456789abcdef", "config": {"data": data}, "label": "other", "count": 1}
    cell.start({**ABOUT, **told, "key": cell.key, "weights": "w", "created": "2026-01-04"})
    cell.add_row(row("a"), PICTURE, None)
    cell.finish()
    out = ["--out", str(tmp_path / "out")] if command in ("report", "export") else []
    assert cli.main([command, "--store", str(tmp_path / "results"), *out]) == 1
    assert "m-other was computed on other samples than MiniEdit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_probes_on_other_samples_are_not_shown(tmp_path):
    config = {"data": {"name": "mini_edit", "split": "evaluation", "size": 64}}
    told = {"model": "m", "weights": "w", "count": 0, "created": "2026-01-01", "key": "m-1"}
    told |= {"stacks": [1], "layers": [0], "tau": 0.85}
    folder = tmp_path / "probe" / "m-1"
    folder.mkdir(parents=True)
    text = json.dumps({"schema": 1, **told, "data": "0123456789abcdef", "config": config})
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ToPiError, match="m-1 was computed on other samples"):
        checked_store(tmp_path)


def test_status_of_nothing(tmp_path, capsys):
    assert cli.main(["status", "--store", str(tmp_path)]) == 0
    assert "`topi run`" in capsys.readouterr().out


def test_status_needs_no_torch(store):
    code = (
        "import sys; from topi.bench.cli.main import main; main(sys.argv[1:]); "
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "status", "--store", str(store.root)]
    assert subprocess.run(command, capture_output=True, text=True).stdout.endswith("False\n")


def test_report_and_fetch_call_their_parts(monkeypatch, tmp_path, capsys):
    import topi.bench.report
    from topi.bench.runs import lpips_weights

    calls = []
    monkeypatch.setattr(topi.bench.report, "build", lambda *paths: calls.append(paths))
    monkeypatch.setattr(lpips_weights, "fetch", lambda: tmp_path / "w")
    assert cli.main(["report", "--store", "s", "--out", "o"]) == 0
    assert [[str(path) for path in call] for call in calls] == [["s", "o"]]
    assert cli.main(["fetch-lpips"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'w'}\n"


def test_an_error_is_one_sentence(tmp_path, capsys):
    assert cli.main(["report", "--store", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("topi: There are no results")
    assert error.count("\n") == 1
