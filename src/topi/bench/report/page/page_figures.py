"""The figures of a page: picture grid, quality against speed, keep ratio by step."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topi.bench.data.pictures import draw_mask, side_by_side
from topi.bench.report.drawing.plots import STYLE, curve, cut_note, method_style, speed_axis
from topi.bench.report.page.gallery import Picture, draw_difference
from topi.bench.report.tables.columns import ALL, COLUMNS

CELL = 1.45  # inches
HEADING = 20  # characters of a line above a cell


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
