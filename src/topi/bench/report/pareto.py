"""Every method over its own knob: which settings no other beats in both quality and speed."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topi.bench.report.drawing.plots import STYLE, curve, cut_note, method_style, speed_axis
from topi.bench.report.drawing.sheet import PAGE
from topi.bench.report.paper.paper_tables import BY_NAME
from topi.bench.report.paper.quality_curves import keys_of, points_of
from topi.bench.report.paper.suite import Suite
from topi.bench.report.tables.columns import (
    CATEGORIES,
    COLUMNS,
    NOT_FLUX,
    STAR,
    Column,
    category_title,
    cell_text,
    timing_note,
)
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.results.store import Store

KNOBS = frozenset(
    {"tau", "ratio", "cache_every", "cache.threshold", "cache.interval", "cache.rows"}
)
KNOBS |= {"update_every", "threshold", "share", "scale", "live"}
"""Parameters along which a method has a curve; any other makes a variant with its own."""
ABLATIONS = frozenset({"layers", "score", "dropped", "update_every"})
"""Parameters of ToPi that Tables 2 to 5 vary to show what it needs; no rivals of their own."""
NAMED = frozenset({"topi", "topi_cover", "topi_kv", "ref_kv", "tomesd", "toma"})
"""Methods that the figures name wherever they are; any other one only if it is on a front."""
LEVELS = (1.2, 1.5, 2.0)
"""Speed-ups at which the leaderboard ranks."""
SPEEDS = ("flop_speedup", "speedup")


def family(label: str) -> str:
    """The curve that a label is a point of: `topi tau=0.8 cache=teacache` is of topi + teacache.

    A schedule of DaTo's (`depths=`) is named `searched`, whichever it is.
    """
    method, *words = label.split()
    words = ["searched" if word.startswith("depths=") else word for word in words]
    words = [word for word in words if word.partition("=")[0] not in KNOBS]
    cache = [word.removeprefix("cache=") for word in words if word.startswith("cache=")]
    rest = [word for word in words if not word.startswith("cache=")]
    name = ", ".join([method, *rest])
    return " + ".join([name] * (name != "full" or not cache) + cache)


def pareto_points(suite: Suite) -> pd.DataFrame:
    """Every complete cell of a suite that is a method's, as `points_of`; `method` is its family."""
    curves: dict[str, list[str]] = {}
    for label in suite.labels:
        method, *words = label.split()
        ablated = method == "topi" and ABLATIONS & {word.partition("=")[0] for word in words}
        if label != "full" and not ablated:
            curves.setdefault(family(label), []).append(label)
    return points_of(suite, dict(sorted(curves.items())))


def speed_of(points: pd.DataFrame) -> Column:
    """The measured speed-up where all points were timed, else the FLOP-ideal one."""
    pooled = points[points["category"] == "all"]
    timed = len(pooled) and pooled["speedup"].notna().all()
    return BY_NAME["speedup" if timed else "flop_speedup"]


def on_front(speed: Sequence[float], score: Sequence[float]) -> np.ndarray:
    """Which points no other one beats: none is at least as good in both and better in one [n].

    More is better in both. A point without a number is not on the front.
    """
    speed, score = np.asarray(speed, float), np.asarray(score, float)
    known = ~(np.isnan(speed) | np.isnan(score))
    as_good = (speed[:, None] >= speed) & (score[:, None] >= score)
    better = (speed[:, None] > speed) | (score[:, None] > score)
    return known & ~(as_good & better & known[:, None]).any(0)


def leaderboard(suite: Suite) -> TextTable:
    """Per level of speed the best setting of every method that reaches it, best PSNR first.

    The notes compare the first with the second of each level, paired by sample.
    """
    points = pareto_points(suite)
    points = points[points["category"] == "all"]
    speed = speed_of(points)
    points = points.assign(front=on_front(points[speed.name], points["psnr"]))
    rows, frames, notes = [], [], []
    for level in LEVELS:
        fast = points[(points[speed.name] >= level) & points["psnr"].notna()]
        best = fast.sort_values("psnr", ascending=False, kind="stable").drop_duplicates("method")
        for number, (_, line) in enumerate(best.iterrows()):
            fields = [Text(f"≥ {level:g}×" if number == 0 else ""), Text(line["label"])]
            fields += [
                Text(field_text(line, c), best=number == 0 and c.name == "psnr") for c in COLUMNS
            ]
            rows.append((*fields, Text("yes" if line["front"] else "")))
        frames.append(best.assign(level=level, rank=range(1, len(best) + 1)))
        if len(best) > 1:
            first, second = best["label"].iloc[:2]
            gap = suite.run(first).minus(suite.run(second), "psnr")
            notes.append(
                f"At {level:g}× and more, {first} differs by {gap.value:+.2f} dB [{gap.low:+.2f}, "
                f"{gap.high:+.2f}] from {second} (paired, n={gap.n})."
            )
    return TextTable(
        name="leaderboard",
        title=f"Best setting of every method by {speed.title.lower()} speed-up: {suite.model}",
        headings=("Speed", "Cell", *(column.heading for column in COLUMNS), "Front"),
        rows=tuple(rows),
        frame=pd.concat(frames) if frames else points,
        notes=(
            "Each level shows the setting of each method with the highest PSNR to full context "
            f"among those whose {speed.title.lower()} speed-up reaches the level. Front: no "
            "setting of any method is at least as good in both and better in one.",
            *([NOT_FLUX] if suite.stand_in else []),
            timing_note(points["pairs"], points["timed"]),
            *[STAR] * bool(points["identical"].any()),
            *notes,
        ),
        keys=keys_of(points),
    )


def field_text(line: pd.Series, column: Column) -> str:
    """`cell_text`, with the interval of PSNR."""
    text = cell_text(line, column)
    if column.name == "psnr" and np.isfinite(line["psnr"]):
        text += f" [{line['psnr_low']:.2f}, {line['psnr_high']:.2f}]"
    return text


@plt.style.context(STYLE)
def pareto(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """PSNR over FLOP-ideal and measured speed-up, the Pareto front marked; 95 % intervals."""
    panels = []
    for suite in suites:
        points = pareto_points(suite)
        pooled = points[points["category"] == "all"]
        for name in SPEEDS:
            panels.append((suite.model, "", pooled, BY_NAME[name]))
    return _panels(panels, columns=1, bars=True)


@plt.style.context(STYLE)
def pareto_categories(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """The same for each category, over the measured speed-up if all was timed."""
    found = {suite.model: pareto_points(suite) for suite in suites}
    speed = speed_of(pd.concat(found.values())) if found else BY_NAME["flop_speedup"]
    panels = [
        (model, category_title(category), points[points["category"] == category], speed)
        for model, points in found.items()
        for category in CATEGORIES
    ]
    return _panels(panels, columns=2)


def _panels(
    panels: Sequence[tuple[str, str, pd.DataFrame, Column]], columns: int, bars: bool = False
) -> Figure | None:
    """Two panels or more per model; a line per method through its settings, the front in grey."""
    every = {name for _, _, points, _ in panels for name in points["method"]}
    if not every:
        return None
    fronts = [front_of(points, speed)["method"] for _, _, points, speed in panels]
    families = sorted(every & NAMED.union(*fronts))
    lines, legend = len(panels) // columns, -(-len(families) // LEGEND)
    size = (PAGE, min(2.6, 8 / lines) * lines + 0.17 * legend + 0.3)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey="row")
    styles = method_style(families) | dict.fromkeys(every.difference(families), PALE)
    handles = {}
    for number, (ax, (model, title, points, speed)) in enumerate(
        zip(axes.flat, panels, strict=True)
    ):
        speed_axis(ax, points, speed.name, most=12 - 3 * columns)
        handles |= _curves(ax, points, speed, styles, bars)
        note = cut_note(ax, points, speed.name) if bars else ""
        ax.set_title(title)
        ax.set_xlabel(f"{speed.title} speed-up over full (×)\n{note}".strip())
        if number % columns == 0:
            ax.set_ylabel(f"{model}\nPSNR to full (dB)")
    names = [*families, OTHERS, FRONT]
    figure.legend(
        [handles[name] for name in names if name in handles],
        [name for name in names if name in handles],
        loc="outside upper center",
        ncols=LEGEND,
        fontsize=6,
        handlelength=2,
        columnspacing=1,
    )
    return figure


FRONT = "Pareto front"
OTHERS = "all others"
PALE = {"color": "0.8", "marker": ".", "markersize": 3, "linewidth": 0.4, "zorder": -1}
LEGEND = 3  # columns


def front_of(points: pd.DataFrame, speed: Column) -> pd.DataFrame:
    """The points on the front, slowest first."""
    return points[on_front(points[speed.name], points["psnr"])].sort_values(speed.name)


def _curves(
    ax: Axes, points: pd.DataFrame, speed: Column, styles: dict[str, dict], bars: bool
) -> dict[str, object]:
    """Draw the curves of one panel and its front; returns what the legend shows of each."""
    shown = points[np.isfinite(points["psnr"]) & points[speed.name].notna()]
    look = {"linewidth": 0.8, "markersize": 4, "elinewidth": 0.4, "capsize": 0}
    handles = {}
    for name, group in shown.groupby("method", sort=False):
        pale = styles[name] is PALE
        style = look | styles[name]
        drawn = curve(ax, group, speed.name, "psnr", intervals=bars and not pale, **style)
        handles[OTHERS if pale else name] = drawn
    if len(front := front_of(shown, speed)):
        (handles[FRONT],) = ax.plot(
            front[speed.name],
            front["psnr"],
            color="0.6",
            linewidth=1.6,
            marker="o",
            markersize=8,
            markerfacecolor="none",
            zorder=0,
        )
    return handles
