"""The table of paired differences, against numbers by hand."""

from math import inf
from pathlib import Path

import pandas as pd
import pytest

from topi.bench.io import escape
from topi.bench.report.selection import answers, comparison, questions_tables, selection_table
from topi.bench.report.tables.columns import STAR
from topi.bench.results import Store
from topi.errors import ToPiError


def rows(label, psnr, speed):
    return [
        {
            "label": label,
            "sample": f"s{i}",
            "seed": 0,
            "category": "ab"[i % 2],
            "psnr": value,
            "flop_speedup": speed,
            "keep_ratio": 0.5,
        }
        for i, value in enumerate(psnr)
    ]


def test_lines_are_by_speed_and_differences_paired():
    fast, slow = rows("fast", [32.0, 42, 52, 60], 1.5), rows("slow", [30.0, 40, 50], 1.1)
    lines = selection_table(pd.DataFrame(fast + slow), "slow").splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["slow", "fast"]
    assert lines[2] == "| slow | 3 | 1.10 | 0.50 | 40.00 |  | 40.0 | 40.0 |"
    assert lines[3].startswith("| fast | 4 | 1.50 | 0.50 | 46.50 | +2.00 [+2.00, +2.00] |")
    with_another = selection_table(pd.DataFrame(fast + slow), "slow", "not there").splitlines()
    assert with_another == lines
    with pytest.raises(ToPiError, match="there are: slow"):
        selection_table(pd.DataFrame(slow), "other")


def test_a_star_is_for_what_holds_after_correction():
    """Twelve pairs that all agree have p = 2 / 2^12; eight have 0.0078, too much for ten lines."""
    noise = [0.01 * i for i in range(12)]
    frame = pd.DataFrame(
        rows("rival", [30.0] * 12, 1.0)
        + rows("sure", [31.0 + x for x in noise], 1.1)
        + [row for k in range(9) for row in rows(f"few {k}", [31.0 + x for x in noise[:8]], 1.2)]
    )
    lines = selection_table(frame, "rival").splitlines()
    stars = {line.split(" | ")[0].strip("| "): "*" in line for line in lines[2:]}
    assert stars["sure"] and not any(stars[f"few {k}"] for k in range(9)) and not stars["rival"]


def test_equal_outputs_are_left_out_of_means_as_in_the_report():
    """One of `some` equals the full output, and all of `full`."""
    frame = pd.DataFrame(
        rows("some", [inf, 40, 50, 60], 1.5)
        + rows("none", [30.0, 40, 40, 50], 1.2)
        + rows("full", [inf] * 4, 1.0)
    )
    lines = selection_table(frame, "none", "full").splitlines()
    assert lines[2] == "| full | 4 | 1.00 | 0.50 | ∞ | – |  | ∞ | ∞ |"
    assert lines[4].startswith(r"| some | 4 | 1.50 | 0.50 | 50.00\* | +6.67 [")
    assert lines[4].endswith(r" | – | 50.0\* | 50.0 |")
    assert lines[-1] == escape.markdown(STAR)
    questions = pd.DataFrame(
        [("A", "?", "some", "full", "")],
        columns=["section", "question", "one", "other", "decided"],
    )
    assert questions_tables({"m": frame}, questions).splitlines()[-1] == (
        "| ? | – at 1.50× and 1.00× |  |"
    )


def test_every_question_is_answered_on_every_model():
    noise = [0.01 * i for i in range(12)]
    frame = pd.DataFrame(
        rows("rival", [30.0 + x for x in noise], 1.0)
        + rows("ahead", [31.0 + 2 * x for x in noise], 1.5)
        + rows("alike", [30.0 - (-1) ** k * x for k, x in enumerate(noise)], 1.0)
    )
    columns = ("section", "question", "one", "other", "decided")
    asked = [
        ("First", "is it better?", "ahead", "rival", "yes"),
        ("", "is it alike?", "alike", "rival", ""),
        ("Second", "turned round", "rival", "ahead", "no"),
    ]
    questions = pd.DataFrame(asked, columns=columns)
    lines = questions_tables({"a": frame, "b": frame}, questions).splitlines()
    assert [line for line in lines if line.startswith("#")] == ["## First", "## Second"]
    assert lines[2] == "| question | `a` | `b` | decided |"
    _, a, b, decided = lines[4].strip("| ").split(" | ")
    assert a == b and a == "+1.1 [1.0, 1.1] * at 1.50× and 1.00×" and decided == "yes"
    assert lines[5].split(" | ")[1].count("×") == 0 and "*" not in lines[5]
    assert lines[-1].startswith("| turned round | -1.1 [-1.1, -1.0] * at 1.00× and 1.50× |")
    with pytest.raises(ToPiError, match="No cell of a is labelled 'nobody'"):
        questions_tables({"a": frame}, questions.replace("alike", "nobody"))


def test_the_committed_questions_name_cells_of_the_experiment():
    root = Path(__file__).parents[3]
    questions = pd.read_csv(root / "experiments/selection/questions.csv", keep_default_na=False)
    told = (root / "experiments/selection/results.md").read_text()
    labels = {line.split(" | ")[0].strip("| ") for line in told.splitlines()}
    assert {*questions["one"], *questions["other"]} <= labels
    assert questions["section"].iloc[0] and questions["question"].is_unique


def test_bad_questions_are_told(tmp_path):
    """An empty store, a file that is not there, one that is no CSV of questions."""
    store, asked = Store(tmp_path / "results"), tmp_path / "asked.csv"
    with pytest.raises(ToPiError, match=r"No cells in .*results: run"):
        comparison(store, ["topi ratio=0.5"])
    with pytest.raises(ToPiError, match=r"asked.csv cannot be read"):
        answers(store, asked)
    header = "section,question,one,other,decided\n"
    for content, words in (
        ("section,one\nA,topi\n", "asked.csv, line 2, is not valid: field question"),
        ("", "at least one question"),
        (header, "at least one question"),
        (header + ",?,topi,random,\n", "the first with a section"),
        (header + "A,?,topi,,\n", "line 2, is not valid: field other"),
        (header + "A,?,topi,random,\n\nA,?,topi\n", "line 4, has 3 fields"),
        (header + "A,?,topi,random,,\n", "line 2, has 6 fields"),
        (header + 'A,"?\n?",topi,random,\nA,?,,random,', "line 4, is not valid: field one"),
        (header + 'A,"?,topi,random,', "line 2: unexpected end of data"),
        (header.replace("decided", "one"), "the column one twice"),
    ):
        asked.write_text(content)
        with pytest.raises(ToPiError, match=words):
            answers(store, asked)
    asked.write_text("section,question,one,other,decided\nA,?,topi,random,\n")
    with pytest.raises(ToPiError, match=r"No cells in .*results: run"):
        answers(store, asked)
