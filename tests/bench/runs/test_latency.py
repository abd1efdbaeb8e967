"""Interleaved timing on a fake clock, and the interval of the speed-up."""

from contextlib import contextmanager

import numpy as np
import pytest

from topi.bench.runs.latency import Timing, interleaved, speedup


class Machine:
    """A pipeline whose runs take known times on a clock of its own."""

    def __init__(self):
        self.time, self.on, self.log = 0.0, False, []

    def edit(self, sample):
        self.log.append((sample, self.on))
        self.time += 2.0 * sample if self.on else 6.0 * sample

    @contextmanager
    def attach(self):
        self.time += 1000  # must not be measured
        self.on = True
        yield
        self.on = False
        self.time += 1000


def test_full_and_method_alternate_and_only_the_edit_is_timed():
    machine = Machine()
    timings = list(
        interleaved(
            machine.edit, machine.attach, [1, 2], repeats=2, warmup=1, clock=lambda: machine.time
        )
    )
    assert timings == [
        Timing(0, 0, 6.0, 2.0),
        Timing(0, 1, 6.0, 2.0),
        Timing(1, 0, 12.0, 4.0),
        Timing(1, 1, 12.0, 4.0),
    ]
    assert timings[0].ratio == 3
    assert machine.log == [(1, False), (1, True)] * 3 + [(2, False), (2, True)] * 2


def test_nothing_to_measure():
    machine = Machine()
    assert list(interleaved(machine.edit, machine.attach, [])) == [] and machine.log == []
    with pytest.raises(ValueError, match="no pairs"):
        speedup([])


def test_median_of_paired_ratios_with_interval():
    result = speedup([1.5] * 4)
    assert (result.median, result.low, result.high) == (1.5, 1.5, 1.5)
    result = speedup([1.2, 1.3, 9.0])
    assert (result.median, result.low, result.high) == (1.3, 1.2, 9.0)
    assert speedup([1.3] * 9 + [9.0]).high == 1.3  # one disturbed pair does not move it
    ratios = np.random.default_rng(1).normal(1.4, 0.05, 200)
    result = speedup(ratios)
    assert result == speedup(ratios)  # seeded
    assert 1.38 < result.low < result.median < result.high < 1.42
    wider = speedup(ratios, confidence=0.999)
    assert wider.low < result.low and wider.high > result.high
