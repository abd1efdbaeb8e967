"""What a probe of a model's attention says of the claims of section 3.2."""

from __future__ import annotations

import pandas as pd

from topi.report.claims import UNTESTABLE, Comparison, Evidence, Finding, decide
from topi.report.paper_values import quantity
from topi.report.statistics import bootstrap, unpaired
from topi.report.tables import category_title

CONCENTRATED = 2.0
"""The top three layers hold at least this many times their even share. Ours."""
CONSISTENT = 0.9
"""A rank correlation that counts as the same order. Ours."""


def _profiles(evidence: Evidence) -> pd.DataFrame | None:
    """Attention to references by layer, a line per sample with its category."""
    if evidence.probe is None:
        return None
    mass = evidence.probe.mass
    by_layer = mass.groupby(["sample", "category", "layer"])["mass"].mean().unstack("layer")
    return by_layer.reset_index("category")


NO_PROBE = Finding(UNTESTABLE, reason="Nothing was recorded of its attention: run `topi probe`.")


def concentration(evidence: Evidence) -> Finding:
    """Share of the three layers with the most attention, against twice their even share."""
    profiles = _profiles(evidence)
    if profiles is None:
        return NO_PROBE
    layers = profiles.drop(columns="category")
    top = layers.mean().nlargest(3).index
    share = layers[top].sum(axis=1) / layers.sum(axis=1)
    even = 3 / layers.shape[1]
    names = ", ".join(map(str, sorted(top)))
    what = f"share of layers {names} minus {CONCENTRATED:g} times their even share ({even:.2f})"
    return decide([Comparison(what, bootstrap(share - CONCENTRATED * even))])


def same_layers(evidence: Evidence) -> Finding:
    """Rank correlation of each category's layers with those of the other categories."""
    profiles = _profiles(evidence)
    if profiles is None:
        return NO_PROBE
    layers = profiles.drop(columns="category")
    comparisons = []
    for category, group in layers.groupby(profiles["category"]):
        others = layers[profiles["category"] != category].mean()
        if others.isna().all():
            continue
        agreement = group.rank(axis=1).corrwith(others.rank(), axis=1)
        what = f"rank correlation of {category_title(category).lower()} with the other categories"
        comparisons.append(
            Comparison(f"{what} minus {CONSISTENT:g}", bootstrap(agreement - CONSISTENT))
        )
    return decide(comparisons)


def fluctuation(evidence: Evidence) -> Finding:
    """Rank correlation of the tokens between the first and the last step."""
    if evidence.probe is None:
        return NO_PROBE
    table = evidence.probe.rank_correlation()
    last = table[table["step"] == table["step"].max()]["correlation"]
    what = f"{CONSISTENT:g} minus the rank correlation of the tokens between first and last step"
    return decide([Comparison(what, bootstrap(CONSISTENT - last))])


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
    return decide([Comparison(what, bootstrap(early - late))])


def low_mass(evidence: Evidence) -> Finding:
    """The highest total attention of a run against the printed bound."""
    if evidence.probe is None:
        return NO_PROBE
    bound = quantity("fig3", "upper bound of the total reference attention")
    highest = _totals(evidence).max(axis=1)
    return decide(
        [Comparison(f"{bound} minus the highest total of a run", bootstrap(bound - highest))]
    )


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
            ),
            Comparison(
                "share of the early attention that is left, resize minus style change",
                unpaired(kept[resize], kept[style]),
            ),
        ]
    )
