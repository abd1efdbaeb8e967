"""Figures 1 to 3: attention to references over layers, tokens and steps; from a probe alone."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topi.bench.report.drawing.plots import STYLE, series_style
from topi.bench.report.tables.columns import categories_of, category_title
from topi.bench.report.tables.study_tables import PAPER_LIMIT
from topi.bench.results.probe_run import ProbeRun
from topi.errors import ToPiError

WIDTH = 3.4  # inches, one column
MASS = r"total attention $\Sigma_j\,S_j$"
BAND = (10, 90)  # percentiles over samples or tokens
RANGE = 3  # samples from which on a line has a band
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


@plt.style.context(STYLE)
def mass_by_layer(run: ProbeRun) -> Figure:
    """Fig. 1: the references' share of attention in each layer, mean over steps, by category.

    Bands are the 10 % to 90 % range over samples; grey columns are the representative layers.
    """
    frame = run.mass.groupby(["category", "sample", "layer"], as_index=False)["mass"].mean()
    figure, ax = plt.subplots(figsize=(WIDTH, 2.5))
    for layer in run.manifest["layers"]:
        ax.axvspan(layer - 0.45, layer + 0.45, color="0.88", linewidth=0)
    _lines(ax, frame, "layer", "category")
    _mark_stacks(ax, run.manifest["stacks"])
    ax.set(xlabel="layer", ylim=(0, None))
    ax.set_ylabel(MASS, parse_math=True)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _title(figure, run)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@plt.style.context(STYLE)
def token_relevance(run: ProbeRun, sample: str | None = None) -> Figure:
    """Fig. 2: how relevant single reference tokens are, step by step, and how fast that changes.

    Top: the first reference and the attention its tokens receive at four steps, each scaled to its
    own maximum. Middle: |C| S_j, mean over layers, of the tokens that lead at one of these steps;
    the band holds 80 % of all tokens. Bottom: Spearman correlation of all tokens' order with the
    order at step 0, mean and 10 % to 90 % range over all samples.

    Args:
        sample: the one to show at the top, by default the first.
    """
    row = next((row for row in run.rows if sample in (None, row["sample"])), None)
    if row is None:
        raise ToPiError(f"{run.path} has no sample {sample}.")
    relevance = run.maps(row["sample"]).attention
    shown = np.unique(np.linspace(0, len(relevance) - 1, 4).round().astype(int))
    grid = tuple(row["grids"][0])
    figure = plt.figure(figsize=(WIDTH, 4.9))
    rows = figure.add_gridspec(3, 1, height_ratios=(1, 2, 1.3))
    pictures = rows[0].subgridspec(1, 1 + len(shown), wspace=0.08)
    reference = run.references(row["sample"])[0]
    _picture(figure.add_subplot(pictures[0]), np.asarray(reference), "reference")
    for column, step in enumerate(shown, start=1):
        heat = relevance[step, : np.prod(grid)].reshape(grid)
        _picture(figure.add_subplot(pictures[column]), heat, f"step {step}")
    tokens = figure.add_subplot(rows[1])
    _leaders(tokens, relevance, shown)
    order = figure.add_subplot(rows[2], sharex=tokens)
    ranks = run.rank_correlation().assign(all="all samples")
    _lines(order, ranks, "step", "all", value="correlation")
    order.axhline(0, color="0.6", linewidth=0.8)
    order.set(xlabel="denoising step", ylabel="rank corr.\nwith step 0", ylim=(None, 1.03))
    order.xaxis.set_major_locator(MaxNLocator(integer=True))
    _title(figure, run)
    return figure


@plt.style.context(STYLE)
def mass_by_step(run: ProbeRun) -> Figure:
    """Fig. 3: the references' share of attention over the steps, mean over layers, by task.

    One panel per category, one line per task with the 10 % to 90 % range of its n samples. The
    dotted line is what the paper's models stay below.
    """
    frame = run.mass.groupby(["category", "task", "sample", "step"], as_index=False)["mass"].mean()
    categories = categories_of(frame)
    n_rows, top = -(-len(categories) // 2), max(1.1 * PAPER_LIMIT, 1.05 * _highest(frame))
    figure, axes = plt.subplots(
        n_rows,
        min(2, len(categories)),
        figsize=(WIDTH, 0.5 + 2.6 * n_rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, category in zip(axes.flat, categories, strict=False):
        _lines(ax, frame[frame["category"] == category], "step", "task")
        ax.axhline(PAPER_LIMIT, color="0.35", linewidth=0.9, linestyle=":")
        ax.set(title=category_title(category), ylim=(0, top))
        ax.tick_params(labelbottom=True)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            fontsize=6.5,
            handlelength=1.6,
            labelspacing=0.3,
        )
    for ax in axes.flat[len(categories) :]:
        ax.set_axis_off()
    limit = f"paper: below {PAPER_LIMIT}"
    axes[0, 0].text(0.4, PAPER_LIMIT, limit, fontsize=6.5, va="bottom", color="0.35")
    figure.supxlabel("denoising step", fontsize=9)
    figure.supylabel(MASS, fontsize=9, parse_math=True)
    _title(figure, run)
    return figure


def _highest(frame: pd.DataFrame) -> float:
    return float(frame.groupby(["category", "task", "step"])["mass"].mean().max())


def _lines(ax: Axes, frame: pd.DataFrame, x: str, by: str, value: str = "mass") -> None:
    """The mean over samples against `x`, one line per value of `by`.

    From `RANGE` samples on with their band: one or two have no range.
    """
    groups = categories_of(frame) if by == "category" else sorted(frame[by].unique())
    styles = series_style(groups)
    for number, group in enumerate(groups):
        table = frame[frame[by] == group].pivot_table(index="sample", columns=x, values=value)
        style, steps = styles[group], table.columns.to_numpy()
        title = category_title(group) if by == "category" else group.replace("_", " ")
        every = max(1, len(steps) // 8)
        ax.plot(
            steps,
            table.mean(),
            label=f"{title} (n={len(table)})",
            linewidth=1.2,
            markersize=3.6,
            markevery=(number % every, every),
            **style,
        )
        if len(table) >= RANGE:
            low, high = np.nanpercentile(table, BAND, axis=0)
            ax.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _leaders(ax: Axes, relevance: np.ndarray, shown: np.ndarray) -> None:
    """Over the steps, the tokens that lead at the steps `shown`, above the band of all tokens."""
    steps = np.arange(len(relevance))
    low, high = np.percentile(relevance, BAND, axis=1)
    ax.fill_between(steps, low, high, color="0.85", linewidth=0, label="80 % of tokens")
    leaders: dict[int, list[int]] = {}
    for step in shown:
        leaders.setdefault(int(relevance[step].argmax()), []).append(int(step))
    colours = sns.color_palette("colorblind", len(leaders))
    for number, (token, at) in enumerate(leaders.items()):
        ax.plot(
            steps,
            relevance[:, token],
            color=colours[number],
            linestyle=DASHES[number % len(DASHES)],
            linewidth=1.3,
            label=f"token {token}, top at {', '.join(map(str, at))}",
        )
    ax.set_ylim(0, None)
    ax.set_ylabel(r"relevance $|\mathcal{C}|\,S_j$", parse_math=True)
    ax.tick_params(labelbottom=False)
    ax.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)


def _picture(ax: Axes, pixels: np.ndarray, title: str) -> None:
    ax.imshow(pixels, cmap="cividis", vmin=0, interpolation="nearest")
    ax.set_title(title, fontsize=8, pad=2)
    ax.set(xticks=[], yticks=[])
    ax.set_axis_off()


def _mark_stacks(ax: Axes, stacks: Sequence[int]) -> None:
    """A line where one kind of block ends and the next begins."""
    for end in np.cumsum(stacks)[:-1]:
        ax.axvline(end - 0.5, color="0.4", linewidth=0.8, linestyle=":")
        ax.annotate(
            "dual ◂ ▸ single",
            (end - 0.5, 1),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=6.5,
            color="0.35",
        )


def _title(figure: Figure, run: ProbeRun) -> None:
    about = run.manifest
    kind = "" if about["source"] == "hub" else " (stand-in)"
    figure.suptitle(f"{about['model']}{kind}, {about['count']} samples", fontsize=9)
