"""The picture at the top of the README: what ToPi keeps, what comes out, and a rival."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from topi.bench.data.pictures import draw_mask, side_by_side
from topi.bench.report.drawing.sheet import Block, Tile, draw
from topi.bench.report.paper.artefacts import FIG5, OURS
from topi.bench.report.paper.entries import Run
from topi.bench.report.paper.paper_figures import anchors_of, pictures, shown_samples
from topi.bench.report.paper.printed_values import printed
from topi.bench.report.paper.suite import MODELS, Suite, best_suites, suites
from topi.bench.report.tables.columns import CATEGORIES, category_title
from topi.bench.results.statistics import Estimate
from topi.bench.results.store import Store
from topi.errors import ToPiError

NAME = "overview"
EXPERIMENT = "fig5"
RIVAL = "ToMA"
WIDTH = 8.0  # inches
TITLE = "ToPi beside full context and a rival"
CAPTION = (
    "Gold: reference tokens that ToPi keeps at τ=0.85 at its first anchor; dark: dropped. Below an "
    "output, its PSNR to the full-context one."
)
LABELS = (OURS, FIG5[RIVAL])
SHOWN = {
    "ToMeSD": ("tomesd", "ToMeSD"),
    "ToMA": ("toma", "ToMA"),
    "**ToPi, τ=0.85**": (OURS, "Ours"),
}
"""Row of the table -> the label of its cell and the name that the paper prints."""
NOTE = (
    "PSNR in dB to the full-context output; means over the four categories (paper) and over {n} "
    "samples with 95 % intervals (stand-in). The paper measured FLUX.1 Kontext on an A100 and "
    "Qwen-Image-Edit on an H20. The stand-ins are small models on a CPU: their numbers are not "
    "numbers of FLUX or Qwen."
)


def overview(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """One sample of each category of the first model that has all pictures; None without one."""
    for suite in suites:
        topi, rival = (suite.run(label) for label in LABELS)
        rows = [_row(store, topi, rival, sample) for sample in shown_samples(store, [topi, rival])]
        if rows:
            speeds = (f"{run.mean('flop_speedup').value:.2f}× ideal" for run in (topi, rival))
            names = (
                f"{name}\n{speed}" for name, speed in zip(("ToPi", RIVAL), speeds, strict=True)
            )
            headings = ["reference", "full context", "tokens kept\nby ToPi", *names]
            half = (len(rows) + 1) // 2
            left = Block(f"{suite.model} (stand-in)", headings, rows[:half])
            blocks = [left, Block("", headings, rows[half:])] if rows[half:] else [left]
            return draw(blocks, abreast=True, width=WIDTH)
    return None


def _row(store: Store, topi: Run, rival: Run, sample: str) -> tuple[str, list[Tile]]:
    """The caption of a sample and its tiles."""
    reference, full, output = pictures(store, topi, sample)
    entry = topi.entries[0]
    references = store.full(entry.cell.manifest["full_key"]).references(sample)
    first = anchors_of(topi, sample)[0]
    mask = side_by_side([draw_mask(*pair) for pair in zip(references, first.kept, strict=True)])
    outputs = ((topi, output), (rival, pictures(store, rival, sample)[2]))
    tiles = [Tile(reference), Tile(full), Tile(mask, f"{first.keep_ratio:.0%}")]
    tiles += [Tile(image, f"{run.samples['psnr'][sample]:.1f} dB") for run, image in outputs]
    row = entry.rows.loc[sample]
    return f"{category_title(row['category'])}: “{row['instruction']}”", tiles


def paper_beside_ours(store: Store) -> str:
    """Table 1 in six rows: the paper's means over the categories beside those of the stand-ins.

    Raises:
        ToPiError: the store lacks the cells.
    """
    lines = [
        "| Model of the paper | Method | PSNR, paper | PSNR, stand-in | speed-up, paper "
        "| speed-up, stand-in: FLOP-ideal (measured) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    shown = suites(store)
    for kind, model in MODELS.items():
        labels = [label for label, _ in SHOWN.values()]
        found = best_suites([suite for suite in shown if suite.kind == kind], labels)
        if not found:
            raise ToPiError(f"{store.root} has no model of the kind {kind}: run experiment=table1.")
        for name, (label, theirs) in SHOWN.items():
            run = found[0].run(label)
            if not run.complete:
                raise ToPiError(f"{store.root} lacks cells of {label}: run experiment=table1.")
            psnr, speed = (_mean_printed(theirs, metric, model) for metric in ("psnr", "speed"))
            lines.append(
                f"| {model} | {name} | {psnr:.1f} | {_interval(run.mean('psnr'))} | {speed:.2f}× "
                f"| {run.mean('flop_speedup').value:.2f}× ({run.speedup().value:.2f}×) |"
            )
    return "\n".join([*lines, "", NOTE.format(n=found[0].count)])


def _mean_printed(method: str, metric: str, model: str) -> float:
    """The mean over the four categories of a column of the paper's Table 1."""
    return fmean(float(printed("table1", c, method, metric, model)) for c in CATEGORIES)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"
