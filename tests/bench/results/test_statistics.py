"""Bootstrap estimates against what is known of them."""

from math import inf, isnan, nan

import numpy as np
import pandas as pd
import pytest

from topi.bench.results.statistics import bootstrap, holm, paired_difference, signed_rank, speedup


def test_a_constant_has_an_interval_of_no_width():
    estimate = bootstrap([2.5] * 7)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (2.5, 2.5, 2.5, 7)


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(1).normal(10, 2, 400)
    estimate = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


def test_it_is_seeded():
    values = np.random.default_rng(1).normal(size=30)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)


def test_infinite_psnr_is_counted_and_does_not_poison_the_mean():
    estimate = bootstrap([30.0, inf, 32.0, nan])
    assert (estimate.value, estimate.n, estimate.infinite) == (31.0, 2, 1)
    assert bootstrap([inf, inf]).value == inf
    assert isnan(bootstrap([]).value)


def test_speedup_is_the_median_of_paired_ratios():
    pairs = pd.DataFrame({"seconds_full": [2, 4, 90.0], "seconds_method": [1, 4, 20.0]})
    assert speedup(pairs).value == 2  # not their mean, nor the ratio of sums


def test_a_paired_difference_sees_through_the_spread_of_samples():
    spread = np.linspace(10, 40, 20)
    rows = pd.DataFrame(
        [
            {"sample": i, "seed": 0, "label": label, "psnr": base + gain}
            for i, base in enumerate(spread)
            for label, gain in (("a", 1.0), ("b", 0.0))
            if not (label == "b" and i == 0)
        ]
    )
    estimate = paired_difference(rows, "a", "b", "psnr")
    assert estimate.n == 19
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((1, 1, 1))
    assert paired_difference(rows, "a", "absent", "psnr").n == 0


def test_holm_by_hand():
    """0.01 times 3; 0.03 times 2; 0.04 times 1, but not below the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and not len(holm([]))
    assert holm([0.7, 0.8]) == pytest.approx([1, 1])


def test_signed_ranks_of_pairs():
    """Ten pairs that all agree: 2 of the 2^10 signs are as extreme."""
    one = [{"label": "a", "sample": str(k), "seed": 0, "psnr": float(k * k)} for k in range(10)]
    other = [{**row, "label": "b", "psnr": row["psnr"] - 1 - k} for k, row in enumerate(one)]
    frame = pd.DataFrame(one + other + [{**row, "label": "c"} for row in one])
    assert signed_rank(frame, "a", "b", "psnr") == pytest.approx(2 / 2**10)
    assert signed_rank(frame, "a", "c", "psnr") == 1
