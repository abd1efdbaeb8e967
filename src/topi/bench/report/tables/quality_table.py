"""Quality and speed by category and method: a frame of numbers, and its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

import pandas as pd
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text as Words

from topi.bench.io.escape import one_line
from topi.bench.report.tables.columns import (
    ALL,
    COLUMNS,
    FEW,
    MERGES,
    SCORES,
    STAR,
    Column,
    categories_of,
    category_title,
    cell_text,
    in_order,
    merge_text,
    rows_inside,
    timing_note,
)
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.results.statistics import (
    Estimate,
    bootstrap,
    mean_of_many,
    median_of_many,
    paired_difference,
    speedup,
)


def quality_table(rows: pd.DataFrame, latency: pd.DataFrame) -> pd.DataFrame:
    """One line per (category, label), with every estimate and its bootstrap interval.

    Args:
        rows: per-sample rows of one model (`Store.rows`).
        latency: timed pairs of the same cells (`Store.latency`); may be empty.

    Returns:
        Columns `category, label, method, n, identical`, how many `pairs` of runs were timed and on
        how many samples (`timed`), what it `merges`, and `<name>, <name>_low, <name>_high` for each
        of `COLUMNS`.
    """
    rows = in_order(rows)
    timed = latency.merge(rows[["cell", "sample", "category", "label"]], on=["cell", "sample"])
    lines = []
    for category in [*categories_of(rows), ALL]:
        inside = rows_inside(timed, category)
        for label, group in rows_inside(rows, category).groupby("label", sort=False):
            pairs = inside[inside["label"] == label]
            estimates = {name: bootstrap(group[name]) for name in SCORES}
            estimates["speedup"] = speedup(pairs)
            lines.append(_line(category, label, group["method"].iloc[0], len(group), estimates))
            lines[-1] |= {"pairs": len(pairs), "timed": pairs["sample"].nunique()}
            lines[-1] |= {"merges": merge_text(group, *group.get("params", ())[:1])}
    return pd.DataFrame(lines)


def table_of_many(moments: pd.DataFrame, latency: pd.DataFrame) -> pd.DataFrame:
    """`quality_table` of very many rows, from sums over them; intervals as of many values.

    Args:
        moments: of the cells of one model (`Store.moments`), with their `label` and `method`.
        latency: their timed pairs, with `label` and `category`; may be empty.
    """
    moments = in_order(moments)
    ratios = latency.assign(ratio=latency["seconds_full"] / latency["seconds_method"])
    lines = []
    for category in [*categories_of(moments), ALL]:
        sums = rows_inside(moments, category).groupby(["method", "label"], sort=False).sum(True)
        timed = dict(iter(rows_inside(ratios, category).groupby("label", sort=False)))
        for (method, label), sums_of in zip(sums.index, sums.to_dict("records"), strict=True):
            pairs = timed.get(label, ratios[:0])
            estimates = {
                name: mean_of_many(
                    *(sums_of[f"{name}_{what}"] for what in ("n", "sum", "squares", "infinite"))
                )
                for name in SCORES
            }
            estimates["speedup"] = median_of_many(pairs["ratio"])
            lines.append(_line(category, label, method, int(sums_of["n"]), estimates))
            lines[-1] |= {"pairs": len(pairs), "timed": pairs["sample"].nunique(), "merges": ""}
    return pd.DataFrame(lines)


def _line(
    category: str, label: str, method: str, n: int, estimates: Mapping[str, Estimate]
) -> dict[str, Any]:
    line = {"category": category, "label": label, "method": method}
    line |= {"n": n, "identical": estimates["psnr"].infinite}
    for name, estimate in estimates.items():
        line |= {name: estimate.value}
        line |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return line


def best_values(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The best value that each category prints in each column; full is no rival."""
    best = {}
    for category, rivals in table[table["method"] != "full"].groupby("category", sort=False):
        for column in COLUMNS:
            if column.best and len(rivals) > 1:
                able = rivals["timed"] >= FEW if column.interval else slice(None)
                shown = (column.best * rivals.loc[able, column.name]).round(column.digits)
                best[category, column.name] = shown.max()
    return best


def is_best(line: Mapping[str, Any], column: Column, best: Mapping[tuple[str, str], float]) -> bool:
    """True if this line prints the best value of its category, ties included."""
    value = best.get((line["category"], column.name))
    if value is None or line["method"] == "full" or isnan(line[column.name]):
        return False
    if column.interval and line["timed"] < FEW:
        return False
    return round(column.best * line[column.name], column.digits) >= value


def sections(
    table: pd.DataFrame,
) -> list[tuple[str, list[tuple[str, int, list[tuple[str, bool]]]]]]:
    """The table as text: `(category, [(label, n, [(text, best) per column]), ...])`."""
    best = best_values(table)
    return [
        (
            category_title(category),
            [
                (
                    line["label"],
                    line["n"],
                    [(cell_text(line, c), is_best(line, c, best)) for c in COLUMNS],
                )
                for line in group.to_dict("records")
            ],
        )
        for category, group in table.groupby("category", sort=False)
    ]


def notes(table: pd.DataFrame) -> list[str]:
    """Notes that explain the columns of the table."""
    pooled = table[(table["category"] == ALL) & (table["method"] != "full")]
    lines = [
        "PSNR (dB), SSIM and LPIPS-Alex compare with the full-context output of the same model, "
        "sample and seed; means over n samples.",
        "Kept: mean share of reference tokens over all computed model calls, including "
        f"full-context steps; calls that a cache skips do not count. {MERGES}",
        "FLOP-ideal: counted floating-point operations, full over method. Measured: median of "
        "interleaved pairs of runs, full over method, with a 95 % bootstrap interval.",
        timing_note(pooled["pairs"], pooled["timed"]),
    ]
    return lines + [STAR] * bool(table["identical"].any())


def to_rich(table: pd.DataFrame, title: str) -> Table:
    """The table for the console."""
    view = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    view.add_column("Method", overflow="fold")
    view.add_column("n", justify="right")
    for column in COLUMNS:
        view.add_column(column.heading.replace("-", "-\n"), justify="right", no_wrap=True)
    for category, lines in sections(table):
        view.add_row(Words(one_line(category), style="bold"))
        for label, n, cells in lines:
            short = [
                (re.sub(r"^(merges) ([^,]+).*", r"\1\n\2", text), best) for text, best in cells
            ]
            shown = [Words(text, style="bold green" if best else "") for text, best in short]
            view.add_row(Padding(one_line(label), (0, 0, 0, 1)), str(n), *shown)
        view.add_section()
    return view


def quality_text(table: pd.DataFrame, title: str = "") -> TextTable:
    """The table as text for Markdown, LaTeX and the page; best values are marked.

    Args:
        table: of `quality_table`, or some of its lines.
    """
    rows = [
        (
            Text(category if number == 0 else ""),
            Text(label),
            Text(str(n)),
            *(Text(text, best) for text, best in cells),
        )
        for category, lines in sections(table)
        for number, (label, n, cells) in enumerate(lines)
    ]
    return TextTable(
        name="quality",
        title=title,
        headings=("Category", "Method", "n", *(column.heading for column in COLUMNS)),
        rows=tuple(rows),
        frame=table,
        notes=tuple(notes(table)),
    )


def difference_table(rows: pd.DataFrame, metric: str = "psnr") -> pd.DataFrame:
    """Paired differences of `metric`: each label of the last method (ToPi) minus the others'.

    A difference compares two methods on the very same samples and seeds, so its interval is
    narrower than those of the two means.

    Returns:
        Columns `label, other` and those of `Estimate`.
    """
    rows = in_order(rows[rows["method"] != "full"])
    methods = rows.drop_duplicates("label").set_index("label")["method"]
    return pd.DataFrame(
        {"label": label, "other": other, **asdict(paired_difference(rows, label, other, metric))}
        for label in methods.index[methods == methods.iloc[-1:].squeeze()]
        for other in methods.index[methods != methods[label]]
    )
