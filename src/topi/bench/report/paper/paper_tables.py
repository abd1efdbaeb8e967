"""Tables 1 to 5 and 7 of the paper from a suite of cells, each number beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from math import isinf, isnan, nan
from typing import Any

import pandas as pd

from topi.bench.report.paper.artefacts import OURS, Sheet
from topi.bench.report.paper.entries import SCORES, Run
from topi.bench.report.paper.printed_values import paper_values, printed
from topi.bench.report.paper.suite import Suite
from topi.bench.report.tables.columns import (
    CATEGORIES,
    COLUMNS,
    FEW,
    MERGES,
    STAR,
    Column,
    category_title,
    measured_text,
    merge_text,
    timing_note,
)
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.results.statistics import Estimate

BY_NAME = {column.name: column for column in COLUMNS}
PRINTED = {"speedup": "speed"}
"""Our name of a column -> the paper's, where they differ."""
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
