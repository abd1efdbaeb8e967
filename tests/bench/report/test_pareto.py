"""The Pareto front, the leaderboard and their figure, on a synthesised store."""

import re
import runpy
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from topi.bench.report.drawing.plots import curve, cut_note, method_style, speed_axis
from topi.bench.report.paper.build import FIGURES
from topi.bench.report.paper.suite import suites
from topi.bench.report.pareto import (
    LEVELS,
    NAMED,
    family,
    leaderboard,
    on_front,
    pareto,
    pareto_points,
)
from topi.bench.report.tables.text_table import to_latex, to_markdown
from topi.bench.results.store import Store

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def suite(paper_root):
    return next(s for s in suites(Store(paper_root)) if s.model == "kontext_standin")


def test_curves_are_named_by_what_does_not_vary_along_them():
    assert family("topi tau=0.8") == family("topi tau=0.85") == "topi"
    assert family("tomesd") == family("tomesd ratio=0.25") == "tomesd"
    assert family("topi_kv live=0.1 tau=0.85") == family("topi_kv update_every=3") == "topi_kv"
    assert family("toma ratio=0.25 merge_every=1") == "toma, merge_every=1"
    assert family("full cache=teacache cache.threshold=0.6") == "teacache"
    assert family("topi tau=0.85 cache=teacache") == "topi + teacache"
    assert family("checker flip=step cache=taylorseer cache.interval=3") == (
        "checker, flip=step + taylorseer"
    )


def test_the_front_by_hand():
    speed = [1.0, 1.5, 1.5, 2.0, 1.2, np.nan, 2.0]
    score = [40.0, 30.0, 31.0, 20.0, 30.0, 99.0, 20.0]
    # twins are both on it; the fifth is beaten by the third; the sixth has no speed
    assert on_front(speed, score).tolist() == [True, False, True, True, False, False, True]
    assert on_front([1.0, 2.0], [np.inf, 10.0]).tolist() == [True, True]
    assert on_front([], []).tolist() == []


def test_the_front_is_that_of_a_brute_force_search():
    speed, score = np.random.default_rng(0).integers(0, 6, (2, 40)).astype(float)
    pairs = list(zip(speed, score, strict=True))
    expected = [not any(a >= s and b >= q and (a, b) != (s, q) for a, b in pairs) for s, q in pairs]
    assert on_front(speed, score).tolist() == expected


def test_every_cell_but_ablations_is_a_point(suite):
    points = pareto_points(suite)
    pooled = points[points["category"] == "all"]
    ablation = re.compile("layers=|score=|dropped=|update_every=")
    expected = [label for label in suite.labels if not ablation.search(label)]
    assert sorted(pooled["label"]) == sorted(expected)
    assert len(expected) < len(suite.labels)
    assert set(points["category"]) == {"all", "camera_move", "global_edit"} | {
        "implicit_change",
        "local_edit",
    }


def test_the_leaderboard_ranks_at_equal_speed(suite):
    """By the fixture: PSNR 28.5 to 30 at 1.25x, caches 26 and 27 dB at 2.1x and 1.9x."""
    table = leaderboard(suite)
    frame = table.frame
    for level, group in frame.groupby("level"):
        assert (group["speedup"] >= level).all()
        assert group["psnr"].is_monotonic_decreasing and group["method"].is_unique
    assert sorted(set(frame["level"])) == list(LEVELS)
    winner = frame[(frame["level"] == 2.0) & (frame["rank"] == 1)]
    assert list(winner["label"]) == ["topi tau=0.85 cache=teacache"]
    second = frame[(frame["level"] == 1.5) & (frame["rank"] == 1)]
    assert list(second["label"]) == ["full cache=teacache"] and bool(second["front"].all())
    gap = next(note for note in table.notes if note.startswith("At 1.5×"))
    assert "full cache=teacache differs by +" in gap and "n=16" in gap
    assert any("stand-in" in note for note in table.notes)
    markdown = to_markdown(table)
    assert "| ≥ 1.5× | full cache=teacache | **" in markdown and "| yes |" in markdown
    assert r"\midrule" in to_latex(table)


def test_cells_that_were_not_timed_are_ranked_by_flops(tmp_path, write_cell):
    for number, label in enumerate(("tomesd ratio=0.75", "random ratio=0.3")):
        cell = write_cell(tmp_path, "kontext_standin", label, number=number)
        (cell / "latency.jsonl").unlink()
    (suite,) = suites(Store(tmp_path))
    table = leaderboard(suite)
    assert "flop-ideal speed-up" in table.title
    assert table.rows[0][0].text == "≥ 1.2×" and table.rows[0][-2].text == "–"


def test_the_figure_draws_the_front(paper_root, suite):
    figure = pareto(Store(paper_root), [suite])
    ideal, measured = figure.axes[:2]
    points = pareto_points(suite)
    pooled = points[(points["category"] == "all") & np.isfinite(points["psnr"])]
    named = {*NAMED}
    for ax, name in ((ideal, "flop_speedup"), (measured, "speedup")):
        front = next(line for line in ax.lines if line.get_markersize() == 8)
        on = pooled[on_front(pooled[name], pooled["psnr"])].sort_values(name)
        assert front.get_xdata().tolist() == on[name].tolist()
        assert front.get_ydata().tolist() == on["psnr"].tolist()
        named.update(on["method"])
    assert named & set(pooled["method"]) < set(pooled["method"])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [*sorted(named & set(pooled["method"])), "all others", "Pareto front"]
    plt.close(figure)


def test_topi_is_black_and_no_two_methods_look_alike(suite):
    names = sorted(set(pareto_points(suite)["method"]))
    names += [f"{m}, {v}" for m in ("sdtm", "dato", "regione") for v in ("a=1", "a=2", "a=3")]
    names += ["ref_kv", "fewer_steps", "magcache", "topi_kv", "topi + magcache", "downscaled_ref"]
    styles = method_style(names)
    looks = [(style["color"], style["marker"]) for style in styles.values()]
    assert len(set(looks)) == len(names) > 20
    black = [name for name in names if styles[name]["color"] == "black"]
    assert black == [name for name in names if name.split()[0].strip(",") == "topi"]
    assert len(black) > 1 and "topi_kv" not in black
    assert styles["toma"]["color"] == styles["toma_ref"]["color"] != styles["tomesd"]["color"]
    assert styles["topi"]["zorder"] > 2 and styles["topi + teacache"]["linestyle"] == "--"


def points_at(*speeds, ends=None):
    """Points of a curve at these speeds, whose intervals end at `ends`."""
    high = np.array(ends or speeds, float)
    frame = pd.DataFrame({"flop_speedup": speeds, "speedup": speeds, "speedup_high": high})
    return frame.assign(speedup_low=frame["speedup"], psnr=30.0, psnr_low=29, psnr_high=31, timed=4)


@pytest.mark.parametrize(
    ("speeds", "labels"),
    [
        ((1.05, 1.9), ["1×", "1.2×", "1.4×", "1.6×", "1.8×", "2×"]),
        ((1.1, 12), ["1×", "1.5×", "2×", "3×", "5×", "10×"]),
        ((0.8, 60), ["1×", "2×", "5×", "10×", "20×", "50×"]),
        ((1.0,), ["1×"]),
    ],
)
def test_the_axis_of_speed_is_logarithmic_with_plain_ticks(speeds, labels):
    figure, ax = plt.subplots()
    speed_axis(ax, points_at(*speeds), "speedup")
    figure.canvas.draw()
    assert ax.get_xscale() == "log"
    low, high = ax.get_xlim()
    assert low < min(*speeds, 1) and max(*speeds, 1) < high
    assert [tick.get_text() for tick in ax.get_xticklabels()] == labels
    assert not ax.get_xticklabels(minor=True)
    plt.close(figure)


def test_an_interval_far_off_does_not_squeeze_the_points():
    points = points_at(1.1, 1.2, 1.3, ends=[1.15, 3.27, 1.32])
    figure, ax = plt.subplots()
    speed_axis(ax, points, "speedup")
    curve(ax, points, "speedup", "psnr", color="black")
    assert ax.get_xlim()[1] < 1.4
    arrows = [len(each.get_offsets()) for each in ax.collections if len(each.get_paths()) == 1]
    assert arrows[:2] == [0, 1]  # to the left, to the right
    assert cut_note(ax, points, "speedup").endswith("to 3.27×")
    assert not cut_note(ax, points.assign(timed=1), "speedup")  # no interval at all
    assert not cut_note(ax, points_at(1.1, 1.3), "speedup")
    plt.close(figure)


def test_the_script(paper_root, tmp_path, monkeypatch, capsys):
    names = ("pareto", "pareto_categories")
    for name in names:  # drawn in test_paper.py
        monkeypatch.setitem(FIGURES, name, lambda store, suites: plt.figure(figsize=(1, 1)))
    arguments = ["pareto.py", "--store", str(paper_root), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "figures" / "pareto.py"), run_name="__main__")
    assert not end.value.code
    figures = [str(tmp_path / "figures" / f"{name}.png") for name in names]
    table = str(tmp_path / "tables" / "leaderboard.md")
    assert capsys.readouterr().out.split() == [*figures, table]
