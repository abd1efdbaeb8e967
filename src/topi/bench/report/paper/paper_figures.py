"""Figures 5, 6, 7, 9, 10 and 11 of the paper and the curves of Table 1, from suites of cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isinf

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from topi.bench.data.pictures import draw_mask, side_by_side
from topi.bench.report.drawing.plots import STYLE, curve, method_style, series_style, speed_axis
from topi.bench.report.drawing.sheet import PAGE, Block, Tile, draw
from topi.bench.report.paper.artefacts import CURVES, FIG5, FIG10, FIG11, OURS, TEACACHE
from topi.bench.report.paper.entries import SCORES, Run
from topi.bench.report.paper.quality_curves import curve_points
from topi.bench.report.paper.suite import Suite
from topi.bench.report.tables.columns import CATEGORIES, COLUMNS, FEW, category_title
from topi.bench.results.files import read_image
from topi.bench.results.full_outputs import FullOutputs
from topi.bench.results.masks import Anchor, read_anchors
from topi.bench.results.mend import pictured
from topi.bench.results.store import Store

STAGES = 4
"""Anchors that Figure 7 shows at most."""
SEVERAL = 4
"""Samples per category in Figure 9, whose data are all of one category."""


def pictures(store: Store, run: Run, sample: str) -> tuple[Image.Image, Image.Image, Image.Image]:
    """References side by side, the full-context output and the run's output of a sample."""
    full, path = _paths(store, run)
    output = read_image(path(sample))
    return side_by_side(full.references(sample)), full.image(sample), output


def _paths(store: Store, run: Run) -> tuple[FullOutputs, partial]:
    (entry, *_) = run.entries
    folder = entry.cell.path / "images"
    return store.full(entry.cell.manifest["full_key"]), lambda sample: folder / f"{sample}.png"


def shown_samples(store: Store, runs: Sequence[Run], per_category: int = 1) -> list[str]:
    """The first samples of each category of which the store has every picture.

    A store that is committed holds the pictures of a few samples only.
    """
    if not all(run.complete and run.entries for run in runs):
        return []
    found: list[str] = []
    rows = runs[0].entries[0].rows.sort_values("index")
    for category in [*CATEGORIES, *sorted(set(rows["category"]) - set(CATEGORIES))]:
        samples = rows.index[rows["category"] == category]
        there = (s for s in samples if all(_has(store, run, s) for run in runs))
        found += [sample for sample, _ in zip(there, range(per_category), strict=False)]
    return found


def _has(store: Store, run: Run, sample: str) -> bool:
    full, _ = _paths(store, run)
    return pictured(run.entries[0].cell.path, sample) and full.has(sample)


def anchors_of(run: Run, sample: str) -> list[Anchor]:
    """The anchors of a sample, of its first CFG branch; none where no masks were kept."""
    path = run.entries[0].cell.path / "masks" / f"{sample}.json"
    anchors = read_anchors(path)
    return [anchor for anchor in anchors if anchor.branch == anchors[0].branch]


def _score(run: Run, sample: str) -> str:
    psnr = run.samples["psnr"][sample]
    return "= full" if isinf(psnr) else f"{psnr:.1f} dB"


def _instruction(run: Run, sample: str) -> str:
    row = run.entries[0].rows.loc[sample]
    return f"{category_title(row['category'])}: “{row['instruction']}”"


def _comparison(
    store: Store, suite: Suite, runs: dict[str, Run], headings: dict[str, str]
) -> Block | None:
    """Reference, full context and the output of each run; one row per category."""
    rows = []
    for sample in shown_samples(store, list(runs.values())):
        reference, full, _ = pictures(store, next(iter(runs.values())), sample)
        outputs = [
            Tile(pictures(store, run, sample)[2], _score(run, sample)) for run in runs.values()
        ]
        caption = _instruction(next(iter(runs.values())), sample)
        rows.append((caption, [Tile(reference), Tile(full), *outputs]))
    names = ["reference", "full context", *(headings.get(name, name) for name in runs)]
    return Block(suite.model, names, rows) if rows else None


def _speed(run: Run) -> str:
    """The speed-up of a run for a heading: measured if it was timed, else FLOP-ideal."""
    measured = run.speedup()
    if measured.n:
        return f"{measured.value:.2f}×" + f" (n={measured.n})" * (measured.n < FEW)
    return f"{run.mean('flop_speedup').value:.2f}× ideal"


def _kept(run: Run) -> str:
    """The share of reference tokens in the calls that were computed, for a heading."""
    return f"keeps {run.mean('keep_ratio').value:.0%}"


def _sheet(blocks: Sequence[Block | None], abreast: bool = False) -> Figure | None:
    blocks = [block for block in blocks if block is not None]
    return draw(blocks, abreast) if blocks else None


def fig5(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """ToMeSD, ToMA and ToPi beside the full context, one sample per category."""
    blocks = []
    for suite in suites:
        runs = {name: suite.run(label) for name, label in FIG5.items()}
        blocks.append(_comparison(store, suite, runs, {}))
    return _sheet(blocks, abreast=True)


def fig6(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """ToPi, TeaCache and both, with their speed-ups and the share kept in computed calls."""
    blocks = []
    for suite in suites:
        runs = {name: suite.run(label) for name, label in TEACACHE.items()}
        short = {"ToPi + TeaCache": "both"}
        headings = {
            name: f"{short.get(name, name)}\n{_speed(run)}\n{_kept(run)}"
            for name, run in runs.items()
            if run.complete
        }
        blocks.append(_comparison(store, suite, runs, headings))
    return _sheet(blocks, abreast=True)


def fig7(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """The tokens kept at each anchor in gold over the reference; t counts down as in the paper."""
    blocks = []
    for suite in suites:
        run = suite.run(OURS)
        rows = []
        for sample in shown_samples(store, [run]):
            anchors = _spread(anchors_of(run, sample))
            if not anchors:
                continue
            (entry, *_) = run.entries
            steps = entry.cell.manifest["steps"]
            stages = [f"kept at\nt = {steps - anchor.step}" for anchor in anchors]
            references = store.full(entry.cell.manifest["full_key"]).references(sample)
            tiles = [Tile(side_by_side(references))]
            for anchor in anchors:
                drawn = [draw_mask(*pair) for pair in zip(references, anchor.kept, strict=True)]
                tiles.append(Tile(side_by_side(drawn), f"{anchor.keep_ratio:.0%}"))
            tiles.append(Tile(pictures(store, run, sample)[2], _score(run, sample)))
            rows.append((_instruction(run, sample), tiles))
        if rows:
            blocks.append(Block(suite.model, ["reference", *stages, "ToPi"], rows))
    return _sheet(blocks, abreast=True)


def _spread(anchors: list[Anchor]) -> list[Anchor]:
    """At most `STAGES` of them, the first and the last among them."""
    if len(anchors) <= STAGES:
        return anchors
    chosen = np.linspace(0, len(anchors) - 1, STAGES).round().astype(int)
    return [anchors[i] for i in chosen]


def fig9(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """Several references: full context beside ToPi, and what it kept first and last."""
    blocks = []
    for suite in suites:
        run = suite.run(OURS)
        rows = []
        for sample in shown_samples(store, [run], per_category=SEVERAL):
            references, full, output = pictures(store, run, sample)
            anchors = anchors_of(run, sample)
            key = run.entries[0].cell.manifest["full_key"]
            drawn = [
                side_by_side(
                    draw_mask(*pair)
                    for pair in zip(store.full(key).references(sample), a.kept, strict=True)
                )
                for a in anchors[:: max(1, len(anchors) - 1)][:2]
            ]
            shares = [f"{a.keep_ratio:.0%}" for a in anchors[:: max(1, len(anchors) - 1)][:2]]
            masks = [Tile(*pair) for pair in zip(drawn, shares, strict=True)]
            masks += [Tile(None)] * (2 - len(masks))
            tiles = [Tile(references), *masks, Tile(full), Tile(output, _score(run, sample))]
            rows.append((_instruction(run, sample), tiles))
        headings = ["references", "kept at the\nfirst anchor", "kept at the\nlast anchor"]
        if rows:
            blocks.append(Block(suite.model, [*headings, "full context", "ToPi τ=0.85"], rows))
    return _sheet(blocks)


def fig10(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """The same edits over the threshold."""
    blocks = []
    for suite in suites:
        runs = {name: suite.run(label) for name, label in reversed(FIG10.items())}
        headings = {n: f"{n}\n{_kept(run)}" for n, run in runs.items() if run.complete}
        blocks.append(_comparison(store, suite, runs, headings))
    return _sheet(blocks)


@plt.style.context(STYLE)
def fig10_curve(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """Quality, kept share and FLOP-ideal speed-up over the threshold, with 95 % intervals."""
    found = {}
    for suite in suites:
        runs = {float(n[2:]): suite.run(label) for n, label in FIG10.items()}
        if runs := {tau: run for tau, run in runs.items() if run.complete}:
            found[suite.model] = runs
    if not found:
        return None
    names = ("psnr", "lpips", "keep_ratio", "flop_speedup")
    shown = [column for column in COLUMNS if column.name in names]
    figure, axes = plt.subplots(1, len(shown), figsize=(PAGE, 1.9), sharex=True)
    styles = series_style(list(found))
    for ax, column in zip(axes, shown, strict=True):
        infinite = set()
        for model, runs in found.items():
            points = [(tau, run.mean(column.name)) for tau, run in runs.items()]
            infinite |= {tau for tau, e in points if isinf(e.value)}
            finite = [(tau, e) for tau, e in points if np.isfinite(e.value)]
            _errorbar(ax, finite, label=model, **styles[model])
        for tau in infinite:
            ax.plot(tau, 0.97, "^", color="0.3", transform=ax.get_xaxis_transform())
            at = {"ha": "center", "va": "top", "transform": ax.get_xaxis_transform()}
            ax.text(tau, 0.92, "∞", color="0.3", **at)
        ax.set(xlabel="threshold τ", title=column.axis)
    _legend(figure, axes[0])
    return figure


@plt.style.context(STYLE)
def fig11(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """The renewed mask against the one drawn once, per category; bars are 95 % intervals.

    Δ is dynamic minus static, paired by sample, all categories pooled.
    """
    suites = [s for s in suites if all(s.run(label).complete for label in FIG11.values())]
    if not suites:
        return None
    shown = [column for column in COLUMNS if column.name in SCORES]
    size = (PAGE, 1.85 * len(suites) + 0.45)
    figure, axes = plt.subplots(len(suites), len(shown), figsize=size, squeeze=False)
    styles = series_style(list(FIG11))
    for line, suite in zip(axes, suites, strict=True):
        line[0].set_ylabel(suite.model)
        dynamic, static = (suite.run(label) for label in FIG11.values())
        for ax, column in zip(line, shown, strict=True):
            for offset, (name, label) in zip((-0.12, 0.12), FIG11.items(), strict=True):
                run = suite.run(label)
                points = [
                    (i + offset, run.mean(column.name, category))
                    for i, category in enumerate(CATEGORIES)
                ]
                _errorbar(ax, points, label=name, linestyle="none", **styles[name])
            gap = dynamic.minus(static, column.name)
            value, low, high = (f"{x:+.{column.digits}f}" for x in (gap.value, gap.low, gap.high))
            ax.set_title(f"{column.axis}\nΔ {value} [{low}, {high}]", fontsize=8)
            ax.set_xticks(range(len(CATEGORIES)), [c.split("_")[0] for c in CATEGORIES])
            ax.set_xlim(-0.5, len(CATEGORIES) - 0.5)
    _legend(figure, axes[0, 0])
    return figure


@plt.style.context(STYLE)
def table1_curves(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """PSNR over FLOP-ideal and measured speed-up, a line per method through its settings."""
    drawn = {s.model: p[p["category"] == "all"] for s in suites if len(p := curve_points(s))}
    if not drawn:
        return None
    speeds = [column for column in COLUMNS if column.name in ("flop_speedup", "speedup")]
    size = (PAGE, 2.5 * len(drawn) + 0.7)
    figure, axes = plt.subplots(len(drawn), 2, figsize=size, squeeze=False, sharey="row")
    styles = method_style(list(CURVES))
    for line, (model, points) in zip(axes, drawn.items(), strict=True):
        for ax, speed in zip(line, speeds, strict=True):
            speed_axis(ax, points, speed.name)
            for method, group in points.groupby("method", sort=False):
                look = {"intervals": False, "label": method, **styles[method]}
                curve(ax, group, speed.name, "psnr", **look)
            ax.set_xlabel(f"{speed.title} speed-up over full (×)")
        line[0].set_ylabel(f"{model}\nPSNR to full (dB)")
    _legend(figure, axes[0, 0], columns=4)
    return figure


def _errorbar(ax: plt.Axes, points: list, **style: object) -> None:
    if points:
        at, estimates = zip(*points, strict=True)
        bars = [[e.value - e.low, e.high - e.value] for e in estimates]
        values = [e.value for e in estimates]
        ax.errorbar(at, values, yerr=np.clip(bars, 0, None).T, capsize=2, elinewidth=0.8, **style)


def _legend(figure: Figure, ax: plt.Axes, columns: int = 6) -> None:
    handles, names = ax.get_legend_handles_labels()
    layout = {"ncols": min(len(names), columns), "handlelength": 3}
    figure.legend(handles, names, loc="outside upper center", **layout)


FIGURES = {
    "table1_curves": table1_curves,
    "fig5": fig5,
    "fig6": fig6,
    "fig7": fig7,
    "fig9": fig9,
    "fig10": fig10,
    "fig10_curve": fig10_curve,
    "fig11": fig11,
}
"""Name -> the function that draws it; None comes back where the store lacks its cells."""
