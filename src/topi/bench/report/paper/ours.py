"""ToPi-Cover and ToPi-KV against the rest: at equal token counts, and at equal measured speed.

Differences are paired by sample. They are tested with Student's t, corrected for the number of
comparisons in the table (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from topi.bench.report.drawing.plots import STYLE, method_style
from topi.bench.report.drawing.sheet import PAGE
from topi.bench.report.paper.entries import SCORES, Run
from topi.bench.report.paper.paper_tables import categories
from topi.bench.report.paper.suite import Suite
from topi.bench.report.pareto import LEVELS, pareto_points
from topi.bench.report.tables.columns import CATEGORIES, NOT_FLUX, category_title
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.results.statistics import LEVEL, Estimate, holm
from topi.bench.results.store import Store

EQUAL_COUNT = "equal_count"
EQUAL_SPEED = "equal_speed"
COUNTED = {
    "topi_cover ratio=0.5": ("topi ratio=0.5", "random redraw=step", "checker flip=step"),
    "topi_cover ratio=0.3": ("topi ratio=0.3", "random ratio=0.3 redraw=step"),
}
"""Ours -> rivals that keep as many reference tokens at every step."""
TITLE = "At an equal number of kept tokens: the effect of the choice alone"
CAPTION = (
    "PSNR to full context by category; bars are 95 % intervals of the means, the table has paired "
    "differences. Random tokens are drawn anew, and the checkerboard is flipped, at every step."
)
OURS = ("topi_cover", "topi_kv")
GROUPS = ("all", "every step run")
BETTER = {"psnr": +1, "ssim": +1, "lpips": -1}
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}


@dataclass(frozen=True)
class Match:
    """One of ours against a rival: where they meet, and their labels."""

    where: str
    ours: str
    rival: str


def equal_count_matches() -> Iterator[Match]:
    """The pairs of `COUNTED`."""
    for ours, rivals in COUNTED.items():
        for rival in rivals:
            yield Match(f"{share_of(ours):.0%} kept", ours, rival)


def share_of(label: str) -> float:
    """Which share of the tokens a label of `COUNTED` keeps."""
    return float(label.partition("ratio=")[2])


def equal_speed_matches(suite: Suite) -> Iterator[Match]:
    """At each level of measured speed, the best of ours and the best of the others that reach it.

    Best is the mean PSNR over all samples, on these very samples. Once among all, once among those
    that compute all steps, as nearly straight flows make skipped steps cheap.
    """
    points = pareto_points(suite)
    points = points[(points["category"] == "all") & points["psnr"].notna()]
    points = points.sort_values("psnr", ascending=False, kind="stable")
    mine = points["label"].map(lambda label: label.split()[0] in OURS).astype(bool)
    runs = {label: suite.run(label).samples for label in points["label"]}
    calls = max((rows["calls"].max() for rows in runs.values()), default=0)
    steady = points["label"].map(lambda label: runs_all(runs[label], calls)).astype(bool)
    for level in LEVELS:
        for group in GROUPS:
            able = points["speedup"] >= level
            able &= steady if group == GROUPS[1] else True
            ours, rivals = points[able & mine], points[able & ~mine]
            if len(ours) and len(rivals):
                where = f"≥ {level:g}×, {group}"
                yield Match(where, ours["label"].iloc[0], rivals["label"].iloc[0])


def runs_all(rows: pd.DataFrame, calls: int) -> bool:
    """True if the transformer computes all of its calls, with all layers, for every sample."""
    return bool((rows["calls"] == calls).all() and (rows["skipped_calls"] == 0).all())


def differences(suite: Suite, matches: Iterable[Match]) -> pd.DataFrame:
    """A line per match, category and score: ours minus the rival's, and whether that holds.

    Columns `where, ours, rival, category, score`, the fields of `Estimate`, `p` (two-sided,
    corrected for all lines), `verdict` ("ahead", "behind" or ""), and the keys of both `cells`.
    """
    lines: list[dict[str, Any]] = []
    for match in matches:
        ours, rival = suite.run(match.ours), suite.run(match.rival)
        if not (ours.complete and rival.complete):
            continue
        for category in [*categories([ours, rival]), None]:
            for score in SCORES:
                gap = ours.minus(rival, score, category)
                if gap.n:
                    lines.append(_line(match, category, score, gap, (ours, rival)))
    frame = pd.DataFrame(lines)
    if len(frame):
        frame["p"] = holm(frame["p"])
        frame["verdict"] = [_verdict(line) for line in frame.to_dict("records")]
    return frame


def _line(
    match: Match, category: str | None, score: str, gap: Estimate, runs: tuple[Run, Run]
) -> dict[str, Any]:
    below = gap.p_below
    return {
        **asdict(match),
        "category": category or "all",
        "score": score,
        **asdict(gap),
        "p": min(2 * min(below, 1 - below), 1.0) if gap.n > 1 else 1.0,
        "cells": " ".join(key for run in runs for key in run.keys),
    }


def _verdict(line: Mapping[str, Any]) -> str:
    if line["p"] >= 1 - LEVEL:
        return ""
    return "ahead" if line["value"] * BETTER[line["score"]] > 0 else "behind"


def equal_count(suite: Suite) -> TextTable:
    """ToPi-Cover against rivals that keep as many reference tokens."""
    frame = differences(suite, equal_count_matches())
    return _table(
        suite,
        frame,
        EQUAL_COUNT,
        f"Ours at an equal number of kept tokens: {suite.model}",
        "Both keep the same number of reference tokens at every pruned step.",
    )


def equal_speed(suite: Suite) -> TextTable:
    """The best of ours against the best of all others, at equal measured speed."""
    frame = differences(suite, equal_speed_matches(suite))
    return _table(
        suite,
        frame,
        EQUAL_SPEED,
        f"Ours at equal measured speed: {suite.model}",
        "Each level compares two settings, one of ours and one of the others: those with the "
        "highest PSNR over all samples among the settings measured to be that fast. Both were "
        "chosen on these samples. Every step run: only settings that skip no step by a cache or a "
        "shorter schedule.",
    )


def _table(suite: Suite, frame: pd.DataFrame, name: str, title: str, note: str) -> TextTable:
    rows, keys = [], {}
    for category, inside in _groups(frame, ["category"]):
        head = category_title(category)
        for (where, ours, rival), group in _groups(inside, ["where", "ours", "rival"]):
            by_score = group.set_index("score")
            pair = f"{ours} − {rival}"
            fields = [Text(head), Text(where), Text(pair), Text(str(int(group["n"].max())))]
            rows.append((*fields, *(_field(by_score, score) for score in SCORES)))
            keys[pair] = tuple(group["cells"].iloc[0].split())
            head = ""
    corrected = (
        "Ours minus the rival, paired by sample, with 95 % intervals. Bold: ours is significantly "
        "better; †: ours is significantly worse (5 %, Student's t, Holm's correction for the "
        f"table's {len(frame)} comparisons). Other differences are not significant."
    )
    return TextTable(
        name=name,
        title=title,
        headings=("Category", "At", "Ours − rival", "n", "ΔPSNR", "ΔSSIM", "ΔLPIPS"),
        rows=tuple(rows),
        frame=frame.assign(table=name, model=suite.model),
        words=3,
        notes=(
            note,
            corrected,
            *([NOT_FLUX] if suite.stand_in else []),
        ),
        keys=keys,
    )


def _groups(frame: pd.DataFrame, by: list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """In the order of the frame; keys of one column as they are."""
    if len(frame):
        yield from frame.groupby(by if len(by) > 1 else by[0], sort=False)


def _field(by_score: pd.DataFrame, score: str) -> Text:
    """`+2.10 [+1.00, +3.20]`; – where nothing could be compared."""
    if score not in by_score.index or isnan(by_score.loc[score, "value"]):
        return Text("–")
    line, digits = by_score.loc[score], DIGITS[score]
    text = f"{line['value']:+.{digits}f} [{line['low']:+.{digits}f}, {line['high']:+.{digits}f}]"
    return Text(text + " †" * (line["verdict"] == "behind"), best=line["verdict"] == "ahead")


@plt.style.context(STYLE)
def equal_count_figure(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """PSNR per category of all that keep as many tokens: a line of panels per model."""
    suites = [suite for suite in suites if not differences(suite, equal_count_matches()).empty]
    if not suites:
        return None
    size = (PAGE, 2.2 * len(suites) + 0.35)
    figure, axes = plt.subplots(len(suites), len(COUNTED), figsize=size, squeeze=False, sharey=True)
    groups = [(*rivals, ours) for ours, rivals in COUNTED.items()]
    styles = method_style([label.split()[0] for label in groups[0]])
    handles: dict[str, Any] = {}
    for suite, line in zip(suites, axes, strict=True):
        line[0].set_ylabel(f"{suite.model}\nPSNR to full (dB)")
        for ax, labels in zip(line, groups, strict=True):
            ax.set_title(f"{share_of(labels[-1]):.0%} of the reference tokens")
            ax.set_xticks(range(len(CATEGORIES)), [c.split("_")[0] for c in CATEGORIES])
            ax.set_xlim(-0.5, len(CATEGORIES) - 0.5)
            for number, label in enumerate(labels):
                run, name = suite.run(label), label.split()[0]
                found = [run.mean("psnr", category) for category in CATEGORIES]
                ends = np.array([[e.value, e.low, e.high] for e in found]).T
                bars = np.clip([ends[0] - ends[1], ends[2] - ends[0]], 0, None)
                at = np.arange(len(CATEGORIES)) + 0.16 * (number - (len(labels) - 1) / 2)
                look = {**styles[name], "linestyle": "none"}
                handles[name] = ax.errorbar(at, ends[0], yerr=bars, elinewidth=0.8, **look)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
    return figure
