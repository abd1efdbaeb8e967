"""The table: numbers, order, what is bold."""

import pandas as pd
import pytest
from rich.console import Console

from topi.report.tables import (
    difference_table,
    quality_table,
    sections,
    to_latex,
    to_markdown,
    to_rich,
)


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


@pytest.fixture
def latency() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"cell": "toma", "sample": "a", "repeat": r, "seconds_full": 3.0, "seconds_method": 2.0}
            for r in range(3)
        ]
    )


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
    markdown = to_markdown(quality_table(rows, latency))
    lines = {tuple(c.strip() for c in text.split("|")[1:3]): text for text in markdown.split("\n")}
    assert "**20.00** | **0.400** | **0.050** | 0.50 | 1.20×" in lines["", "topi tau=0.8"] or (
        "**20.00**" in markdown and "**32.00**" in markdown
    )
    assert "**∞**" not in markdown
    assert "**18.00**" not in markdown
    assert "**1.50× [1.50, 1.50]**" in markdown


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
    assert "1.50× [1.50, 1.50]" in printed


def test_latex_is_plain_and_balanced(rows, latency):
    text = to_latex(quality_table(rows, latency))
    assert text.isascii()
    assert r"\textbf{20.00}" in text
    widths = {t.count("&") for t in text.split("\n") if t.endswith(r"\\")}
    assert widths == {8}


def test_without_any_timing_the_table_still_stands(rows, latency):
    table = quality_table(rows, latency.iloc[:0])
    assert table["speedup"].isna().all()
    assert "–" in to_markdown(table)


def test_topi_is_compared_with_each_other_method(rows):
    table = difference_table(rows)
    assert list(table[["label", "other", "value", "n"]].iloc[0]) == ["topi tau=0.8", "toma", 0, 2]
    assert len(table) == 1
    assert difference_table(rows[rows["method"] == "topi"]).empty
