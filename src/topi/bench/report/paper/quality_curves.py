"""Every method along its curve of quality over speed, and methods compared at equal speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan, nan

import numpy as np
import pandas as pd

from topi.bench.report.paper.artefacts import CURVES, OURS
from topi.bench.report.paper.entries import SCORES, Run
from topi.bench.report.paper.paper_tables import measure, merges, timing
from topi.bench.report.paper.suite import Suite
from topi.bench.report.tables.columns import (
    CATEGORIES,
    COLUMNS,
    MERGES,
    STAR,
    category_title,
    cell_text,
    rows_inside,
    timing_note,
)
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.results.statistics import Estimate, bootstrap, paired

POINT = ("category", "method", "label", "cells", "merges", "pairs", "timed", "identical")


def curve_points(suite: Suite) -> pd.DataFrame:
    """Every point of the curves of Table 1; see `points_of`."""
    return points_of(suite, CURVES)


def points_of(suite: Suite, curves: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every point of every method's curve of quality over speed, per category and over all.

    Args:
        curves: method -> the labels along its curve.

    Returns:
        Columns `POINT`, with names as in `quality_table`, and for each column of `COLUMNS` its
        estimate and interval. Cells that are not complete are left out.
    """
    lines = []
    for method, labels in curves.items():
        for label in labels:
            run = suite.run(label)
            if not run.complete:
                continue
            for category in [*run.samples["category"].unique(), None]:
                line = {"category": category or "all", "method": method, "label": label}
                timed = rows_inside(run.latency, line["category"])
                line |= {"cells": " ".join(run.keys), "merges": merges(run)}
                line |= {"pairs": len(timed), "timed": timed["sample"].nunique()}
                line |= {"identical": measure(run, "psnr", category).infinite}
                for column in COLUMNS:
                    estimate = measure(run, column.name, category)
                    line |= {
                        column.name: estimate.value,
                        f"{column.name}_low": estimate.low,
                        f"{column.name}_high": estimate.high,
                    }
                lines.append(line)
    names = [f"{c.name}{end}" for c in COLUMNS for end in ("", "_low", "_high")]
    return pd.DataFrame(lines, columns=[*POINT, *names])


def curve_table(suite: Suite) -> TextTable:
    """The curves as a table, all categories pooled; the frame has the categories too."""
    points = curve_points(suite)
    pooled = points[points["category"] == "all"]
    rows = []
    for method, group in pooled.groupby("method", sort=False):
        for number, (_, line) in enumerate(group.iterrows()):
            fields = [Text(method if number == 0 else ""), Text(line["label"])]
            fields += [Text(cell_text(line, column)) for column in COLUMNS]
            rows.append(tuple(fields))
    return TextTable(
        name="table1_curves",
        title=f"Quality over speed, every method at several settings: {suite.model}",
        headings=("Method", "Cell", *(column.heading for column in COLUMNS)),
        rows=tuple(rows),
        frame=points,
        notes=(
            f"The paper does not say at which ratio its baselines ran. {MERGES}",
            timing_note(pooled["pairs"], pooled["timed"]),
            *[STAR] * bool(pooled["identical"].any()),
        ),
        keys=keys_of(points),
    )


def keys_of(points: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Label -> the keys of its cells, of a frame of `points_of`."""
    return {line["label"]: tuple(line["cells"].split()) for _, line in points.iterrows()}


def at_speed(points: list[tuple[float, pd.Series]], speed: float) -> pd.Series | None:
    """Scores of every sample at a speed, linear between the two points around it.

    Args:
        points: speed-up and score by sample, in any order.
        speed: None comes back if it is outside of the curve.
    """
    points = sorted(points, key=lambda point: point[0])
    for (slow, scores), (fast, further) in zip(points, points[1:] or points, strict=False):
        if slow <= speed <= fast:
            share = (speed - slow) / (fast - slow) if fast > slow else 0.0
            return (1 - share) * scores + share * further if share else scores
    return None


def equal_speed(
    suite: Suite, ours: list[Run], other: list[Run], speed: str, metric: str, category: str | None
) -> tuple[float, Estimate]:
    """Two methods compared at the same speed: ours minus the other, paired by sample.

    The speed is that of ToPi's default setting, or the nearest to it that both curves reach.

    Args:
        speed: `flop_speedup` or `speedup` (measured).

    Returns:
        The speed-up and the difference; NaN and no samples if the curves do not overlap.
    """
    curves = []
    for runs in (ours, other):
        curve = [(measure(r, speed, category).value, r.values(metric, category)) for r in runs]
        curves.append([(at, scores) for at, scores in curve if np.isfinite(at)])
    if not all(curves):
        return nan, bootstrap([])
    low = max(min(at for at, _ in curve) for curve in curves)
    high = min(max(at for at, _ in curve) for curve in curves)
    if low > high:
        return nan, bootstrap([])
    default = measure(suite.run(OURS), speed, category).value
    at = float(np.clip(default if np.isfinite(default) else low, low, high))
    one, two = (at_speed(curve, at) for curve in curves)
    return at, paired(one, two)


def equal_speed_table(suite: Suite) -> TextTable:
    """ToPi minus each other method at equal speed, per category and over all."""
    runs = {m: [r for x in labels if (r := suite.run(x)).complete] for m, labels in CURVES.items()}
    ours = runs.pop("ToPi")
    lines, rows = [], []
    for method, other in runs.items():
        keys = tuple(dict.fromkeys(key for run in [*other, *ours] for key in run.keys))
        for number, category in enumerate([None, *CATEGORIES]):
            fields = [Text(method if number == 0 else ""), Text(category_title(category or "all"))]
            for speed in ("flop_speedup", "speedup"):
                for metric in SCORES:
                    at, difference = equal_speed(suite, ours, other, speed, metric, category)
                    lines.append(
                        {"model": suite.model, "method": method, "category": category or "all"}
                        | {"metric": metric, "speed": speed, "at": at, **asdict(difference)}
                        | {"cells": " ".join(keys)}
                    )
                psnr = pd.DataFrame(lines[-len(SCORES) :]).set_index("metric").loc["psnr"]
                fields.append(Text("–" if isnan(psnr["at"]) else f"{psnr['at']:.2f}×"))
                fields.append(Text(_difference(psnr)))
            rows.append(tuple(fields))
    return TextTable(
        name="table1_equal_speed",
        title=f"ToPi minus each other method at equal speed, PSNR in dB: {suite.model}",
        headings=(
            *("Method", "Category"),
            *("at ideal", "ΔPSNR [95 %]", "at measured", "ΔPSNR [95 %]"),
        ),
        rows=tuple(rows),
        frame=pd.DataFrame(lines),
        notes=(
            "Each method's scores are interpolated along its curve, sample by sample, to the "
            "speed-up of ToPi at τ=0.85, or to the nearest one that both curves reach. –: the "
            "curves share no speed.",
            timing(run for each in (*runs.values(), ours) for run in each),
        ),
        keys={
            method: tuple(key for run in each for key in run.keys)
            for method, each in {**runs, "ToPi": ours}.items()
            if each
        },
    )


def _difference(line: pd.Series) -> str:
    if not line["n"]:
        return "–"
    return f"{line['value']:+.2f} [{line['low']:+.2f}, {line['high']:+.2f}]"
