"""Measured speed-up: full and method interleaved in one process, paired, with an interval."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Timing:
    """One full run and the method's run right after it, in seconds."""

    sample: int
    repeat: int
    seconds_full: float
    seconds_method: float

    @property
    def ratio(self) -> float:
        """Speed-up of this pair: full / method."""
        return self.seconds_full / self.seconds_method


@dataclass(frozen=True)
class Speedup:
    """Median of the paired ratios with a bootstrap interval."""

    median: float
    low: float
    high: float


def interleaved(
    edit: Callable[[Sample], Any],
    attach: Callable[[], AbstractContextManager],
    samples: Sequence[Sample],
    repeats: int = 5,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Timing]:
    """Time `edit(sample)` alone and inside `attach()`, in turns: full, method, full, method, ...

    Both runs of a pair see the same sample and the same moment of the machine, so that drift
    (clock frequency, other jobs) cancels in their ratio. Attaching and detaching is not timed.

    Args:
        edit: runs the whole pipeline on a sample, with a fixed seed.
        attach: makes the context in which the method is on, e.g. `lambda: method(pipe)`.
        repeats: pairs per sample.
        warmup: pairs on the first sample that are run and thrown away.
        device: where the model runs; a CUDA device is waited for before the clock is read.

    Yields:
        One `Timing` per pair, sample by sample, as soon as it is measured.
    """

    def now() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    def seconds(sample: Sample) -> float:
        start = now()
        edit(sample)
        return now() - start

    def pair(sample: Sample) -> tuple[float, float]:
        full = seconds(sample)
        with attach():
            return full, seconds(sample)

    for _ in range(warmup if samples else 0):
        pair(samples[0])
    for number, sample in enumerate(samples):
        for repeat in range(repeats):
            yield Timing(number, repeat, *pair(sample))


def speedup(
    ratios: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Speedup:
    """Median of paired ratios full / method, with a percentile bootstrap interval over the pairs.

    Raises:
        ValueError: there are no ratios.
    """
    values = np.asarray(ratios, dtype=np.float64)
    if not len(values):
        raise ValueError("no pairs were measured")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(values[drawn], axis=1), [tail, 1 - tail])
    return Speedup(float(np.median(values)), float(low), float(high))
