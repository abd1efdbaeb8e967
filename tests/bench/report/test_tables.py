"""The table: numbers, order, what is bold."""

import pandas as pd
import pytest
from rich.console import Console

from topi.bench.report.tables.columns import timing_note
from topi.bench.report.tables.quality_table import (
    difference_table,
    notes,
    quality_table,
    quality_text,
    sections,
    to_rich,
)
from topi.bench.report.tables.text_table import to_latex, to_markdown


def row(sample, label, psnr, *, method=None, category="local_edit", keep=0.5, flops=1.2):
    return {
        "cell": label,
        "sample": sample,
        "seed": 0,
        "label": label,
        "method": method or label.split()[0],
        "category": category,
        "psnr": psnr,
        "ssim": psnr / 50,
        "lpips": 1 / psnr,
        "keep_ratio": keep,
        "flop_speedup": flops,
    }


@pytest.fixture
def rows() -> pd.DataFrame:
    return pd.DataFrame(
        [
            row("a", "topi tau=0.8", 20.0),
            row("b", "topi tau=0.8", 30.0, category="camera_move"),
            row("a", "toma", 18.0, keep=1.0, flops=1.3),
            row("b", "toma", 32.0, keep=1.0, flops=1.3, category="camera_move"),
            row("a", "full", float("inf"), keep=1.0, flops=1.0),
            row("b", "full", float("inf"), keep=1.0, flops=1.0, category="camera_move"),
        ]
    )


def timed(label: str, *samples: str, ratio: float = 1.5) -> list[dict]:
    """Three pairs of runs of each sample."""
    seconds = {"seconds_full": 2 * ratio, "seconds_method": 2.0}
    return [{"cell": label, "sample": s, "repeat": r, **seconds} for s in samples for r in range(3)]


@pytest.fixture
def latency() -> pd.DataFrame:
    return pd.DataFrame(timed("toma", "a"))


def line(table: pd.DataFrame, category: str, label: str) -> pd.Series:
    return table[(table["category"] == category) & (table["label"] == label)].iloc[0]


def test_means_per_category_and_over_all(rows, latency):
    table = quality_table(rows, latency)
    assert list(table["category"].unique()) == ["camera_move", "local_edit", "all"]
    assert list(table["label"].unique()) == ["full", "toma", "topi tau=0.8"]
    assert line(table, "all", "topi tau=0.8")["psnr"] == 25
    assert line(table, "all", "topi tau=0.8")["n"] == 2
    assert line(table, "camera_move", "toma")["psnr"] == 32


def test_measured_speed_up_only_where_it_was_timed(rows, latency):
    table = quality_table(rows, latency)
    assert line(table, "local_edit", "toma")["speedup"] == 1.5
    assert pd.isna(line(table, "camera_move", "toma")["speedup"])
    assert pd.isna(line(table, "all", "topi tau=0.8")["speedup"])


def test_the_best_is_bold_and_full_does_not_compete(rows, latency):
    markdown = to_markdown(quality_text(quality_table(rows, latency)))
    lines = {tuple(c.strip() for c in text.split("|")[1:3]): text for text in markdown.split("\n")}
    assert "**20.00** | **0.400** | **0.050** | 0.50 | 1.20×" in lines["", "topi tau=0.8"] or (
        "**20.00**" in markdown and "**32.00**" in markdown
    )
    assert "**∞**" not in markdown
    assert "**18.00**" not in markdown


def test_a_speed_of_few_samples_has_no_interval_and_is_not_the_best():
    labels, samples = ("toma", "topi tau=0.8", "checker"), "abcd"
    rows = pd.DataFrame([row(s, label, 20.0) for label in labels for s in samples])
    pairs = [*timed("toma", *samples), *timed("topi tau=0.8", *samples[:3], ratio=1.9)]
    table = quality_table(rows, pd.DataFrame(pairs))
    pooled = table[table["category"] == "all"].set_index("label")
    assert pooled["pairs"].to_dict() == {"checker": 0, "toma": 12, "topi tau=0.8": 9}
    assert pooled["timed"].to_dict() == {"checker": 0, "toma": 4, "topi tau=0.8": 3}
    texts = {label: cells[-1] for label, _, cells in sections(table)[-1][1]}
    assert texts["toma"] == ("1.50× [1.50, 1.50]", True)
    assert texts["topi tau=0.8"] == ("1.90× (n=3)", False)
    assert texts["checker"] == ("–", False)
    assert "9 to 12 pairs of runs on 3 to 4 samples" in "\n".join(notes(table))


def test_how_often_was_timed_is_said_in_numbers():
    assert "1 pair of runs on 1 sample." in timing_note([1, 0, 1], [1, 0, 1])
    assert "1 to 6 pairs of runs on 1 to 2 samples." in timing_note([1, 6], [1, 2])
    assert timing_note([0], [0]) == timing_note([], []) == "No run was timed."


def test_identical_outputs_are_marked(rows, latency):
    rows.loc[0, "psnr"] = float("inf")
    table = quality_table(rows, latency)
    texts = {label: cells for _, group in sections(table)[-1:] for label, _, cells in group}
    assert texts["topi tau=0.8"][0][0] == "30.00*"
    assert texts["full"][0][0] == "∞"


def test_the_console_table_fits_eighty_columns(rows, latency, capsys):
    Console(width=80).print(to_rich(quality_table(rows, latency), "model"))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "1.50× (n=1)" in printed


def test_the_console_table_folds_long_names_not_numbers(capsys):
    label = "toma_ref ratio=0.25 merge_every=1 cache=taylorseer"
    rows = pd.DataFrame([row(s, label, 20.0 + n) for n, s in enumerate("abcd")])
    rows.loc[0, "psnr"] = float("inf")
    Console(width=80).print(to_rich(quality_table(rows, pd.DataFrame(timed(label, *"abcd"))), "m"))
    printed = capsys.readouterr().out
    assert "…" not in printed
    for text in ("22.00*", "0.430", "1.20×", "1.50× [1.50, 1.50]"):
        assert text in printed
    assert label in " ".join(line[:19].strip() for line in printed.splitlines())


def test_latex_is_plain_and_balanced(rows, latency):
    text = to_latex(quality_text(quality_table(rows, latency)))
    assert text.isascii()
    assert r"\textbf{20.00}" in text
    widths = {t.count("&") for t in text.split("\n") if t.endswith(r"\\")}
    assert widths == {8}


def test_without_any_timing_the_table_still_stands(rows, latency):
    table = quality_table(rows, latency.iloc[:0])
    assert table["speedup"].isna().all()
    assert "–" in to_markdown(quality_text(table))


def test_topi_is_compared_with_each_other_method(rows):
    table = difference_table(rows)
    assert list(table[["label", "other", "value", "n"]].iloc[0]) == ["topi tau=0.8", "toma", 0, 2]
    assert len(table) == 1
    assert difference_table(rows[rows["method"] == "topi"]).empty
