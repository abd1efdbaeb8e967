"""What a calibration and a probe say, as tables for the terminal and as numbers for claims."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from topi.bench.report.tables.columns import category_title
from topi.bench.results.calibration_file import PAPER_LIMIT, Calibration
from topi.bench.results.probe_run import ProbeRun
from topi.bench.results.statistics import Estimate, bootstrap


@dataclass(frozen=True)
class AttentionFacts:
    """The claims of section 3.2 in numbers; intervals are bootstraps over samples.

    Args:
        peak: highest total mass of any step, mean over samples (paper: below 0.3).
        decay: total mass in the last quarter of the steps less that in the first (paper: negative).
        concentration: share of all layers' mass that is in the representative ones.
        uniform: that share if all layers had the same.
        agreement: mean correlation of two samples' layer profiles (paper: layers are the same ones
            across inputs).
        correlation: of the tokens' relevance at the last step with that at the first (paper: it
            changes).
    """

    peak: float
    decay: Estimate
    concentration: Estimate
    uniform: float
    agreement: float
    correlation: Estimate


def attention_facts(run: ProbeRun) -> AttentionFacts:
    """The numbers of a complete probe."""
    mass, layers = run.mass, run.manifest["layers"]
    by_step = mass.pivot_table(index="sample", columns="step", values="mass")
    by_layer = mass.pivot_table(index="sample", columns="layer", values="mass")
    quarter = max(1, by_step.shape[1] // 4)
    ranks = run.rank_correlation()
    last = ranks[ranks["step"] == ranks["step"].max()]
    profiles, n = by_layer.T.corr().to_numpy(), len(by_layer)
    return AttentionFacts(
        peak=float(by_step.mean().max()),
        decay=bootstrap(
            by_step.iloc[:, -quarter:].mean(axis=1) - by_step.iloc[:, :quarter].mean(axis=1)
        ),
        concentration=bootstrap(by_layer[layers].sum(axis=1) / by_layer.sum(axis=1)),
        uniform=len(layers) / by_layer.shape[1],
        agreement=float((profiles.sum() - n) / (n * (n - 1))) if n > 1 else float("nan"),
        correlation=bootstrap(last["correlation"]),
    )


def calibration_table(calibration: Calibration) -> Table:
    """The representative layers over all samples and per category, and how stable they are."""
    origin, stable = calibration.origin, calibration.stability
    table = Table(
        title=f"{origin['model']}: representative layers (Eq. 5)",
        caption=(
            f"{stable.same_set:.0%} of {stable.subsets} bootstrap subsets choose the same set; "
            f"by layer: {_frequencies(calibration)}"
        ),
        **_PLAIN,
    )
    for heading in ("category", "n", "layers", "their S", "next best"):
        table.add_column(heading, justify="right" if heading == "n" else "left")
    for name, curves in (*calibration.by_category.items(), ("all", calibration.overall)):
        others = [k for k in range(len(curves.by_layer)) if k not in curves.layers]
        best = max(others, key=lambda k: curves.by_layer[k], default=None)
        table.add_row(
            "all" if name == "all" else category_title(name),
            str(curves.samples),
            " ".join(map(str, curves.layers)),
            " ".join(f"{curves.by_layer[k]:.3f}" for k in curves.layers),
            "" if best is None else f"{best}: {curves.by_layer[best]:.3f}",
        )
    return table


def probe_table(run: ProbeRun) -> Table:
    """The facts of a probe, each beside what the paper says."""
    facts, about = attention_facts(run), run.manifest
    table = Table(
        title=f"{about['model']}: attention to references, {about['count']} samples", **_PLAIN
    )
    for heading in ("quantity", "here [95 %]", "the paper, of FLUX and Qwen"):
        table.add_column(heading)
    layers = ", ".join(map(str, about["layers"]))
    rows = (
        ("highest total mass of a step", f"{facts.peak:.3f}", f"below {PAPER_LIMIT}"),
        ("last less first quarter of the steps", _interval(facts.decay), "negative"),
        (
            f"share of the mass in layers {layers}",
            f"{_interval(facts.concentration)}, uniform: {facts.uniform:.3f}",
            "most",
        ),
        ("layer profiles of two samples, correlation", f"{facts.agreement:.3f}", "high"),
        ("token order, last with first step, correlation", _interval(facts.correlation), "changes"),
    )
    for row in rows:
        table.add_row(*row)
    return table


_PLAIN = {
    "box": None,
    "title_justify": "left",
    "caption_justify": "left",
    "padding": (0, 2, 0, 0),
    "pad_edge": False,
}


def _frequencies(calibration: Calibration) -> str:
    chosen = enumerate(calibration.stability.frequency)
    return ", ".join(f"{k} {f:.0%}" for k, f in sorted(chosen, key=lambda p: -p[1]) if f)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
