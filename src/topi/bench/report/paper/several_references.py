"""Quality and cost over the number of references, of which the same edits need the first ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topi.bench.report.drawing.plots import STYLE, method_style
from topi.bench.report.drawing.sheet import PAGE
from topi.bench.report.paper.paper_tables import BY_NAME, measure, merges
from topi.bench.report.paper.suite import Suite
from topi.bench.report.pareto import field_text
from topi.bench.report.tables.columns import FEW, NOT_FLUX, STAR, cell_text, timing_note
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.results.statistics import Estimate, bootstrap
from topi.bench.results.store import Store

METHODS = {
    "full": "full",
    "topi": "topi ratio=0.5",
    "topi, τ=0.85": "topi tau=0.85",
    "topi_cover": "topi_cover ratio=0.5",
    "topi_kv": "topi_kv ratio=0.5",
    "ref_kv": "ref_kv",
    "random": "random",
    "checker": "checker",
}
"""What is compared -> the label of its cell; all at half of the tokens that have such a share."""
NAME = "references"
TITLE = "More references than the instruction needs"
CAPTION = (
    "PSNR to the full output with the same references, and speed-up over it; the same edits, with "
    "further scenes that no instruction needs. Lines: FLOP-ideal; hollow marks: measured; bars are "
    "95 % intervals. Outputs that all equal the full ones have no PSNR to show."
)
COLUMNS = ("psnr", "keep_ratio", "flop_speedup", "speedup")


@dataclass(frozen=True)
class Series:
    """One model on one data set: a suite for each number of references, in their order."""

    suites: tuple[Suite, ...]

    @property
    def title(self) -> str:
        """The model, and the data if an instruction needs several references."""
        first = self.suites[0]
        several = f", {first.needed} needed" if first.needed > 1 else ""
        return f"{first.model}{several}"


def series_of(found: Sequence[Suite]) -> list[Series]:
    """The models that ran with two numbers of references or more, and these suites.

    Of a number of references the suite with most of `METHODS`, of equals the newest; all of one
    series differ in nothing else that is known of the model and the data.
    """
    groups: dict[tuple[str, str], dict[int, Suite]] = {}
    for suite in sorted(found, key=lambda suite: (_complete(suite), suite.created)):
        if _complete(suite):
            groups.setdefault((suite.model, _settings(suite)), {})[suite.references] = suite
    return [
        Series(tuple(suite for _, suite in sorted(group.items())))
        for _, group in sorted(groups.items())
        if len(group) > 1
    ]


def _complete(suite: Suite) -> int:
    return sum(suite.state(label) == "complete" for label in METHODS.values())


def _settings(suite: Suite) -> str:
    """All that must not differ within a series."""
    data = {name: value for name, value in suite.data.items() if name != "references"}
    rest = {name: value for name, value in suite.settings.items() if name != "data"}
    return f"{data} {sorted(map(str, rest.items()))} {suite.count}"


def points_of(series: Series) -> pd.DataFrame:
    """One line per method and number of references, with every estimate and its interval.

    Columns `model, data, method, label, references`, those of `COLUMNS` with `_low` and `_high`,
    `lost` (PSNR minus that with the fewest references, paired by sample) with its own, `seconds`
    (median, of the full run that was timed beside it), `timed`, `pairs`, `identical`, `cells`.
    """
    return pd.DataFrame(list(_points(series)))


def _points(series: Series) -> Iterator[dict[str, Any]]:
    for method, label in METHODS.items():
        fewest = None
        for suite in series.suites:
            run = suite.run(label)
            if not run.complete:
                continue
            fewest = fewest or run
            line = {"model": suite.model, "data": suite.data.get("name"), "method": method}
            line |= {"label": label, "references": suite.references, "merges": merges(run)}
            estimates = {name: measure(run, name, None) for name in COLUMNS}
            estimates["lost"] = _lost(run.minus(fewest, "psnr"), run is fewest)
            for name, estimate in estimates.items():
                ends = {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
                line |= {name: estimate.value, **ends}
            line |= {"identical": estimates["psnr"].infinite, "pairs": len(run.latency)}
            line |= {"timed": run.latency["sample"].nunique(), "cells": " ".join(run.keys)}
            yield line | {"seconds": run.latency["seconds_full"].astype(float).median()}


def _lost(difference: Estimate, is_first: bool) -> Estimate:
    return bootstrap([]) if is_first else difference


def references_table(series: Series) -> TextTable:
    """Every method by number of references; the notes explain the pairing."""
    points = points_of(series)
    rows, keys = [], {}
    for method, lines in points.groupby("method", sort=False):
        for number, (_, line) in enumerate(lines.iterrows()):
            fields = [Text(method if number == 0 else ""), Text(str(line["references"]))]
            fields += [Text(field_text(line, BY_NAME["psnr"])), Text(_lost_text(line))]
            fields += [Text(cell_text(line, BY_NAME[name])) for name in COLUMNS[1:]]
            seconds = line["seconds"]
            rows.append((*fields, Text("–" if np.isnan(seconds) else f"{seconds:.2f} s")))
            keys[f"{method}, {line['references']}"] = tuple(line["cells"].split())
    first = series.suites[0]
    headings = [BY_NAME[name].heading for name in COLUMNS]
    return TextTable(
        name=NAME,
        title=f"{TITLE}: {series.title}",
        headings=("Method", "References", headings[0], "Δ [95 %]", *headings[1:], "Full run"),
        rows=tuple(rows),
        frame=points,
        notes=(
            "PSNR to the full output with the same references; Δ: minus that with the fewest "
            "references, paired by sample. Δ shows how much a method loses when references are "
            "added that the instruction does not need. It does not show whether the full output "
            "stays as good.",
            f"{first.count} samples, {first.steps} steps. Full run: the median time of the full "
            "runs that were timed in pairs with the method's.",
            *([NOT_FLUX] if first.stand_in else []),
            timing_note(points["pairs"], points["timed"]),
            *[STAR] * bool(points["identical"].any()),
        ),
        keys=keys,
    )


def _lost_text(line: pd.Series) -> str:
    if np.isnan(line["lost"]):
        return ""
    return f"{line['lost']:+.2f} [{line['lost_low']:+.2f}, {line['lost_high']:+.2f}]"


@plt.style.context(STYLE)
def references_figure(store: Store, suites: Sequence[Suite]) -> Figure | None:
    """PSNR to full and speed-up over the number of references; a line of panels per series."""
    found = series_of(suites)
    if not found:
        return None
    size = (PAGE, 2.5 * len(found) + 0.5)
    figure, axes = plt.subplots(len(found), 2, figsize=size, squeeze=False)
    styles = method_style(list(METHODS))
    handles: dict[str, Any] = {}
    for series, (left, right) in zip(found, axes, strict=True):
        points = points_of(series)
        numbers = [suite.references for suite in series.suites]
        for ax in (left, right):
            ax.set_xticks(range(len(numbers)), map(str, numbers))
            ax.set_xlabel("references")
        left.set_ylabel(f"{series.title}\nPSNR to full (dB)")
        right.set_ylabel("speed-up over full (×)")
        right.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
        for method, lines in points.groupby("method", sort=False):
            where = np.array([numbers.index(n) for n in lines["references"]])
            handles |= _line(left, where, lines, "psnr", styles[method], method)
            _line(right, where, lines, "flop_speedup", styles[method], method)
            hollow = {**styles[method], "linestyle": "none", "markerfacecolor": "none"}
            _line(right, where, lines, "speedup", hollow, method)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=7)
    return figure


def _line(
    ax: Axes, where: np.ndarray, lines: pd.DataFrame, name: str, style: dict, method: str
) -> dict[str, Any]:
    """Draw a method; a little beside the others, so that intervals can be told apart."""
    known = np.isfinite(lines[name].to_numpy(float))
    lines, at = lines[known], where[known] + 0.04 * (list(METHODS).index(method) - 3.5)
    ends = lines[[name, f"{name}_low", f"{name}_high"]].to_numpy(float).T
    bars = np.clip(np.stack([ends[0] - ends[1], ends[2] - ends[0]]), 0, None)
    if name == "speedup":
        bars[:, (lines["timed"] < FEW).to_numpy()] = np.nan
    look = {"linewidth": 1, "markersize": 4, "elinewidth": 0.5, "capsize": 0}
    return {method: ax.errorbar(at, ends[0], yerr=bars, **{**look, **style})}
