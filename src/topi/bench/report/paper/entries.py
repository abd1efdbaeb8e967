"""Cells with their rows, and runs: what a line of a table shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from topi.bench.results.statistics import Estimate, bootstrap, paired
from topi.bench.results.store import Cell

SCORES = ("psnr", "ssim", "lpips")
TIMES = ("seconds_full", "seconds_method", "scoring_seconds", "selection_seconds")
Identity = frozenset[tuple[str, str | float]]


def identity(label: str) -> Identity:
    """A label without the order of its words and the spelling of its numbers."""
    return frozenset(_word(word) for word in label.split())


def _word(word: str) -> tuple[str, str | float]:
    name, _, value = word.partition("=")
    try:
        return name, float(value)
    except ValueError:
        return name, value


@dataclass(frozen=True)
class Entry:
    """One cell with its rows, one line per sample, and its timed pairs of runs."""

    cell: Cell

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Its samples, by their ids."""
        rows = pd.DataFrame(self.cell.rows)
        return rows if rows.empty else rows.drop_duplicates("sample").set_index("sample")

    @cached_property
    def latency(self) -> pd.DataFrame:
        """Its timed pairs."""
        return pd.DataFrame(self.cell.latency).reindex(columns=["sample", "repeat", *TIMES])

    @property
    def key(self) -> str:
        """The key of the cell."""
        return self.cell.key

    @property
    def label(self) -> str:
        """The label of the cell."""
        return self.cell.labels[0]


@dataclass(frozen=True)
class Run:
    """What a line of a table shows: one cell, or the mean over several of them.

    Args:
        labels: of the cells.
        entries: the cells that are complete.
        missing: label -> state of those that are not.
    """

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    missing: dict[str, str]

    @property
    def complete(self) -> bool:
        """True if all of its cells are complete."""
        return not self.missing

    @property
    def state(self) -> str:
        """Why it shows no numbers; empty if it does."""
        states = sorted(set(self.missing.values()))
        return ", ".join(states)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its cells, those that are there."""
        return tuple(dict.fromkeys(entry.key for entry in self.entries))

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One line per sample: its category and its numbers, averaged over the cells."""
        if not self.complete or not self.entries:
            return pd.DataFrame(columns=["category", *SCORES, "keep_ratio", "flop_speedup"])
        first = self.entries[0].rows
        if len(self.entries) == 1:
            return first
        numbers = [entry.rows.select_dtypes("number") for entry in self.entries]
        mean = sum(n.reindex(first.index) for n in numbers) / len(numbers)
        return mean.assign(category=first["category"], task=first["task"])

    @cached_property
    def latency(self) -> pd.DataFrame:
        """The timed pairs of all cells, with the category of their sample."""
        frames = [entry.latency for entry in self.entries if len(entry.latency)]
        if not self.complete or not frames:
            return pd.DataFrame(columns=["sample", "category", *TIMES])
        timed = pd.concat(frames)
        return timed.assign(category=timed["sample"].map(self.entries[0].rows["category"]))

    def values(self, name: str, category: str | None = None) -> pd.Series:
        """A number of every sample, by sample; of one category or of all (None).

        NaN where it was not computed, as LPIPS with `lpips=false`.
        """
        return self._once(("values", name, category), lambda: self._values(name, category))

    def _values(self, name: str, category: str | None) -> pd.Series:
        inside = _inside(self.samples, category)
        return inside[name].astype(float) if name in inside else pd.Series(np.nan, inside.index)

    def mean(self, name: str, category: str | None = None) -> Estimate:
        """Mean over samples with its bootstrap interval."""
        key = ("mean", name, category)
        return self._once(key, lambda: bootstrap(self.values(name, category)))

    def ratios(self, category: str | None = None) -> pd.Series:
        """Measured speed-up of each sample: the median over its pairs of full / method."""
        return self._once(("ratios", category), lambda: self._ratios(category))

    def speedup(self, category: str | None = None) -> Estimate:
        """Median of `ratios` with its bootstrap interval."""
        key = ("speedup", category)
        return self._once(key, lambda: bootstrap(self.ratios(category), np.median))

    def _ratios(self, category: str | None) -> pd.Series:
        pairs = _inside(self.latency, category)
        ratio = (pairs["seconds_full"] / pairs["seconds_method"]).astype(float)
        return ratio.groupby(pairs["sample"]).median()

    def _once(self, key: tuple, compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple, Any]:
        return {}

    def minus(self, other: Run, name: str, category: str | None = None) -> Estimate:
        """Mean difference to another run over the samples both have, paired."""
        return paired(self.values(name, category), other.values(name, category))


def _inside(frame: pd.DataFrame, category: str | None) -> pd.DataFrame:
    return frame if category is None else frame[frame["category"] == category]
