"""`topi search`: the space of schedules, NSGA-II on a problem with a known front, a killed run."""

import json

import numpy as np
import pytest

from topi.bench.cli import main as cli
from topi.bench.config.compose import composed
from topi.bench.config.schema import read_config
from topi.bench.results import files
from topi.bench.runs.assemble import build_method
from topi.bench.studies.schedule_search import RATIOS, Schedule, Space, search
from topi.errors import ToPiError
from topi.methods.rivals.dato import DaTo

pytest.importorskip("pymoo", reason="it is in requirements.txt")
FEW = ("model.steps=3", "model.height=64", "model.width=64", "data.count=1")


def test_the_space_of_schedules():
    space = Space.of(steps=3, depth=57)
    assert space.depths == (14, 28, 42, 57)
    assert space.decode((0, 1, 3, 0, 5, 2)) == ((0.0, 0.7, 0.4), (57, 28, 57))
    assert space.upper.tolist() == [3, 3, 3, 5, 5, 5]
    assert Space.of(steps=3, depth=2).depths == (1, 2)


def test_the_first_population_has_full_context_and_periods():
    space = Space.of(steps=6, depth=8)
    codes = space.first_population(8, seed=0)
    assert codes.shape == (8, 12) and (codes >= 0).all() and (codes <= space.upper).all()
    assert space.decode(tuple(codes[0])) == ((0.0,) * 6, (8,) * 6)
    assert space.decode(tuple(codes[1])) == ((0.0,) * 6, (8, 6, 8, 6, 8, 6))
    assert space.decode(tuple(codes[2])) == ((0.0,) * 6, (8, 6, 6, 8, 6, 6))
    assert np.array_equal(codes, space.first_population(8, seed=0))


def test_nsga2_finds_the_front():
    """Late layers are worth twice the quality of pruning at equal cost: nobody should prune."""
    space, asked = Space.of(steps=4, depth=4), []

    def judge(code):
        asked.append(code)
        ratio, depths = space.decode(code)
        cost = 4 * 4 + 4 - sum(4 - d for d in depths) - sum(ratio)
        return Schedule(ratio, depths, 40 - sum(4 - d for d in depths) - 9 * sum(ratio), 20 / cost)

    front = search(judge, space, population=20, generations=25, seed=0)
    assert front[0] == Schedule((0.0,) * 4, (4,) * 4, 40, 1)
    assert [s.speedup for s in front] == sorted(s.speedup for s in front)
    assert [s.psnr for s in front] == sorted((s.psnr for s in front), reverse=True)
    bold = Schedule((0.0,) * 4, (4, 1, 1, 1), 31, 20 / 11)
    assert bold in front and max(RATIOS) > 0 and len(asked) > 100


def test_too_small_a_search_is_refused():
    with pytest.raises(ToPiError, match="--population 4 or more"):
        search(None, Space(2, (1, 2)), 3, 1, 0)


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_from_the_command_line_to_a_run(kind, tmp_path, monkeypatch, capsys, edits):
    monkeypatch.chdir(tmp_path)
    command = ["search", f"model=tiny_{kind}", *FEW, "--population=4", "--generations=2"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    (path,) = (tmp_path / "results" / "search").glob(f"tiny_{kind}-*.json")
    assert str(path.relative_to(tmp_path)) in out and "FLOP-ideal" in out
    found = json.loads(path.read_text())
    assert found["origin"]["weights"].startswith("random") and str(tmp_path) not in path.read_text()
    gentle = found["front"][0]
    assert gentle["speedup"] == 1 and gentle["psnr"] > 70  # full context is never beaten
    config = read_config(composed([f"model=tiny_{kind}", *found["front"][-1]["overrides"]]))
    method = build_method(config)
    assert isinstance(method, DaTo) and len(method.depths) == len(method.ratio) == 3

    # what has been run is not run again, also after the result was lost
    before, rows = path.read_text(), path.with_suffix(".rows.jsonl")
    seen = len(edits)
    assert rows.read_text().count("\n") == seen - 1  # one edit per schedule, one of full context
    path.unlink()
    assert cli.main(command) == 0
    assert len(edits) == seen
    assert json.loads(path.read_text())["front"] == json.loads(before)["front"]

    # a line that a kill left unfinished is written again
    lines = files.read_lines(rows)
    rows.write_bytes(rows.read_bytes()[:-5])
    assert cli.main(command) == 0
    assert len(edits) == seen + 2 and files.read_lines(rows) == lines


def test_only_dato_has_a_schedule(capsys):
    assert cli.main(["search", "--method=topi"]) == 1
    assert "choose one of: dato, dato_ref" in capsys.readouterr().err
