"""The columns of a table of results, and the text of its fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isinf, isnan
from typing import Any

import pandas as pd

CATEGORIES = ("camera_move", "global_edit", "implicit_change", "local_edit")
ALL = "all"


@dataclass(frozen=True)
class Column:
    """One column; `best` is +1 where more is better, -1 where less is, 0 where neither is."""

    name: str
    title: str
    arrow: str
    digits: int
    best: int
    unit: str = ""
    interval: bool = False

    @property
    def heading(self) -> str:
        """Title with the direction of better, as the paper's tables print it."""
        return f"{self.title}{self.arrow}"

    @property
    def axis(self) -> str:
        """The heading with the unit, as a figure has it."""
        unit = "dB" if self.name == "psnr" else self.unit
        return f"{self.heading} ({unit})" if unit else self.heading


COLUMNS = (
    Column("psnr", "PSNR", "↑", 2, +1),
    Column("ssim", "SSIM", "↑", 3, +1),
    Column("lpips", "LPIPS", "↓", 3, -1),
    Column("keep_ratio", "Kept", "", 2, 0),
    Column("flop_speedup", "FLOP-ideal", "↑", 2, +1, unit="×"),
    Column("speedup", "Measured", "↑", 2, +1, unit="×", interval=True),
)
"""What a reader compares: distance to the full output, tokens kept, speed over the full run."""
SCORES = tuple(column.name for column in COLUMNS if column.name != "speedup")
"""The columns that rows have."""
MERGES = "“merges”: the share of tokens merged, and the share of calls that merge, if not all."
STAR = "* Outputs equal to the full-context output have an infinite PSNR; the mean leaves them out."
NOT_FLUX = "These are numbers of a stand-in, not of FLUX or Qwen."
FEW = 4
"""Timed samples below which a measured speed has no interval and is never the best."""


def category_title(category: str) -> str:
    """`camera_move` as a heading."""
    return "All categories" if category == ALL else category.replace("_", " ").capitalize()


def categories_of(rows: pd.DataFrame) -> list[str]:
    """The categories present, the four of the paper first and in its order."""
    present = set(rows["category"])
    return [c for c in CATEGORIES if c in present] + sorted(present - set(CATEGORIES))


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by label as the paper's tables are: full, the other methods, ToPi last."""
    order = rows["method"].map(lambda method: (method != "full") + (method == "topi"))
    rows = rows.assign(_order=order).sort_values(["_order", "method", "label"], kind="stable")
    return rows.drop(columns="_order")


def merge_text(rows: pd.DataFrame, params: Mapping[str, Any] | None = None) -> str:
    """`merges 50%, 36% of calls`, of a method that merges tokens and drops none; else empty.

    Args:
        rows: its samples, with `keep_ratio`, `calls` and `merged_calls`.
        params: of its manifest; its `ratio` is the share of tokens that is merged away.
    """
    ratio = (params or {}).get("ratio")
    if not isinstance(ratio, int | float) or "merged_calls" not in rows:
        return ""
    share = rows["merged_calls"].sum() / rows["calls"].sum()
    if not share or rows["keep_ratio"].min() < 1:
        return ""
    return f"merges {ratio:.0%}" if share == 1 else f"merges {ratio:.0%}, {share:.0%} of calls"


def rows_inside(frame: pd.DataFrame, category: str) -> pd.DataFrame:
    """The lines of a category, or of `ALL`."""
    return frame if category == ALL else frame[frame["category"] == category]


def cell_text(line: Mapping[str, Any], column: Column) -> str:
    """The text of one cell; `–`: not measured, `∞`: every output equals the full one."""
    value = line[column.name]
    if isnan(value):
        return "–"
    if isinf(value):
        return "∞"
    if column.name == "keep_ratio" and line["merges"]:
        return line["merges"]
    if column.interval:
        low, high = line[f"{column.name}_low"], line[f"{column.name}_high"]
        return measured_text(value, low, high, line["timed"])
    text = f"{value:.{column.digits}f}{column.unit}"
    if column.name == "psnr" and line["identical"]:
        text += "*"
    return text


def measured_text(value: float, low: float, high: float, timed: int, digits: int = 2) -> str:
    """A measured speed-up: `1.13× [1.07, 1.15]`, of fewer than `FEW` timed samples `1.13× (n=1)`.

    A few timed samples have no spread that an interval could show.
    """
    spread = f"[{low:.{digits}f}, {high:.{digits}f}]" if timed >= FEW else f"(n={int(timed)})"
    return f"{value:.{digits}f}× {spread}"


def timing_note(pairs: Iterable[int], timed: Iterable[int]) -> str:
    """How often lines were timed: `pairs` of runs and `timed` samples of each, 0 if it was not."""

    def span(counts: Iterable[int], what: str) -> str:
        known = sorted({int(count) for count in counts if count})
        least_and_most = dict.fromkeys([*known[:1], *known[-1:]])
        return " to ".join(map(str, least_and_most)) + f" {what}{'s' * (known != [1])}"

    pairs = list(pairs)
    if not any(pairs):
        return "No run was timed."
    return (
        f"Timed per line, all categories pooled: {span(pairs, 'pair')} of runs on "
        f"{span(timed, 'sample')}. Lines timed on fewer than {FEW} samples have no interval."
    )
