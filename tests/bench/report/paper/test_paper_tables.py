"""Tables 1 to 7: values as computed by hand from the rows, the paper's as printed."""

import hashlib
import json
from math import isnan

import numpy as np
import pandas as pd
import pytest

from topi.bench.report.paper.artefacts import OURS, TABLE1, TABLE2, TABLE4
from topi.bench.report.paper.entries import identity
from topi.bench.report.paper.flops_table import by_formula, counted, flops_table, reduction
from topi.bench.report.paper.paper_tables import overhead, overhead_table, sheet_table
from topi.bench.report.paper.printed_values import EXPERIMENTS, paper_values, printed, quantity
from topi.bench.report.paper.quality_curves import (
    at_speed,
    curve_points,
    curve_table,
    equal_speed,
    equal_speed_table,
)
from topi.bench.report.paper.suite import best_suites, check_comparable, suites
from topi.bench.report.tables.text_table import to_latex, to_markdown
from topi.bench.results.store import Store
from topi.errors import ToPiError


@pytest.fixture(scope="module")
def found(paper_root):
    return {suite.model: suite for suite in suites(Store(paper_root))}


def rows_of(root, slug):
    path = root / "cells" / f"kontext_standin-{slug}-feed" / "rows.jsonl"
    return pd.DataFrame(json.loads(line) for line in path.read_text().splitlines())


def number(table, category, method, metric):
    frame = table.frame
    same = (frame["category"] == category) & (frame["method"] == method)
    (line,) = frame[same & (frame["metric"] == metric)].to_dict("records")
    return line


def test_a_value_is_the_mean_of_the_rows(found, paper_root):
    table = sheet_table(TABLE1, found["kontext_standin"])
    rows = rows_of(paper_root, "tomesd")
    inside = rows[rows["category"] == "global_edit"]
    line = number(table, "global_edit", "ToMeSD", "psnr")
    assert line["value"] == pytest.approx(inside["psnr"].mean())
    assert line["n"] == 4
    assert line["low"] <= line["value"] <= line["high"]
    assert line["cells"] == "kontext_standin-tomesd-feed"
    assert number(table, "all", "ToMeSD", "lpips")["value"] == pytest.approx(rows["lpips"].mean())


def test_a_difference_is_paired_by_sample(found, paper_root):
    table = sheet_table(TABLE1, found["kontext_standin"])
    one = rows_of(paper_root, "toma").set_index("sample")["psnr"]
    ours = rows_of(paper_root, "topi-tau-0.85").set_index("sample")["psnr"]
    line = number(table, "all", "ToMA", "psnr")
    assert line["difference_value"] == pytest.approx((one - ours).mean())
    spread = line["difference_high"] - line["difference_low"]
    assert spread < 0.1 * (line["high"] - line["low"])  # the samples' spread cancels


def test_speed_is_the_median_of_the_pairs(found, paper_root):
    path = paper_root / "cells" / "kontext_standin-toma-feed" / "latency.jsonl"
    pairs = pd.DataFrame(json.loads(line) for line in path.read_text().splitlines())
    ratio = (pairs["seconds_full"] / pairs["seconds_method"]).groupby(pairs["sample"]).median()
    line = number(sheet_table(TABLE1, found["kontext_standin"]), "all", "ToMA", "speedup")
    assert line["value"] == pytest.approx(ratio.median())


def test_the_draws_of_random_layers_are_averaged_by_sample(found, paper_root):
    table = sheet_table(TABLE2, found["kontext_standin"])
    draws = [rows_of(paper_root, f"topi-ratio-0.5-layers-random-{seed}") for seed in range(5)]
    line = number(table, "camera_move", "Random layers (5 draws)", "ssim")
    inside = [rows[rows["category"] == "camera_move"]["ssim"].mean() for rows in draws]
    assert line["value"] == pytest.approx(np.mean(inside))
    assert line["n"] == 4
    assert len(line["cells"].split()) == 5


def test_the_paper_s_values_stand_beside_ours(found):
    table = sheet_table(TABLE1, found["qwen_standin"])
    assert number(table, "global_edit", "ToPi τ=0.85", "speedup")["paper"] == "1.33"
    assert number(table, "camera_move", "ToMeSD*", "psnr")["paper"] == "22.58"
    assert number(table, "all", "ToMeSD*", "psnr")["paper"] == ""
    assert number(table, "local_edit", "Checkerboard", "psnr")["paper"] == ""
    assert "*22.58*" in to_markdown(table)
    assert number(sheet_table(TABLE2, found["qwen_standin"]), "camera_move", "ToPi", "psnr")[
        "paper"
    ] == ("")  # the paper has Table 2 of FLUX alone


@pytest.mark.parametrize(
    ("artefact", "where", "value"),
    [
        ("table1", ("camera_move", "Ours", "psnr", "Flux.1-Kontext"), "25.01"),
        ("table1", ("camera_move", "ToMeSD", "speed", "Flux.1-Kontext"), "1.05"),
        ("table1", ("global_edit", "ToMeSD*", "psnr", "Flux.1-Kontext"), "17.66"),
        ("table1", ("implicit_change", "ToMA*", "psnr", "Flux.1-Kontext"), "24.39"),
        ("table1", ("local_edit", "Ours", "lpips", "Qwen-Image-Edit"), "0.103"),
        ("table1", ("local_edit", "ToMA", "ssim", "Qwen-Image-Edit"), "0.738"),
        ("table2", ("camera_move", "Random", "lpips", "Flux.1-Kontext"), "0.112"),
        ("table2", ("camera_move", "All", "lpips", "Flux.1-Kontext"), "0.113"),
        ("table3", ("global_edit", "Similarity", "psnr", "Flux.1-Kontext"), "17.06"),
        ("table3", ("local_edit", "Attn-Only", "ssim", "Flux.1-Kontext"), "0.856"),
        ("table4", ("global_edit", "Merge", "lpips", "Flux.1-Kontext"), "0.224"),
        ("table4", ("implicit_change", "Prune", "psnr", "Flux.1-Kontext"), "30.02"),
        ("table5", ("camera_move", "Last", "psnr", "Flux.1-Kontext"), "24.31"),
        ("table5", ("local_edit", "First", "psnr", "Flux.1-Kontext"), "26.93"),
    ],
)
def test_paper_values_are_those_of_the_paper(artefact, where, value):
    assert printed(artefact, *where) == value


# Every row of these files was matched by hand to the tables as printed: whoever changes one has to
# do that again.
MATCHED = {
    "table1": "1520c7b61ba5b9193ca6f91b84d0154a8b24aa321a4c16ef7b21d9706983cb59",
    "table2": "84fd53843043c55fb2395aab8fd8783527d92ee8177ed3d764604c224dc2f7e1",
    "table3": "7d1cc476841cdc17633c148ec514fba88eb286dc1fd2cce2421ad074a14a1e60",
    "table4": "44d4fed0200497bcfcb103a59ee2256510801db538f55ac46d26f11fd4fdc9fb",
    "table5": "274e7d13701b969b5e8f9868886b899cfeacf2d0321bb43fed76fd09fcffefa4",
}


@pytest.mark.parametrize("artefact", MATCHED)
def test_no_value_of_the_paper_has_changed_since_it_was_matched(artefact):
    content = (EXPERIMENTS / artefact / "paper.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == MATCHED[artefact]


def test_all_lines_of_the_paper_s_tables_are_there():
    assert {n: len(paper_values(f"table{n}")) for n in range(1, 8)} == {
        1: 40,
        2: 12,
        3: 12,
        4: 8,
        5: 20,
        6: 11,
        7: 4,
    }
    assert list(paper_values("table7")["ratio"]) == ["99.45%", "0.50%", "0.05%", "100.0%"]
    assert list(paper_values("table6")["reduction"])[3] == "-28.2%"
    assert quantity("fig6", "speed-up of ToPi with TeaCache") == 2.34
    with pytest.raises(ToPiError, match="checkout"):
        paper_values("table99")


def test_a_missing_cell_is_shown_and_a_half_finished_one_is_not_averaged(tmp_path, write_cell):
    for label in ("tomesd", OURS):
        write_cell(tmp_path, "kontext_standin", label)
    write_cell(tmp_path, "kontext_standin", "toma", done=5)
    (suite,) = suites(Store(tmp_path))
    table = sheet_table(TABLE1, suite)
    toma = number(table, "all", "ToMA", "psnr")
    assert toma["state"] == "partial 5/16"
    assert isnan(toma["value"])
    assert number(table, "all", "ToMA*", "psnr")["state"] == "missing"
    assert not table.complete
    text = to_markdown(table)
    assert "| ToMA | partial 5/16 |" in text
    assert "ToMA\\* (missing)" in text or "ToMA* (missing)" in text
    # One draw of five is not their mean.
    write_cell(tmp_path, "kontext_standin", "topi ratio=0.5 layers=random:0")
    (suite,) = suites(Store(tmp_path))
    draws = number(sheet_table(TABLE2, suite), "all", "Random layers (5 draws)", "psnr")
    assert (draws["state"], isnan(draws["value"])) == ("missing", True)


def test_a_cell_that_lacks_rows_is_not_complete(tmp_path, write_cell):
    cell = write_cell(tmp_path, "kontext_standin", "toma", done=5)
    (cell / "complete.json").write_text("{}")
    (suite,) = suites(Store(tmp_path))
    assert suite.state("toma").startswith("damaged: it lacks ")
    assert not suite.run("toma").complete


def test_other_weights_are_refused(tmp_path, write_cell):
    write_cell(tmp_path, "kontext_standin", OURS, weights="old0")
    write_cell(tmp_path, "kontext_standin", "toma", weights="new1")
    store = Store(tmp_path)
    assert [suite.weights for suite in suites(store)] == ["new1"]  # the newest of equals
    with pytest.raises(ToPiError, match=r"differ in weights: report each by itself"):
        check_comparable(store.load_cells())
    for suite in best_suites(suites(store), TABLE1.labels):
        table = sheet_table(TABLE1, suite)
        states = {number(table, "all", m, "psnr")["state"] for m in ("ToMA", "ToPi τ=0.85")}
        assert states == {"complete", "missing"}


def test_best_are_bold_ties_included(found):
    table = sheet_table(TABLE1, found["kontext_standin"])
    best = table.frame[(table.frame["category"] == "all") & table.frame["best"]]
    assert set(best[best["metric"] == "psnr"]["method"]) == {"ToPi τ=0.85"}
    assert not table.frame[(table.frame["metric"] == "keep_ratio") & table.frame["best"]].size
    merge = sheet_table(TABLE4, found["kontext_standin"])
    assert number(merge, "all", "Prune", "psnr")["best"]
    assert not number(merge, "all", "Merge", "psnr")["best"]


def text_of(table, category, method, heading):
    """What stands in the row of a method, below a heading."""
    first = ""
    for row in table.rows:
        first = row[0].text or first
        if (first, row[1].text) == (category, method):
            return row[table.headings.index(heading)].text
    raise AssertionError((category, method))


def test_a_speed_of_one_timed_sample_looks_like_one(found):
    """The fixture times four samples, one of each category, three times."""
    table = sheet_table(TABLE1, found["kontext_standin"])
    speeds = table.frame[table.frame["metric"] == "speedup"]
    assert set(speeds.loc[speeds["best"], "category"]) == {"all"}
    assert text_of(table, "Local edit", "ToMA", "Measured↑") == "1.10× (n=1)"
    assert text_of(table, "All categories", "ToMA", "Measured↑") == "1.10× [1.10, 1.10]"
    said = "12 pairs of runs on 4 samples"
    for each in (table, curve_table(found["kontext_standin"])):
        assert said in to_markdown(each)
    assert said in to_markdown(equal_speed_table(found["kontext_standin"]))
    assert "12 on 4 samples" in to_markdown(overhead_table(found["kontext_standin"]))


def test_a_method_that_merges_says_how_much(found):
    table = sheet_table(TABLE1, found["kontext_standin"])
    kept = {row[1].text: row[table.headings.index("Kept")].text for row in table.rows}
    assert kept["ToMeSD"] == kept["ToMeSD*"] == "merges 50%"
    assert kept["ToMA"] == kept["ToMA*"] == "merges 50%, 36% of calls"  # 10 of 28 steps
    assert kept["ToPi τ=0.85"] == "0.60"
    curves = curve_table(found["kontext_standin"])
    at = curves.headings.index("Kept")
    curve = {row[1].text: row[at].text for row in curves.rows}
    assert curve["toma ratio=0.25 merge_every=1"] == "merges 25%"
    assert curve["tomesd ratio=0.75"] == "merges 75%"


def test_curves_name_the_cells_behind_them(found):
    suite = found["kontext_standin"]
    assert "- toma: `kontext_standin-toma-feed`" in to_markdown(curve_table(suite))
    text = to_markdown(equal_speed_table(suite))
    assert "- Checkerboard: `kontext_standin-checker-feed`" in text
    assert "`kontext_standin-topi-tau-0.85-feed`" in text


def test_latex_is_ascii_and_balanced(found):
    for table in (
        sheet_table(TABLE1, found["kontext_standin"]),
        equal_speed_table(found["kontext_standin"]),
        overhead_table(found["kontext_standin"]),
        flops_table(),
    ):
        body = to_latex(table).partition(r"\begin{tabular}")[2]
        assert body.isascii()
        widths = {line.count(" & ") for line in body.split("\n") if line.endswith(r"\\")}
        assert len(widths) == 1
        assert widths.pop() == len(table.headings) - 1


def test_labels_are_one_whatever_their_order_and_spelling():
    assert identity("topi tau=1.0 layers=all") == identity("topi layers=all tau=1")
    assert identity("topi tau=0.8") != identity("topi tau=0.85")


def test_scores_at_a_speed_lie_between_the_points_around_it():
    points = [(1.5, pd.Series({"a": 20.0, "b": 24.0})), (1.1, pd.Series({"a": 30.0, "b": 28.0}))]
    assert at_speed(points, 1.2).to_list() == pytest.approx([27.5, 27.0])
    assert at_speed(points, 1.1).to_list() == [30, 28]
    assert at_speed(points, 1.6) is None
    assert at_speed(points[:1], 1.5).to_list() == [20, 24]


def test_equal_speed_by_hand(found):
    suite = found["kontext_standin"]
    ours = [suite.run(f"topi tau={tau}") for tau in (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)]
    other = [suite.run(x) for x in ("tomesd ratio=0.25", "tomesd", "tomesd ratio=0.75")]
    at, gap = equal_speed(suite, ours, other, "flop_speedup", "psnr", None)
    assert at == pytest.approx(2.2 - 1.1 * 0.85)  # ToPi's own speed lies on both curves
    # The fixture: ToPi 14 + 20 tau; ToMeSD 25 at 1.25 and 30 - 7.5 = 22.5 at 1.375.
    share = (at - 1.25) / 0.125
    assert gap.value == pytest.approx(31 - (25 + share * (22.5 - 25)), abs=0.05)
    assert gap.n == 16
    alone = [suite.run("checker")]
    at, gap = equal_speed(suite, ours[:1], alone, "flop_speedup", "psnr", None)
    assert isnan(at)
    assert gap.n == 0


def test_curves_leave_out_what_is_not_complete(found, tmp_path, write_cell):
    assert set(curve_points(found["kontext_standin"])["method"]) >= {"ToPi", "ToMA*, every step"}
    write_cell(tmp_path, "kontext_standin", "toma", done=3)
    (suite,) = suites(Store(tmp_path))
    assert curve_points(suite).empty


def test_overhead_adds_up(found):
    parts = overhead(found["kontext_standin"].run(OURS))
    assert parts["seconds"][:3].sum() == pytest.approx(parts["seconds"]["total"])
    assert parts["seconds"]["scoring"] == pytest.approx(0.008)
    assert parts["share"][:3].sum() == pytest.approx(1)
    table = overhead_table(found["kontext_standin"])
    assert [row[3].text for row in table.rows] == ["27.692", "0.147", "0.014", "27.853"]


def test_table_6_by_hand():
    layer = by_formula(8192)
    assert layer.attention == 4 * 8704**2 * 4096
    assert layer.image == 24 * 8192 * 4096**2
    for line in paper_values("table6").to_dict("records"):
        wide = 6 if line["architecture"].startswith("Qwen") else 4
        if line["component"] == "Layer Total":
            full, half = by_formula(8192, mlp=wide).total, by_formula(6144, mlp=wide).total
            assert full / 1e9 == pytest.approx(float(line["baseline"]), abs=0.011)
            assert half / 1e9 == pytest.approx(float(line["topi"]), abs=0.011)
            assert f"-{reduction(full, half):.1%}" == line["reduction"]
    real = counted()["Qwen-Image-Edit"]
    assert real["baseline"].total == by_formula(8192, d=3072).total
    assert real["topi"].total == by_formula(6144, d=3072).total
    assert len(flops_table().rows) == 11
