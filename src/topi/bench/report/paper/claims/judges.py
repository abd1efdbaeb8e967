"""What the cells of a model say of the claims on quality and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from topi.bench.report.paper.artefacts import CURVES, FIG11, HALF, OURS, SEEDS, TABLE1, TEACACHE
from topi.bench.report.paper.claims.evidence import Evidence
from topi.bench.report.paper.claims.verdicts import UNTESTABLE, Comparison, Finding, decide
from topi.bench.report.paper.entries import SCORES, Run
from topi.bench.report.paper.flops_table import (
    KEPT,
    REFERENCE,
    TARGET,
    by_formula,
    counted,
    reduction,
)
from topi.bench.report.paper.printed_values import quantity
from topi.bench.report.paper.quality_curves import equal_speed
from topi.bench.report.tables.columns import CATEGORIES, category_title
from topi.bench.results.masks import read_anchors
from topi.bench.results.statistics import Estimate, bootstrap, paired

UNITS = {"psnr": " dB"}
BETTER = {"psnr": 1, "ssim": 1, "lpips": -1}
EQUAL = {"psnr": 0.25, "ssim": 0.005, "lpips": 0.005}
"""Where the paper says "at least as good": differences that count as equal. Ours; it has none."""
LOSSLESS = {"psnr": 30.0, "lpips": 0.05}
"""What counts as nearly lossless: at least this PSNR, at most this LPIPS. Ours."""
MUCH = 1.0  # dB
PRINTED_SAVINGS = {"Flux Joint": (4, 0.282), "Qwen-Image-Edit": (6, 0.273)}
"""Architecture -> width of its MLP over d, and what half of the tokens save, both as printed."""
RANDOM = tuple(f"{HALF} layers=random:{seed}" for seed in SEEDS)
SIZE = "A speed-up depends on the size of the model, and this one is a stand-in."


def gain(
    one: Run,
    other: Run,
    what: str,
    metrics: Sequence[str] = SCORES,
    by_category: bool = True,
    margins: dict[str, float] | None = None,
    above: float = 0.0,
) -> Iterator[Comparison]:
    """By how much `one` is better, pooled first, then per category; above zero is better."""
    for metric in metrics:
        for category in [None, *(CATEGORIES if by_category else ())]:
            e = one.minus(other, metric, category)
            if BETTER[metric] < 0:
                e = -e
            where = "all" if category is None else category_title(category).lower()
            yield Comparison(
                f"{what}, {metric.upper()} ({where})",
                e + -above,
                UNITS.get(metric, ""),
                (margins or {}).get(metric, 0.0),
                tuple(dict.fromkeys(one.keys + other.keys)),
                headline=metric == "psnr" and category is None,
            )


def faster(one: Run, other: Run, what: str) -> Iterator[Comparison]:
    """By how much `one` is faster, measured and by counted FLOPs, in speed-ups over full."""
    keys = tuple(dict.fromkeys(one.keys + other.keys))
    measured = paired(one.ratios(), other.ratios())
    yield Comparison(f"{what}, measured speed-up", measured, "×", cells=keys)
    for category in CATEGORIES:
        counts = one.minus(other, "flop_speedup", category)
        where = category_title(category).lower()
        what_counts = f"{what}, FLOP-ideal speed-up ({where})"
        yield Comparison(what_counts, counts, "×", cells=keys, headline=False)


def best_quality(evidence: Evidence) -> Finding:
    """ToPi against each baseline, per metric and category."""
    return _against_baselines(evidence, gain)


def best_speed(evidence: Evidence) -> Finding:
    """ToPi against each baseline in speed."""
    return _against_baselines(evidence, faster)


def _against_baselines(
    evidence: Evidence, compare: Callable[[Run, Run, str], Iterable[Comparison]]
) -> Finding:
    baselines = [line for line in TABLE1.lines if line.paper not in (None, "Ours")]
    ours, *others = evidence.runs(OURS, *(line.labels for line in baselines))
    return decide(
        comparison
        for line, other in zip(baselines, others, strict=True)
        for comparison in compare(ours, other, f"ToPi − {line.title}")
    )


def frontier(evidence: Evidence) -> Finding:
    """ToPi against each baseline along their curves, at equal speed."""
    labels = [label for curve in CURVES.values() for label in curve]
    suite = evidence.suite(labels)
    if suite is None:
        return decide(())
    needed = {m: curve for m, curve in CURVES.items() if m.startswith(("ToPi", "ToM"))}
    runs = {method: [suite.run(label) for label in curve] for method, curve in needed.items()}
    if not all(run.complete for curve in runs.values() for run in curve):
        return decide(())
    ours = runs.pop("ToPi")
    comparisons = []
    for method in runs:
        keys = tuple(key for run in [*ours, *runs[method]] for key in run.keys)
        for category in [None, *CATEGORIES]:
            at, difference = equal_speed(
                suite, ours, runs[method], "flop_speedup", "psnr", category
            )
            where = "all" if category is None else category_title(category).lower()
            what = f"ToPi − {method} at {at:.2f}× FLOP-ideal, PSNR ({where})"
            headline = category is None
            comparisons.append(Comparison(what, difference, " dB", cells=keys, headline=headline))
    reached = [comparison for comparison in comparisons if comparison.estimate.n]
    reason = "" if len(reached) == len(comparisons) else "Some curves reach no common speed."
    return decide(reached, reason)


def over_thirty_percent(evidence: Evidence) -> Finding:
    """The speed-up at the default setting against 1.30."""
    (run,) = evidence.runs(OURS)
    measured = bootstrap(run.ratios() - 1.3, np.median)
    comparisons = [
        Comparison("measured speed-up minus 1.30", measured, "×", cells=run.keys),
        Comparison(
            "FLOP-ideal speed-up minus 1.30",
            run.mean("flop_speedup") + -1.3,
            "×",
            cells=run.keys,
        ),
    ]
    return _of_real_size(evidence, comparisons)


def _of_real_size(evidence: Evidence, comparisons: list[Comparison]) -> Finding:
    """A claim on absolute speed: the numbers are shown, but a stand-in cannot decide it."""
    if evidence.stand_in:
        return Finding(UNTESTABLE, tuple(comparisons), SIZE)
    return decide(comparisons)


def layer_order(evidence: Evidence) -> Finding:
    """Representative, all, random, last; and first."""
    ours, every, random, first, last = evidence.runs(
        HALF, f"{HALF} layers=all", RANDOM, f"{HALF} layers=first", f"{HALF} layers=last"
    )
    return decide(
        [
            *gain(ours, every, "representative − all", margins=EQUAL),
            *gain(every, random, "all − random", ("psnr",)),
            *gain(random, last, "random − last", ("psnr",)),
            *gain(ours, first, "representative − first", ("psnr",)),
        ]
    )


def score_order(evidence: Evidence) -> Finding:
    """Influence, attention, similarity."""
    ours, attention, similarity = evidence.runs(
        HALF, f"{HALF} score=attention", f"{HALF} score=similarity"
    )
    much = f"attention − similarity − {MUCH:g} dB"
    return decide(
        [
            *gain(ours, attention, "influence − attention", margins=EQUAL),
            *gain(attention, similarity, much, ("psnr",), above=MUCH),
        ]
    )


def against_random(evidence: Evidence) -> Finding:
    """Influence against random tokens."""
    ours, random = evidence.runs(HALF, "random")
    return decide(gain(ours, random, "influence − random tokens"))


def prune_over_merge(evidence: Evidence) -> Finding:
    """Prune against merge."""
    prune, merge = evidence.runs(HALF, f"{HALF} dropped=merge")
    return decide(gain(prune, merge, "prune − merge"))


def dynamic_over_static(evidence: Evidence) -> Finding:
    """The renewed mask against the one drawn once."""
    dynamic, static = evidence.runs(*FIG11.values())
    return decide(gain(dynamic, static, "dynamic − static", by_category=False))


def small_overhead(evidence: Evidence) -> Finding:
    """The share of scoring and selection in the timed runs against 1 %."""
    (run,) = evidence.runs(OURS)
    timed = run.latency
    parts = timed[["scoring_seconds", "selection_seconds"]].astype(float).sum(axis=1, min_count=2)
    share = (parts / timed["seconds_method"].astype(float)).groupby(timed["sample"]).mean()
    what = "1 % minus the share of scoring and selection in a run"
    found = decide([Comparison(what, bootstrap(0.01 - share), cells=run.keys)])
    note = "Fixed costs weigh more in a small model." if evidence.stand_in else ""
    return Finding(found.verdict, found.comparisons, found.reason or note)


def _saved(name: str, saved: float, printed: float) -> Comparison:
    """A saving against the printed one, equal if it rounds to it."""
    near = 0.0005 - abs(saved - printed)
    what = f"{name} saves {saved:.1%}, printed {printed:.1%}; 0.05 % minus the gap"
    return Comparison(what, Estimate(near, near, near, 1), exact=True)


def flops_by_formula(evidence: Evidence) -> Finding:
    """What the paper's formulas give with its numbers."""
    comparisons = []
    for name, (mlp, printed) in PRINTED_SAVINGS.items():
        full, half = (by_formula(TARGET + n, mlp=mlp).total for n in (REFERENCE, KEPT))
        comparisons.append(_saved(f"{name}, formula,", reduction(full, half), printed))
    return decide(comparisons)


def flops_of_layers(evidence: Evidence) -> Finding:
    """What the layers of the real configurations save."""
    comparisons = []
    for name, (_, printed) in PRINTED_SAVINGS.items():
        layer = {side: flops.total for side, flops in counted()[name].items()}
        saved = reduction(layer["baseline"], layer["topi"])
        comparisons.append(_saved(f"{name}, counted,", saved, printed))
    return decide(
        comparisons,
        "The real layers have d = 3072 and an MLP of 4d in both models; attention weighs more "
        "there, and half of the tokens save 29.3 %, more than the paper says.",
    )


def with_teacache(evidence: Evidence) -> Finding:
    """Both against each alone in speed, and against the product of the two."""
    topi, tea, both = evidence.runs(*TEACACHE.values())
    comparisons = [*faster(both, topi, "both − ToPi alone"), *faster(both, tea, "both − TeaCache")]
    product = topi.values("flop_speedup") * tea.values("flop_speedup")
    ratio = paired(both.values("flop_speedup") / product, pd.Series(0.9, index=product.index))
    keys = tuple(dict.fromkeys(topi.keys + tea.keys + both.keys))
    what = "FLOP-ideal speed-up of both over the product of each, minus 0.9"
    return decide([Comparison(what, ratio, cells=keys), *comparisons])


def teacache_speed(evidence: Evidence) -> Finding:
    """The speed-up of both against the printed one."""
    (both,) = evidence.runs(TEACACHE["ToPi + TeaCache"])
    printed = quantity("fig6", "speed-up of ToPi with TeaCache")
    measured = bootstrap(both.ratios() - printed, np.median)
    what = f"measured speed-up minus {printed}"
    return _of_real_size(evidence, [Comparison(what, measured, "×", cells=both.keys)])


def _lossless(run: Run) -> list[Comparison]:
    psnr, lpips = run.mean("psnr"), -run.mean("lpips")
    low, high = LOSSLESS["psnr"], LOSSLESS["lpips"]
    return [
        Comparison(f"PSNR minus {low:g} dB", psnr + -low, " dB", cells=run.keys),
        Comparison(f"{high} minus LPIPS", lpips + high, cells=run.keys),
    ]


def near_lossless(evidence: Evidence) -> Finding:
    """PSNR and LPIPS at tau 0.8 against fixed bounds."""
    (run,) = evidence.runs("topi tau=0.8")
    return decide(_lossless(run))


def several_references(evidence: Evidence) -> Finding:
    """The same at the default setting, for models that take several references."""
    (run,) = evidence.runs(OURS)
    return decide(_lossless(run))


def shrinking(evidence: Evidence) -> Finding:
    """Share of tokens kept at the first anchor minus that at the last."""
    (run,) = evidence.runs(OURS)
    if not run.entries:
        return decide(())
    (entry,) = run.entries
    dropped = {}
    for sample in entry.rows.index:
        path = entry.cell.path / "masks" / f"{sample}.json"
        anchors = read_anchors(path)
        if len({anchor.step for anchor in anchors}) > 1:
            dropped[sample] = anchors[0].keep_ratio - anchors[-1].keep_ratio
    if not dropped:
        return Finding(UNTESTABLE, reason="No masks of several anchors are in the store.")
    what = "share of tokens kept, first anchor minus last"
    return decide([Comparison(what, bootstrap(list(dropped.values())), cells=run.keys)])
