"""What all plots share: style, colours, curves with intervals, axes of speed-ups, saving."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from topi.bench.io.escape import printable
from topi.bench.io.names import file_name
from topi.bench.report.tables.columns import FEW
from topi.bench.results.files import write

STYLE = Path(__file__).with_name("topi.mplstyle")
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
PALETTE += ("#4B2BB3", "#7A4B2A")
"""Colours that the colour-blind tell apart (Okabe and Ito, Tol), none of them pale or black."""
MARKERS = "osD^vPX*<>hp"
OURS = "topi"
"""The family that is drawn in black."""
SPEEDS = (
    (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8),
    (0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.4),
    (0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5),
    (0.3, 0.5, 0.7, 1, 1.2, 1.5, 2, 3, 5, 7, 10, 15, 20),
    (0.3, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 30, 50),
    (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
)
"""Ticks of an axis of speed-ups, from fine to coarse."""


def series_style(
    names: Sequence[str], family: Callable[[str], str] = str
) -> dict[str, dict[str, object]]:
    """Colour of the family of each name, and a marker that no other name of its colour has."""
    names = list(dict.fromkeys(names))
    families = [each for each in dict.fromkeys(map(family, names)) if each != OURS]
    colours = {each: PALETTE[i % len(PALETTE)] for i, each in enumerate(families)}
    styles: dict[str, dict[str, object]] = {}
    for number, name in enumerate(names):
        colour, first = colours.get(family(name), "black"), number % len(MARKERS)
        taken = {style["marker"] for style in styles.values() if style["color"] == colour}
        free = [m for m in MARKERS[first:] + MARKERS[:first] if m not in taken]
        styles[name] = {"color": colour, "marker": (free or MARKERS)[0]}
    return styles


def method_style(methods: Sequence[str]) -> dict[str, dict[str, object]]:
    """Styles of methods: variants share a colour and are dashed, ToPi is black and on top.

    A variant has more than a name, as `toma, merge_every=1`, `topi + teacache`; `toma_ref` has the
    colour of `toma` too.
    """
    styles = series_style(methods, lambda name: re.split(r"_ref\b|[,+ ]", name.lower())[0])
    for name, style in styles.items():
        style["linestyle"] = "--" if re.search("[,+]", name) else "-"
        if name.lower() == OURS:
            style["zorder"] = 3
    return styles


def curve(
    ax: Axes,
    points: pd.DataFrame,
    speed: str,
    score: str,
    intervals: bool = True,
    **style: object,
) -> Artist:
    """A method through its sweep, with the intervals that `points` has of speed and score.

    In the order of the sweep: measured speeds are noisy and would tangle the line. Intervals of
    speed that the axis cuts (`speed_axis`, which comes first) end in an arrow.
    """
    known = np.isfinite(points[score]) & points[speed].notna()
    points, bars = points[known].sort_values("flop_speedup"), {}
    if intervals:
        bars = {"xerr": _bars(points, speed), "yerr": _bars(points, score)}
        for side, marker, cut in zip((0, 1), "<>", _cut(ax, points, speed), strict=True):
            edge = {"transform": ax.get_yaxis_transform(), "clip_on": False, "s": 14}
            scores = points.loc[cut, score]
            mark = ax.scatter([side] * len(scores), scores, marker=marker, c=style["color"], **edge)
            mark.set_in_layout(False)
    drawn = {"elinewidth": 0.6, "capsize": 1.5, **style}
    return ax.errorbar(points[speed], points[score], **bars, **drawn)


def speed_axis(ax: Axes, points: pd.DataFrame, speed: str, most: int = 7) -> None:
    """Make the x axis one of speed-ups: logarithmic, as wide as the points need, plain ticks.

    An interval that ends far off, of a pair of runs that something else disturbed, is cut.

    Args:
        most: ticks that there is room for.
    """
    speeds = points[speed]
    known = np.append(speeds[np.isfinite(speeds)], 1)
    low, high = np.log(known.min()), np.log(known.max())
    margin = max(0.1 * (high - low), 0.02)
    low, high = np.exp([low - margin, high + margin])
    ladders = [ticks for ticks in SPEEDS if ticks[0] <= low and high <= ticks[-1]]
    inside = [[t for t in ticks if low <= t <= high] for ticks in ladders or SPEEDS[-1:]]
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.set_xticks(next((ticks for ticks in inside if len(ticks) <= most), inside[-1]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.axvline(1, color="0.6", linewidth=0.8, linestyle=":")


def cut_note(ax: Axes, points: pd.DataFrame, speed: str) -> str:
    """What to say of intervals that the axis cuts; empty if it cuts none."""
    if not np.any(_cut(ax, points, speed)):
        return ""
    low, high = _interval(points, speed)
    return f"◂ ▸ interval goes on; ends from {low.min():.3g}× to {high.max():.3g}×"


def _cut(ax: Axes, points: pd.DataFrame, speed: str) -> tuple[pd.Series, pd.Series]:
    """Which intervals of speed go on to the left and to the right of the axis."""
    (low, high), (left, right) = _interval(points, speed), ax.get_xlim()
    return low < left, high > right


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write `name.pdf` and `name.png`, close the figure and return the path of the PNG."""
    name = file_name(name)
    for text in figure.findobj(Text):
        if (shown := printable(text.get_text())) != text.get_text():
            text.set_text(shown)
    pages = {"pdf": {"CreationDate": None}, "png": {"Software": None}}
    with plt.style.context([STYLE, {"figure.constrained_layout.use": False}]):
        figure.draw_without_rendering()
        if figure.get_layout_engine():
            figure.set_layout_engine("none")  # laid out once, not once per format
        for kind, about in pages.items():
            figure.savefig(buffer := io.BytesIO(), format=kind, metadata=about)
            write(folder / f"{name}.{kind}", buffer.getvalue())
    plt.close(figure)
    return folder / f"{name}.png"


def _bars(group: pd.DataFrame, name: str) -> np.ndarray:
    """Distances from the value to the ends of its interval, `[2, n]`, as `errorbar` wants."""
    low, high = _interval(group, name)
    return np.clip(np.stack([group[name] - low, high - group[name]]), 0, None)


def _interval(points: pd.DataFrame, name: str) -> tuple[pd.Series, pd.Series]:
    """Ends of intervals; measured speeds of fewer than `FEW` timed samples have none."""
    known = (points["timed"] >= FEW) | (name != "speedup")
    return points[f"{name}_low"].where(known), points[f"{name}_high"].where(known)
