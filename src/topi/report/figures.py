"""The figures: picture grid, quality against speed, keep ratio by step; plain data in."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topi.report.gallery import Picture, draw_difference, draw_mask, side_by_side
from topi.report.tables import ALL, COLUMNS

STYLE = Path(__file__).with_name("topi.mplstyle")
MARKERS = "osD^vPX*"
CELL = 1.45  # inches


def method_style(methods: Sequence[str]) -> dict[str, dict[str, object]]:
    """Colour (colour-blind safe) and marker of each method, so that none needs colour alone."""
    names = list(dict.fromkeys(methods))
    colours = sns.color_palette("colorblind", len(names))
    markers = (MARKERS[i % len(MARKERS)] for i in range(len(names)))
    return {
        name: {"color": colour, "marker": marker}
        for name, colour, marker in zip(names, colours, markers, strict=True)
    }


def file_name(text: str) -> str:
    """A text from a store, such as the name of a model, as a part of a path: one plain name."""
    return re.sub(r"[^\w.=+-]+", "_", text).lstrip(".") or "_"


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write `name.pdf` and `name.png`, close the figure and return the path of the PNG."""
    name = file_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    with plt.style.context([STYLE, {"figure.constrained_layout.use": False}]):
        figure.draw_without_rendering()
        if figure.get_layout_engine():
            figure.set_layout_engine("none")  # laid out once, not once per format
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
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
    pruning = any(p.anchors for p in pictures)
    n_rows, n_columns = (4 if pruning else 2), 2 + len(labels)
    width = CELL * n_columns
    figure = plt.figure(figsize=(width, len(pictures) * (n_rows * (CELL + 0.22) + 0.45)))
    blocks = figure.subfigures(len(pictures), 1, squeeze=False)[:, 0]
    for picture, block in zip(pictures, blocks, strict=True):
        block.suptitle(
            "\n".join(textwrap.wrap(f"“{picture.instruction}”", int(width * 11))),
            fontsize=10,
            fontweight="bold",
        )
        axes = block.subplots(n_rows, n_columns, squeeze=False)
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
            _image(axes[0, column], picture.outputs[label], f"{label}\n{score}")
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
        for method, group in points.groupby("method", sort=False):
            # In the order of the sweep; measured speeds are noisy and would tangle the line.
            group = group[np.isfinite(group[score.name])].sort_values("flop_speedup")
            ax.errorbar(
                group[speed.name],
                group[score.name],
                xerr=_bars(group, speed.name),
                yerr=_bars(group, score.name),
                label=method,
                capsize=2,
                elinewidth=0.8,
                **styles[method],
            )
        ax.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
        if row == len(scores) - 1:
            ax.set_xlabel(f"{speed.title} speed-up over full (×)")
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


def _image(ax: Axes, image: object, title: str = "") -> None:
    ax.imshow(image, interpolation="none")
    ax.set_title(title, fontsize=8, pad=3)


def _remark(axes: np.ndarray, text: str, at: float = 0.95) -> None:
    align = "right" if at > 0.5 else "center"
    ax = axes[-1]
    ax.text(at, 0.5, text, ha=align, va="center", fontsize=8, transform=ax.transAxes)


def _bars(group: pd.DataFrame, name: str) -> np.ndarray:
    """Distances from the value to the ends of its interval, `[2, n]`, as `errorbar` wants."""
    low, high = group[name] - group[f"{name}_low"], group[f"{name}_high"] - group[name]
    return np.clip(np.stack([low, high]), 0, None)
