"""Estimates with bootstrap intervals; methods are compared on the samples they share.

Of very many values, which nobody draws two thousand times, the intervals are those to which the
bootstrap's converge: the normal one of a mean, the one between order statistics of a median.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, floor, inf, nan, sqrt

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t, wilcoxon

RESAMPLES = 2000
LEVEL = 0.95
DEVIATIONS = 1.959964
"""Standard deviations to each side of a normal mean that hold `LEVEL` of it."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of `n` values with its percentile interval at 95 % and its standard error.

    `infinite` counts values left out because they are infinite: the PSNR of an output equal to the
    full-context one.
    """

    value: float
    low: float
    high: float
    n: int
    infinite: int = 0
    error: float = 0.0

    def __add__(self, constant: float) -> Estimate:
        """Of the values, each plus a constant."""
        value, low, high = (x + constant for x in (self.value, self.low, self.high))
        return replace(self, value=value, low=low, high=high)

    def __neg__(self) -> Estimate:
        """Of the values with the other sign."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)

    @property
    def p_below(self) -> float:
        """One-sided p of Student's t: how likely so small a value is, if the true one is 0."""
        if self.n < 2 or self.error == 0:
            return float(self.value >= 0)
        return float(t.cdf(self.value / self.error, self.n - 1))


def bootstrap(
    values: ArrayLike, statistic: Callable[..., np.ndarray] = np.mean, seed: int = 0
) -> Estimate:
    """Estimate `statistic` over a vector, with its percentile bootstrap interval (seeded).

    Infinite values would turn any mean into infinity, so they are counted and left out; if all are
    infinite the estimate is. NaN are dropped. An empty vector gives NaN, a single value an interval
    of no width.
    """
    values = np.asarray(values, dtype=float).ravel()
    values = values[~np.isnan(values)]
    finite = values[np.isfinite(values)]
    infinite = len(values) - len(finite)
    if not len(finite):
        value = inf if infinite else nan
        return Estimate(value, value, value, 0, infinite)
    drawn = statistic(finite[_draws(len(finite), seed)], axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    n = len(finite)
    error = float(drawn.std()) * sqrt(n / max(n - 1, 1))
    return Estimate(float(statistic(finite)), float(low), float(high), n, infinite, error)


@lru_cache(maxsize=16)
def _draws(n: int, seed: int) -> np.ndarray:
    """Which of `n` values each resample takes: [RESAMPLES, n]."""
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def mean_of_many(n: int, total: float, squares: float, infinite: int = 0) -> Estimate:
    """A mean with its normal interval.

    Args:
        n: of finite values.
        total: their sum.
        squares: the sum of their squares.
        infinite: how many others there are.
    """
    if not n:
        value = inf if infinite else nan
        return Estimate(value, value, value, 0, infinite)
    mean = total / n
    variance = max(squares - n * mean**2, 0.0) / max(n - 1, 1)
    error = sqrt(variance / n)
    half = DEVIATIONS * error
    return Estimate(mean, mean - half, mean + half, int(n), int(infinite), error)


def median_of_many(values: ArrayLike) -> Estimate:
    """A median of finite values with the interval between two order statistics."""
    values = np.sort(np.asarray(values, dtype=float).ravel())
    n = len(values)
    if not n:
        return Estimate(nan, nan, nan, 0)
    half = DEVIATIONS * sqrt(n) / 2  # ranks
    low, high = max(floor(n / 2 - half), 0), min(ceil(n / 2 + half), n - 1)
    low, high = float(values[low]), float(values[high])
    error = (high - low) / (2 * DEVIATIONS)
    return Estimate(float(np.median(values)), low, high, n, error=error)


def speedup(latency: pd.DataFrame) -> Estimate:
    """Median of `seconds_full / seconds_method`, one pair per timed repeat."""
    return bootstrap(latency["seconds_full"] / latency["seconds_method"], np.median)


def paired_difference(rows: pd.DataFrame, label: str, other: str, metric: str) -> Estimate:
    """Mean of `label` minus `other` over the samples and seeds both have, finite scores only."""
    return bootstrap(_differences(rows, label, other, metric))


def _differences(rows: pd.DataFrame, label: str, other: str, metric: str) -> np.ndarray:
    wide = rows.pivot_table(
        index=["sample", "seed"], columns="label", values=metric, aggfunc="first"
    )
    if not {label, other} <= set(wide.columns):
        return np.empty(0)
    both = wide[[label, other]].replace([inf, -inf], nan).dropna()
    return (both[label] - both[other]).to_numpy(float)


def signed_rank(rows: pd.DataFrame, label: str, other: str, metric: str) -> float:
    """Two-sided p of the signed-rank test (Wilcoxon) of `paired_difference`; 1 if all are equal."""
    difference = _differences(rows, label, other, metric)
    return float(wilcoxon(difference).pvalue) if difference.any() else 1.0


def holm(p_values: ArrayLike) -> np.ndarray:
    """p-values adjusted for their number (Holm 1979): below 0.05, none of them by chance, in 95 %
    of such families.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    steps = (len(order) - np.arange(len(order))) * p_values[order]
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def paired(one: pd.Series, other: pd.Series) -> Estimate:
    """Mean of `one` minus `other` over the samples (the index) that have both finite."""
    shared = one.index.intersection(other.index)
    with np.errstate(invalid="ignore"):  # inf - inf, which is left out
        difference = one[shared].to_numpy(float) - other[shared].to_numpy(float)
    return bootstrap(difference[np.isfinite(difference)])


def unpaired(one: ArrayLike, other: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of `one` minus mean of `other`, two groups of different samples; finite values only.

    Its `n` is that of the smaller group.
    """
    groups = [np.asarray(values, dtype=float).ravel() for values in (one, other)]
    groups = [values[np.isfinite(values)] for values in groups]
    if not all(len(values) for values in groups):
        return bootstrap([])
    rng = np.random.default_rng(seed)
    draws = [v[rng.integers(len(v), size=(RESAMPLES, len(v)))].mean(axis=1) for v in groups]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws[0] - draws[1], [tail, 1 - tail])
    value = float(groups[0].mean() - groups[1].mean())
    error = float((draws[0] - draws[1]).std())
    return Estimate(value, float(low), float(high), min(map(len, groups)), error=error)
