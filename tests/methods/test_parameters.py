"""Numbers of NumPy and torch are parameters like Python's own; other types are refused."""

import json
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
import torch

from topi.errors import ToPiError
from topi.methods import CACHES, METHODS, make_cache, make_method
from topi.methods.parameters import check_each, check_share, check_whole, plain

GIVEN = {  # where the default is no number
    "teacache": {"threshold": 0.5, "coefficients": (1.0, 0.5), "ceiling": 0.25},
    "magcache": {"threshold": 0.5, "max_skips": 2, "ratios": (1.0, 0.5), "always": (1, 2)},
    "first_block_cache": {"max_skips": 2},
    "dato": {"depths": (1, 2), "ratio": (0.5, 0.25)},
    "topi": {"layers": (1, 2)},
}
OTHERS = {
    "numpy": lambda v: np.array(v, np.int64 if isinstance(v, int) else np.float64)[()],
    "half": lambda v: np.float16(v) if isinstance(v, float) else np.uint8(v),
    "torch": torch.tensor,
    "fraction": lambda v: Fraction(v) if isinstance(v, float) else v,
}


def make(name, **params):
    return (make_cache if name in CACHES else make_method)(name, **params)


def numbers_of(name):
    """Parameters that are numbers or lists of them, with values."""
    cls = {**METHODS, **CACHES}[name]
    free = [f.name for f in fields(cls) if f.init and f.name not in cls.variants[name]]
    known = {k: v for k, v in make(name).params.items() if k in free} | GIVEN.get(name, {})
    return {k: v for k, v in known.items() if type(v) in (int, float, tuple)}


@pytest.mark.parametrize("name", [*METHODS, *CACHES])
@pytest.mark.parametrize("other", OTHERS)
def test_other_numbers_make_an_equal_method(name, other):
    convert = OTHERS[other]
    given = {
        k: [convert(each) for each in v] if isinstance(v, tuple) else convert(v)
        for k, v in numbers_of(name).items()
    }
    theirs, own = make(name, **given), make(name, **{k: plain(v) for k, v in given.items()})
    assert theirs == own
    assert json.loads(json.dumps(theirs.params)) == json.loads(json.dumps(own.params))
    values = [v for value in theirs.params.values() for v in np.atleast_1d(np.array(value, object))]
    assert {type(v) for v in values} <= {int, float, bool, str, type(None)}


@pytest.mark.parametrize("name", [*METHODS, *CACHES])
def test_other_types_are_refused_by_name(name):
    for parameter, value in numbers_of(name).items():
        for wrong in (True, np.bool_(False), "1", {}, float("nan"), torch.tensor(True)):
            with pytest.raises(ToPiError, match=f"{parameter}"):
                make(name, **{parameter: [wrong] if isinstance(value, tuple) else wrong})


def test_the_checks_return_plain_numbers():
    assert type(check_share("tau", np.float32(0.5))) is float
    assert type(check_share("tau", 1)) is int  # and stays the 1 of keys
    assert type(check_whole("seed", torch.tensor(3), 0)) is int
    assert check_each("layers", np.arange(3), lambda name, v: check_whole(name, v, 0)) == (0, 1, 2)
    for wrong in (1.0, np.float64(1), "1", None):
        with pytest.raises(ToPiError, match=r"seed=.* whole number of at least 0"):
            check_whole("seed", wrong, 0)


def test_the_seed_of_an_attachment(tiny):
    pipe, _ = tiny("flux")
    with make("random", front_layers=np.int64(1))(pipe, seed=np.int64(3)) as method:
        assert type(method._seed) is int and type(method.front_layers) is int
    with pytest.raises(ToPiError, match="seed=True"), make("random", front_layers=1)(pipe, True):
        pass
