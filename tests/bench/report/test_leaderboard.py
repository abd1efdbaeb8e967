"""The leaderboard ranks honestly."""

import json
import re

import pytest

from topi.bench.report.leaderboard import (
    UNSCORED,
    advice,
    block,
    board,
    ranked,
    settings,
    short,
    tied,
)
from topi.bench.report.paper.suite import suites
from topi.bench.report.pareto import family
from topi.bench.results.store import Store
from topi.errors import ToPiError
from topi.methods import METHODS

WAVE = [30.0, 20.0, 34.0, 24.0, 38.0, 28.0, 42.0, 32.0]


@pytest.fixture
def add(tmp_path, write_cell):
    """Writes a cell with the PSNR of every sample and its FLOP-ideal speed-up."""

    def add(label, scores, speed, model="kontext_standin", **options):
        cell = write_cell(tmp_path, model, label, samples=len(scores), pictures=0, **options)
        rows = [json.loads(line) for line in (cell / "rows.jsonl").open()]
        for row, score in zip(rows, scores, strict=False):
            row |= {"psnr": score, "flop_speedup": speed}
        (cell / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (cell / "latency.jsonl").unlink()

    return add


@pytest.fixture
def suite_of(tmp_path):
    return lambda: suites(Store(tmp_path))[0]


def lines_of(text):
    """First field -> the others, of a Markdown table."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {first.strip("`"): rest for first, *rest in rows}


def plus(scores, *more):
    return [score + more[i % len(more)] for i, score in enumerate(scores)]


def test_a_method_stands_with_its_best_setting_that_is_fast_enough(add, suite_of):
    add("random ratio=0.3", WAVE, 1.4)
    add("random", plus(WAVE, 3), 1.2)
    add("random ratio=0.7", plus(WAVE, 1), 1.15)  # beaten by the one above
    add("full cache=teacache", plus(WAVE, 2), 1.9)
    add("topi tau=0.9", plus(WAVE, 9), 1.05)
    suite = suite_of()
    found = settings(suite)
    assert list(ranked(found, 1.1)["label"]) == ["random", "full cache=teacache"]
    assert list(ranked(found, 1.3)["label"]) == ["full cache=teacache", "random ratio=0.3"]
    assert list(ranked(found, 2.5)["label"]) == []
    table = lines_of(board(suite))
    assert list(table) == ["random", "teacache", "topi"]
    assert table["random"][1].endswith("`ratio=0.3` 1.40×") and table["random"][2] == "–"
    assert table["random"][0].startswith("**34.0 [") and table["random"][-1] == "1.40×"
    assert table["teacache"][0].startswith("33.0 [") and table["teacache"][2].startswith("**")
    assert table["topi"] == ["–", "–", "–", "–", "1.05×"]


def test_who_is_neither_first_nor_named_is_folded(add, suite_of):
    add("topi tau=0.9", WAVE, 1.2)  # by name
    add("full cache=teacache", plus(WAVE, 4), 2.0)  # first in a column
    add("checker", plus(WAVE, 3), 1.2)
    add("random", plus(WAVE, 2), 1.2)
    shown, folded = board(suite_of()).split("<details><summary>The other 2 methods</summary>")
    assert list(lines_of(shown)) == ["teacache", "topi"]
    assert list(lines_of(folded)) == ["checker", "random"]
    assert folded.endswith("|\n\n</details>")


def test_pairs_decide_what_is_significantly_different(add, suite_of):
    """Intervals of the means overlap in both cases, as samples differ by 22 dB."""
    add("random", plus(WAVE, 1), 1.5)
    add("checker", WAVE, 1.5)  # 1 dB below on every sample
    add("tomesd", plus(WAVE, 9, -8), 1.5)  # half a dB below on average, far above on half of them
    suite = suite_of()
    places = ranked(settings(suite), 1.3)
    assert list(places["label"]) == ["random", "tomesd", "checker"]
    assert (places["psnr_low"].max() < places["psnr_high"]).all()
    assert tied(suite, places) == ["tomesd"]
    table = lines_of(board(suite))
    bold = {method for method, fields in table.items() if fields[1].startswith("**")}
    assert bold == {"random", "tomesd"}
    first, *_, unscored, stacks = advice([suite])
    assert "**`random`**" in first and first.endswith("not significantly different from `tomesd`.")
    assert unscored.endswith("significantly better than `checker` and all others.")
    assert stacks.endswith("none in the store.")


def test_few_samples_tell_nothing_apart_and_equal_outputs_are_best(add, suite_of, tmp_path):
    add("random", [30.0, 30.0, 30.0], 1.5)
    add("checker", [20.0, 20.0, 20.0], 1.5)
    assert tied(suite_of(), ranked(settings(suite_of()), 1.3)) == ["checker"]
    infinite = [float("inf")] * 3
    add("tomesd", infinite, 1.5)
    add("toma", infinite, 1.5)
    suite = suite_of()
    assert tied(suite, ranked(settings(suite), 1.3)) == ["tomesd"]  # not the others
    assert lines_of(board(suite))["toma"][1] == "**∞** 1.50×"


def test_what_is_not_there_is_said(add, tmp_path):
    add("random", WAVE, 1.5)
    add("checker", WAVE, 1.5, done=3)
    add("random", WAVE, 1.5, model="qwen_standin")
    add("topi tau=0.85 cache=teacache", plus(WAVE, 2), 2.0, model="qwen_standin")
    text = block(Store(tmp_path))
    kontext, qwen = text.split("steps")[1:]
    assert "`kontext_standin`, 8 samples, 28 " in text
    assert kontext.startswith("; 1 incomplete cells are left out:") and qwen.startswith(":")
    assert lines_of(kontext)["topi + teacache"] == ["–", "–", "–", "–", "not run"]
    assert "checker" not in text and "not run" not in qwen
    at_speed = next(line for line in text.splitlines() if "1.8× or more" in line)
    assert "`kontext_standin`: none in the store; `qwen_standin`: **`topi tau=0.85 ca" in at_speed


def test_an_empty_store_is_refused(add, tmp_path):
    add("random", WAVE, 1.5, done=3)
    with pytest.raises(ToPiError, match="experiment=pareto"):
        block(Store(tmp_path))


def test_methods_that_score_nothing_are_methods():
    assert set(METHODS) > UNSCORED


def test_a_searched_schedule_has_a_short_name():
    label = f"dato ratio={'-'.join(['0.4'] * 28)} depths={'-'.join(['9'] * 28)}"
    assert family(label) == "dato, searched"
    assert short(label) == "dato ratio=(28 values) depths=(28 values)"
    assert short("topi ratio=0.5 layers=3-4") == "topi ratio=0.5 layers=3-4"
    assert re.fullmatch(r"\S+ \S+", short("full cache=first_block_cache"))
