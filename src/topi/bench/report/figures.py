"""The figures: picture grid, quality against speed, keep ratio by step; plain data in."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from topi.bench.data.pictures import draw_mask, side_by_side
from topi.bench.io.escape import printable
from topi.bench.io.names import file_name
from topi.bench.report.gallery import Picture, draw_difference
from topi.bench.report.tables import ALL, COLUMNS, FEW
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
CELL = 1.45  # inches
HEADING = 20  # characters of a line above a cell


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


@plt.style.context(STYLE)
def grid(pictures: Sequence[Picture]) -> Figure:
    """Reference | full | each method; below each what it lost and which tokens it kept.

    Per sample a block under its instruction: the outputs with their PSNR to the full output; the
    absolute difference to the full output, four times as bright; for methods that prune, the
    reference with the tokens kept at the first and at the last anchor in gold and the dropped ones
    darkened.
    """
    labels = list(dict.fromkeys(label for p in pictures for label in p.outputs))
    headings = {label: textwrap.fill(label, HEADING) for label in labels}
    pruning = any(p.anchors for p in pictures)
    n_columns = 2 + len(labels)
    width, more = CELL * n_columns, max(text.count("\n") for text in headings.values())
    rows = [_row_heights(picture, pruning) for picture in pictures]
    heights = [sum(each) + 0.45 + 0.13 * more for each in rows]
    figure = plt.figure(figsize=(width, sum(heights)))
    blocks = figure.subfigures(len(pictures), 1, squeeze=False, height_ratios=heights)[:, 0]
    for picture, block, row_heights in zip(pictures, blocks, rows, strict=True):
        block.suptitle(
            "\n".join(textwrap.wrap(f"“{picture.instruction}”", int(width * 11))),
            fontsize=10,
            fontweight="bold",
        )
        axes = block.subplots(
            len(row_heights), n_columns, squeeze=False, gridspec_kw={"height_ratios": row_heights}
        )
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])  # also off, ticks would be laid out
            ax.set_axis_off()
        _image(axes[0, 0], side_by_side(picture.references), "reference")
        _image(axes[0, 1], picture.full, "full context")
        _remark(axes[1, :2], "lost:\n|method − full| × 4")
        if pruning:
            _remark(axes[2, :2], "kept at the\nfirst anchor")
            _remark(axes[3, :2], "kept at the\nlast anchor")
        for column, label in enumerate(labels, start=2):
            if label not in picture.outputs:
                continue
            score = picture.psnr[label]
            score = "equal to full" if np.isinf(score) else f"{score:.1f} dB"
            _image(axes[0, column], picture.outputs[label], f"{headings[label]}\n{score}")
            _image(axes[1, column], draw_difference(picture.outputs[label], picture.full))
            anchors = picture.anchors.get(label)
            if not anchors:
                if pruning:
                    _remark(axes[2:3, column], "drops no tokens", at=0.5)
                continue
            for row, anchor in ((2, anchors[0]), (3, anchors[-1])):
                drawn = [
                    draw_mask(*pair) for pair in zip(picture.references, anchor.kept, strict=True)
                ]
                title = f"step {anchor.step}: {anchor.keep_ratio:.0%}"
                _image(axes[row, column], side_by_side(drawn), title)
    return figure


@plt.style.context(STYLE)
def quality_against_speed(table: pd.DataFrame) -> Figure:
    """PSNR and LPIPS over the FLOP-ideal and the measured speed-up, all categories pooled.

    One line per method through its sweep; bars are 95 % bootstrap intervals.
    """
    points = table[(table["category"] == ALL) & (table["method"] != "full")]
    speeds = [
        c for c in COLUMNS if c.name in ("flop_speedup", "speedup") and points[c.name].notna().any()
    ]
    scores = [
        c for c in COLUMNS if c.name in ("psnr", "lpips") and np.isfinite(points[c.name]).any()
    ]
    size = (3.7 * len(speeds), 2.7 * len(scores) + 0.4)
    figure, axes = plt.subplots(
        len(scores), len(speeds), figsize=size, squeeze=False, sharex="col", sharey="row"
    )
    styles = method_style(list(points["method"]))
    for (row, column), ax in np.ndenumerate(axes):
        score, speed = scores[row], speeds[column]
        speed_axis(ax, points, speed.name)
        for method, group in points.groupby("method", sort=False):
            curve(ax, group, speed.name, score.name, label=method, **styles[method])
        if row == len(scores) - 1:
            note = cut_note(ax, points, speed.name)
            ax.set_xlabel(f"{speed.title} speed-up over full (×)\n{note}".strip())
        if column == 0:
            unit = " to full (dB)" if score.name == "psnr" else " to full"
            ax.set_ylabel(
                f"{score.title}{unit}, {'higher' if score.best > 0 else 'lower'} is better"
            )
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 6))
    return figure


@plt.style.context(STYLE)
def keep_ratio_by_step(steps: pd.DataFrame) -> Figure:
    """Share of reference tokens each model call computes (a frame of `gallery.keep_ratios`).

    The line is the mean over samples, the band their 10 % to 90 % range; anchors run on the full
    context.
    """
    figure, ax = plt.subplots(figsize=(6.2, 2.9))
    sns.lineplot(
        steps,
        x="step",
        y="keep_ratio",
        hue="label",
        style="label",
        palette="colorblind",
        errorbar=("pi", 80),
        drawstyle="steps-mid",
        err_kws={"step": "mid"},
        ax=ax,
    )
    handles, names = ax.get_legend_handles_labels()
    ax.get_legend().remove()
    ax.set(xlabel="denoising step", ylabel="share of reference tokens", ylim=(0, 1.03))
    ax.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 4))
    return figure


def _row_heights(picture: Picture, pruning: bool) -> list[float]:
    """Inches of a block's rows with their titles: several references in a row make flat masks."""
    shown, masked = picture.full, side_by_side(picture.references)
    output, mask = (CELL * image.height / image.width + 0.22 for image in (shown, masked))
    return [max(output, mask), output, *([mask, mask] if pruning else [])]


def _image(ax: Axes, image: object, title: str = "") -> None:
    ax.imshow(image, interpolation="none")
    ax.set_title(title, fontsize=8, pad=3)


def _remark(axes: np.ndarray, text: str, at: float = 0.95) -> None:
    align = "right" if at > 0.5 else "center"
    ax = axes[-1]
    ax.text(at, 0.5, text, ha=align, va="center", fontsize=8, transform=ax.transAxes)


def _bars(group: pd.DataFrame, name: str) -> np.ndarray:
    """Distances from the value to the ends of its interval, `[2, n]`, as `errorbar` wants."""
    low, high = _interval(group, name)
    return np.clip(np.stack([group[name] - low, high - group[name]]), 0, None)


def _interval(points: pd.DataFrame, name: str) -> tuple[pd.Series, pd.Series]:
    """Ends of intervals; measured speeds of fewer than `FEW` timed samples have none."""
    known = (points["timed"] >= FEW) | (name != "speedup")
    return points[f"{name}_low"].where(known), points[f"{name}_high"].where(known)
