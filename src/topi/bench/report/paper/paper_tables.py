"""Tables 1 to 5 and 7 of the paper from a suite of cells, each number beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isinf, isnan, nan
from typing import Any

import numpy as np
import pandas as pd

from topi.bench.report.paper.artefacts import CURVES, OURS, Sheet
from topi.bench.report.paper.printed_values import paper_values, printed
from topi.bench.report.paper.suite import SCORES, Run, Suite
from topi.bench.report.tables import (
    CATEGORIES,
    COLUMNS,
    FEW,
    MERGES,
    STAR,
    Column,
    category_title,
    cell_text,
    measured_text,
    merge_text,
    rows_inside,
    timing_note,
)
from topi.bench.report.text_table import Text, TextTable
from topi.bench.results.statistics import Estimate, bootstrap, paired

BY_NAME = {column.name: column for column in COLUMNS}
PRINTED = {"speedup": "speed"}
"""Our name of a column -> the paper's, where they differ."""
POINT = ("category", "method", "label", "cells", "merges", "pairs", "timed", "identical")
STAND_IN = (
    "These are numbers of a stand-in, not of FLUX or Qwen; the paper's numbers are in italics."
)


def categories(suite_runs: list[Run]) -> list[str]:
    """The categories that the runs have samples of, the paper's four always among them."""
    present = {c for run in suite_runs for c in run.samples["category"].unique()}
    return [*CATEGORIES, *sorted(present - set(CATEGORIES))]


def measure(run: Run, name: str, category: str | None) -> Estimate:
    """A column of a run: a mean over samples, for the measured speed-up the median."""
    if name == "speedup":
        return run.speedup(category)
    return run.mean(name, category)


def merges(run: Run) -> str:
    """What a run of one cell merges, see `merge_text`."""
    if not run.complete or len(run.entries) != 1:
        return ""
    return merge_text(run.samples, run.entries[0].cell.manifest["params"])


def sheet_table(sheet: Sheet, suite: Suite) -> TextTable:
    """One of Tables 1 to 5 for one model.

    A line whose cells are not all complete shows their state in place of numbers.
    """
    runs = {line.title: suite.run(*line.labels) for line in sheet.lines}
    names = ("keep_ratio", *SCORES, "speedup", "flop_speedup") if sheet.speed else SCORES
    columns = [BY_NAME[name] for name in names]
    frame = _sheet_frame(sheet, suite, runs, columns)
    headings = ["Category", "Method"]
    for column in columns:
        headings += [column.heading, *(["paper"] if _is_printed(sheet, column) else [])]
        headings += ["ΔPSNR [95 %]"] * (column.name == "psnr")
    rows = []
    for category, group in frame.groupby("category", sort=False):
        for number, line in enumerate(sheet.lines):
            mine = group[group["method"] == line.title].set_index("metric")
            fields = [Text(category_title(category) if number == 0 else ""), Text(line.title)]
            for column in columns:
                value = mine.loc[column.name]
                fields.append(Text(_shown(value, column), best=value["best"]))
                if _is_printed(sheet, column):
                    fields.append(Text(value["paper"] or "–", paper=bool(value["paper"])))
                if column.name == "psnr":
                    fields.append(Text("" if line.title == sheet.ours else _interval(value)))
            rows.append(tuple(fields))
    return TextTable(
        name=sheet.name,
        title=f"{sheet.title}: {suite.model}",
        headings=tuple(headings),
        rows=tuple(rows),
        frame=frame,
        notes=tuple(_notes(sheet, suite, frame)),
        keys={title: run.keys for title, run in runs.items() if run.keys},
    )


def _sheet_frame(
    sheet: Sheet, suite: Suite, runs: dict[str, Run], columns: list[Column]
) -> pd.DataFrame:
    """One line per number: estimate, interval, paired difference, the paper's value, cells."""
    lines: list[dict[str, Any]] = []
    for category in [*categories(list(runs.values())), "all"]:
        inside = None if category == "all" else category
        for line in sheet.lines:
            run = runs[line.title]
            for column in columns:
                estimate = measure(run, column.name, inside)
                difference = Estimate(nan, nan, nan, 0)
                if column.name != "speedup":
                    difference = run.minus(runs[sheet.ours], column.name, inside)
                metric = PRINTED.get(column.name, column.name)
                paper = printed(sheet.name, category, line.paper or "", metric, suite.paper_model)
                lines.append(
                    {"table": sheet.name, "model": suite.model, "category": category}
                    | {"method": line.title, "labels": ", ".join(line.labels)}
                    | {"metric": column.name, **asdict(estimate), "best": False}
                    | {f"difference_{k}": v for k, v in asdict(difference).items()}
                    | {"paper": paper, "state": run.state or "complete"}
                    | {"merges": merges(run), "cells": " ".join(run.keys)}
                )
    frame = pd.DataFrame(lines)
    for column in columns:
        if column.best:
            able = (frame["metric"] == column.name) & (frame["n"] >= FEW * column.interval)
            for _, group in frame[able].groupby("category"):
                shown = (column.best * group["value"]).round(column.digits)
                best = shown[shown == shown.max()] if shown.notna().sum() > 1 else shown[:0]
                frame.loc[best.index, "best"] = True
    return frame


def _is_printed(sheet: Sheet, column: Column) -> bool:
    return PRINTED.get(column.name, column.name) in paper_values(sheet.name)


def _shown(line: pd.Series, column: Column) -> str:
    """The text of one number: `missing`, or how far its cells are, if they are not complete."""
    if line["state"] != "complete":
        return line["state"]
    if isnan(line["value"]):
        return "–"
    if isinf(line["value"]):
        return "∞"
    if column.name == "keep_ratio" and line["merges"]:
        return line["merges"]
    if column.interval:
        return measured_text(*line[["value", "low", "high", "n"]])
    text = f"{line['value']:.{column.digits}f}{column.unit}"
    if line["infinite"]:
        text += "*"
    return text


def _interval(line: pd.Series) -> str:
    if not line["difference_n"]:
        return "–"
    value, low, high = (line[f"difference_{name}"] for name in ("value", "low", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _notes(sheet: Sheet, suite: Suite, frame: pd.DataFrame) -> list[str]:
    notes = [_whose(suite)]
    if suite.paper_model:
        notes.append(f"The paper's column: {suite.paper_model}.")
    notes.append(
        f"Means over samples, {suite.count} in all; ΔPSNR: the line minus {sheet.ours} on the same "
        "samples, with a paired bootstrap interval."
    )
    if sheet.speed:
        notes.append(
            "Measured: median of interleaved pairs of runs, full over method. FLOP-ideal: counted "
            "operations, full over method. Kept: share of reference tokens over all computed "
            f"calls. {MERGES}"
        )
        notes.append(timing(map(suite.run, sheet.labels)))
    if frame["infinite"].any():
        notes.append(STAR)
    states = frame.loc[frame["state"] != "complete"].groupby("method", sort=False)["state"].first()
    if len(states):
        incomplete = ", ".join(f"{method} ({state})" for method, state in states.items())
        notes.append(f"Without numbers, because cells are not complete: {incomplete}.")
    return notes


def timing(runs: Iterable[Run]) -> str:
    """How often these runs were timed, and on how many samples."""
    timed = [run.latency["sample"] for run in runs]
    return timing_note(map(len, timed), (samples.nunique() for samples in timed))


def _whose(suite: Suite) -> str:
    if suite.random:
        return "Random weights, for tests: the numbers mean nothing; the paper's are in italics."
    return STAND_IN if suite.stand_in else "The paper's numbers are in italics."


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


def overhead(run: Run) -> pd.DataFrame:
    """Seconds of one run and shares of its total, from the timed runs: Table 7.

    Returns:
        Index `base, scoring, selection, total`, columns `seconds, share`; NaN where nothing was
        timed.
    """
    timed = run.latency
    mean = timed[["seconds_method", "scoring_seconds", "selection_seconds"]].astype(float).mean()
    total, scoring, selection = mean.to_list()
    seconds = pd.Series(
        {
            "base": total - scoring - selection,
            "scoring": scoring,
            "selection": selection,
            "total": total,
        }
    )
    return pd.DataFrame({"seconds": seconds, "share": seconds / total})


def overhead_table(suite: Suite) -> TextTable:
    """Table 7: where the time of a pruned run goes."""
    run = suite.run(OURS)
    parts = overhead(run)
    paper = paper_values("table7")
    rows, lines = [], []
    for (name, part), (_, line) in zip(parts.iterrows(), paper.iterrows(), strict=True):
        known = not isnan(part["seconds"])
        absent = run.state or "not timed"
        rows.append(
            (
                Text(line["component"]),
                Text(f"{part['seconds']:.3f}" if known else absent),
                Text(f"{part['share']:.2%}" if known else absent),
                Text(line["runtime"], paper=True),
                Text(line["ratio"], paper=True),
            )
        )
        lines.append(
            {"table": "table7", "model": suite.model, "component": name, **part}
            | {"paper_seconds": line["runtime"], "paper_share": line["ratio"]}
            | {"state": run.state or "complete", "cells": " ".join(run.keys)}
        )
    return TextTable(
        name="table7",
        title=f"Table 7. Where the time of a run goes: {suite.model}",
        headings=("Component", "Runtime (s)", "Ratio", "paper (s)", "paper"),
        rows=tuple(rows),
        frame=pd.DataFrame(lines),
        words=1,
        notes=(
            _whose(suite),
            f"ToPi at τ=0.85, mean over the timed runs: {len(run.latency)} on "
            f"{run.latency['sample'].nunique()} samples. The whole pipeline call counts, with text "
            "encoder and VAE.",
            "The paper's ratios do not follow from its seconds: 0.147 / 27.853 is 0.53 %.",
        ),
        keys={"ToPi": run.keys} if run.keys else {},
    )
