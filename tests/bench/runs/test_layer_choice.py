"""The strategies of Table 5."""

import pytest

from topi.bench.runs.layer_choice import choose_layers


def test_strategies():
    assert choose_layers("representative", 57) is None
    assert choose_layers("all", 4) == (0, 1, 2, 3)
    assert choose_layers("first", 57) == (0, 1, 2)
    assert choose_layers("last", 57) == (54, 55, 56)
    assert choose_layers("last", 2) == (0, 1)


def test_random_is_seeded_distinct_and_ascending():
    drawn = [choose_layers("random", 57, 3, seed) for seed in range(20)]
    assert drawn == [choose_layers("random", 57, 3, seed) for seed in range(20)]
    assert len(set(drawn)) > 15
    assert all(a < b < c < 57 for a, b, c in drawn)


def test_a_count_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        choose_layers("first", 57, 0)
