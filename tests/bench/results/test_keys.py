"""Equal content has one key, other content another."""

import pytest

from topi.bench.results.keys import canonical, digest


def test_order_containers_and_whole_floats_do_not_matter():
    assert digest({"a": (1, 2), "b": 1.0}) == digest({"b": 1, "a": [1, 2]})


@pytest.mark.parametrize("other", [{"tau": 0.81}, {"tau": None}, {"ratio": 0.8}, {"tau": "0.8"}])
def test_any_difference_matters(other):
    assert digest({"tau": 0.8}) != digest(other)


def test_the_text_is_canonical():
    assert canonical({"b": [1.5, None], "a": {"y": True, "x": "é"}}) == (
        '{"a":{"x":"é","y":true},"b":[1.5,null]}'
    )


def test_only_plain_data_has_a_key():
    with pytest.raises(TypeError):
        digest({"x": object()})
