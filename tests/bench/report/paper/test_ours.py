"""Ours against rivals with as many tokens and at equal speed, on cells written by hand."""

import json

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from topi.bench.report.paper.build import NEEDS, build_tables, suites_of
from topi.bench.report.paper.ours import (
    COUNTED,
    EQUAL_COUNT,
    EQUAL_SPEED,
    differences,
    equal_count,
    equal_count_figure,
    equal_count_matches,
    equal_speed_matches,
)
from topi.bench.report.paper.suite import suites
from topi.bench.report.tables.text_table import to_latex, to_markdown
from topi.bench.results.statistics import holm
from topi.bench.results.store import Store

matplotlib.use("Agg")
MODEL = "kontext_standin"
COVER, TOPI, CHECKER = "topi_cover ratio=0.5", "topi ratio=0.5", "checker flip=step"


@pytest.fixture
def suite_of(tmp_path, write_cell):
    def suite_of(*labels):
        for number, label in enumerate(labels):
            write_cell(tmp_path, MODEL, label, pictures=0, number=number)
        (suite,) = suites(Store(tmp_path))
        return suite

    return suite_of


def test_rivals_keep_as_many_tokens_and_have_cells():
    for ours, rivals in COUNTED.items():
        share = ours.partition("ratio=")[2]
        for rival in rivals:  # half is what random and the checkerboard keep by default
            assert f"ratio={share}" in rival or (share == "0.5" and "ratio=" not in rival)
    assert {match.ours for match in equal_count_matches()} == set(COUNTED)
    assert set(NEEDS[EQUAL_COUNT]) == {*COUNTED, *(r for each in COUNTED.values() for r in each)}


def test_a_difference_is_that_of_the_samples_both_have(suite_of):
    suite = suite_of(COVER, TOPI, CHECKER)
    frame = differences(suite, equal_count_matches())
    assert set(frame["rival"]) == {TOPI, CHECKER}  # the others have no cell
    assert len(frame) == 2 * 5 * 3  # rivals, four categories and all, scores
    gap = suite.run(COVER).values("psnr") - suite.run(TOPI).values("psnr")
    inside = suite.run(COVER).samples["category"] == "local_edit"
    lines = frame[(frame["rival"] == TOPI) & (frame["score"] == "psnr")].set_index("category")
    assert lines.loc["all", "value"] == pytest.approx(gap.mean())
    assert lines.loc["local_edit", "value"] == pytest.approx(gap[inside].mean())
    assert lines["n"].to_dict() == {c: 4 for c in lines.index if c != "all"} | {"all": 16}
    # the standard error is bootstrapped, the rest is the textbook's
    p = ttest_1samp(gap, 0).pvalue
    assert lines.loc["all", "p"] < 1e-6 and p < 1e-6


def rewrite(root, label, change):
    """Change the rows of a cell."""
    path = next(root.glob(f"cells/*-{label}-*")) / "rows.jsonl"
    rows = [json.loads(line) for line in path.open()]
    path.write_text("".join(json.dumps(row | change(row)) + "\n" for row in rows))


def test_p_values_are_two_sided_and_corrected_together(tmp_path, suite_of):
    suite_of(COVER, TOPI, CHECKER)
    noise = np.random.default_rng(0).normal(-2, 3, 16)  # about as good as ToPi
    rewrite(tmp_path, "topi_cover-ratio-0.5", lambda r: {"psnr": r["psnr"] + noise[r["index"]]})
    (suite,) = suites(Store(tmp_path))
    frame = differences(suite, equal_count_matches())
    alone = 2 * student.sf((frame["value"] / frame["error"]).abs(), frame["n"] - 1)
    assert ((alone > 0.01) & (alone < 1)).sum() > 3  # correction has something to do
    assert frame["p"].to_numpy() == pytest.approx(holm(alone))


def test_less_lpips_is_ahead_and_less_psnr_behind(tmp_path, suite_of):
    suite = suite_of(COVER, TOPI)
    frame = differences(suite, equal_count_matches()).set_index(["score", "category"])
    assert frame.loc[("lpips", "all"), "value"] < 0
    assert frame.loc[("lpips", "all"), "verdict"] == "ahead"
    assert frame.loc[("psnr", "all"), "verdict"] == "ahead"
    rewrite(tmp_path, "topi_cover-ratio-0.5", lambda row: {"psnr": row["psnr"] - 4})
    (suite,) = suites(Store(tmp_path))
    text = to_markdown(equal_count(suite))
    behind = [line for line in text.splitlines() if "All categories" in line]
    assert len(behind) == 1 and "-2.0" in behind[0] and "] †" in behind[0]
    assert "**" in behind[0]  # LPIPS and SSIM are as they were


def test_the_map_meets_the_best_of_both_sides_at_a_level(suite_of):
    cached = "full cache=teacache"  # 27 dB, 1.9 times as fast, skips half of its steps
    suite = suite_of("topi_kv", "topi_kv cache=teacache", "ref_kv", "tomesd", cached, CHECKER)
    found = [(m.where, m.ours, m.rival) for m in equal_speed_matches(suite)]
    assert found == [
        ("≥ 1.2×, all", "topi_kv cache=teacache", "ref_kv"),
        ("≥ 1.2×, every step run", "topi_kv", "ref_kv"),
        ("≥ 1.5×, all", "topi_kv cache=teacache", "ref_kv"),
        ("≥ 1.5×, every step run", "topi_kv", "ref_kv"),
    ]


def test_the_figure_shows_the_means(tmp_path, suite_of):
    suite = suite_of(COVER, TOPI, CHECKER)
    figure = equal_count_figure(Store(tmp_path), [suite])
    half, third = figure.axes
    drawn = [container.lines[0].get_ydata() for container in half.containers]
    means = suite.run(TOPI).samples.groupby("category")["psnr"].mean()  # in the order of the paper
    assert drawn[0] == pytest.approx(means.to_numpy())
    assert [len(np.unique(points)) for points in drawn] == [4, 1, 4, 4]  # random has no cell: NaN
    assert (half.get_title()[:3], third.get_title()[:3]) == ("50%", "30%")
    plt.close(figure)
    assert equal_count_figure(Store(tmp_path), []) is None


def test_nothing_is_compared_where_nothing_was_run(suite_of, tmp_path):
    suite = suite_of("tomesd", CHECKER)
    assert differences(suite, equal_count_matches()).empty
    assert list(build_tables(Store(tmp_path), [suite], [EQUAL_COUNT, EQUAL_SPEED])) == []


def test_the_table_is_of_the_suite_that_has_its_cells(tmp_path, write_cell, suite_of):
    suite_of(TOPI, CHECKER)
    for number, label in enumerate((COVER, TOPI, CHECKER)):
        cell = write_cell(tmp_path / "more", MODEL, label, pictures=0, samples=32, number=number)
        cell.rename(tmp_path / "cells" / f"more-{cell.name}")
    store = Store(tmp_path)
    found = suites(store)
    (suite,) = suites_of(EQUAL_COUNT, found)
    assert suite.count == 32
    (table,) = build_tables(store, found, [EQUAL_COUNT])
    assert len(table.rows) == 2 * 5
    assert "Δ" not in to_latex(table)
