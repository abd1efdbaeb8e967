"""What a probe of a model's attention says of the claims of section 3.2."""

from __future__ import annotations

import numpy as np
import pandas as pd

from topi.bench.report.paper.claims.evidence import Evidence
from topi.bench.report.paper.claims.verdicts import UNTESTABLE, Comparison, Finding, decide
from topi.bench.report.paper.printed_values import quantity
from topi.bench.report.tables.columns import category_title
from topi.bench.results.calibration_file import CONCENTRATED, CONSISTENT
from topi.bench.results.statistics import Estimate, bootstrap, unpaired

TOP = 3
"""Layers that count as those in which attention concentrates: as many as are representative."""
ROUNDING = 1e-9
STEADY = 0.9
"""A rank correlation that counts as the same order. Ours."""


def _profiles(evidence: Evidence) -> pd.DataFrame | None:
    """Attention to references by layer, a line per sample with its category."""
    if evidence.probe is None:
        return None
    mass = evidence.probe.mass
    by_layer = mass.groupby(["sample", "category", "layer"])["mass"].mean().unstack("layer")
    return by_layer.reset_index("category")


def _source(evidence: Evidence) -> tuple[str, ...]:
    """The key of the probe."""
    return (evidence.probe.key,)


def _decided(evidence: Evidence, what: str, estimate: Estimate) -> Finding:
    """By one comparison."""
    return decide([Comparison(what, estimate, cells=_source(evidence))])


NO_PROBE = Finding(UNTESTABLE, reason="Nothing was recorded of its attention: run `topi probe`.")


def concentration(evidence: Evidence) -> Finding:
    """Mean of the layers with the most attention against the median of the others."""
    profiles = _profiles(evidence)
    if profiles is None:
        return NO_PROBE
    layers = profiles.drop(columns="category")
    top = layers.mean().nlargest(TOP).index
    ratio = layers[top].mean(axis=1) / layers.drop(columns=top).median(axis=1)
    names = ", ".join(map(str, sorted(top)))
    what = f"mean of layers {names} over the median of the others, minus {CONCENTRATED:g}"
    return _decided(evidence, what, bootstrap(ratio - CONCENTRATED))


def same_layers(evidence: Evidence) -> Finding:
    """How many of the layers with the most attention a category shares with the others."""
    profiles = _profiles(evidence)
    if profiles is None:
        return NO_PROBE
    layers = profiles.drop(columns="category")
    comparisons = []
    for category, group in layers.groupby(profiles["category"]):
        others = layers[profiles["category"] != category].mean()
        if others.isna().all():
            continue
        top = set(others.nlargest(TOP).index)
        shared = np.array([len(top & set(row.nlargest(TOP).index)) for _, row in group.iterrows()])
        what = (
            f"share of the top {TOP} layers of a {category_title(category).lower()} that are those "
            f"of the other categories ({', '.join(map(str, sorted(top)))}), minus two thirds"
        )
        estimate = bootstrap(shared / TOP - CONSISTENT)
        comparisons.append(Comparison(what, estimate, margin=ROUNDING, cells=_source(evidence)))
    return decide(comparisons)


def fluctuation(evidence: Evidence) -> Finding:
    """Rank correlation of the tokens between the first and the last step."""
    if evidence.probe is None:
        return NO_PROBE
    table = evidence.probe.rank_correlation()
    last = table[table["step"] == table["step"].max()]["correlation"]
    what = f"{STEADY:g} minus the rank correlation of the tokens between first and last step"
    return _decided(evidence, what, bootstrap(STEADY - last))


def _totals(evidence: Evidence) -> pd.DataFrame:
    """Total attention to references, a line per sample, a column per step; with the task."""
    mass = evidence.probe.mass
    return mass.groupby(["sample", "task", "step"])["mass"].mean().unstack("step")


def _ends(totals: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Mean over the first and over the last quarter of the steps, by sample."""
    quarter = max(1, totals.shape[1] // 4)
    return totals.iloc[:, :quarter].mean(axis=1), totals.iloc[:, -quarter:].mean(axis=1)


def decay(evidence: Evidence) -> Finding:
    """Total attention early minus late."""
    if evidence.probe is None:
        return NO_PROBE
    early, late = _ends(_totals(evidence))
    what = "total attention, first quarter of the steps minus last"
    return _decided(evidence, what, bootstrap(early - late))


def low_mass(evidence: Evidence) -> Finding:
    """The highest total attention of a run against the printed bound."""
    if evidence.probe is None:
        return NO_PROBE
    bound = quantity("fig3", "upper bound of the total reference attention")
    highest = _totals(evidence).max(axis=1)
    what = f"{bound} minus the highest total of a run"
    return _decided(evidence, what, bootstrap(bound - highest))


def task_order(evidence: Evidence) -> Finding:
    """Late attention, and what is left of the early one: resize against style change."""
    if evidence.probe is None:
        return NO_PROBE
    totals = _totals(evidence)
    early, late = _ends(totals)
    task = totals.index.get_level_values("task")
    resize, style = (task.str.startswith(name) for name in ("resize", "style"))
    if not resize.any() or not style.any():
        return Finding(UNTESTABLE, reason="The data has no samples of resize and of style change.")
    kept = late / early
    return decide(
        [
            Comparison(
                "total attention in the last quarter, resize minus style change",
                unpaired(late[resize], late[style]),
                cells=_source(evidence),
            ),
            Comparison(
                "share of the early attention that is left, resize minus style change",
                unpaired(kept[resize], kept[style]),
                cells=_source(evidence),
            ),
        ]
    )
