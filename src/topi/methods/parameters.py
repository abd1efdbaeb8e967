"""Checks of parameters: each returns the value as plain Python, or says what it should be."""

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from topi.errors import ToPiError
from topi.models import ModelFacts


def plain(value: Any) -> Any:
    """Python's own number for one of NumPy or torch, tuples for lists and arrays of them.

    Everything else is returned as it is. What is returned is the same in JSON.
    """
    if type(value) in (bool, int, float, str, type(None)):
        return value  # the same object, so that a default can be told from an equal number
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def check_number(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> int | float:
    """The number that `value` is.

    Args:
        name: of the parameter.
        rule: the range in words, to go on with "must be a number".
        holds: is a number in the range? NaN never is.

    Raises:
        ToPiError: it is no number, or out of range.
    """
    number = plain(value)
    usable = isinstance(number, int | float) and not isinstance(number, bool)
    if not usable or math.isnan(number) or not holds(number):
        raise ToPiError(f"{name}={value!r} must be {' '.join(('a number', rule)).strip()}.")
    return number


def check_share(name: str, value: Any) -> int | float:
    """The number; raise a ToPiError unless it is in [0, 1]."""
    return check_number(name, value, "in [0, 1]", lambda number: 0 <= number <= 1)


def check_at_least_zero(name: str, value: Any) -> int | float:
    """The number, which may be infinite; raise a ToPiError unless it is at least 0."""
    return check_number(name, value, "of at least 0", lambda number: number >= 0)


def check_positive(name: str, value: Any) -> int | float:
    """The number; raise a ToPiError unless it is finite and above 0."""
    return check_number(name, value, "that is positive", lambda number: 0 < number < math.inf)


def check_finite(name: str, value: Any) -> int | float:
    """The number; raise a ToPiError unless it is finite."""
    return check_number(name, value, "that is finite", math.isfinite)


def check_whole(name: str, value: Any, least: int) -> int:
    """The whole number; raise a ToPiError unless it is at least `least`."""
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ToPiError(f"{name}={value!r} must be a whole number of at least {least}.")
    return number


def check_each(name: str, values: Any, check: Callable[[str, Any], Any]) -> tuple[Any, ...]:
    """The values of a list, each checked by `check(name, value)`.

    Raises:
        ToPiError: it is no list, or empty, or a value is refused.
    """
    values = plain(values)
    if not isinstance(values, Iterable) or isinstance(values, str | Mapping):
        raise ToPiError(f"{name}={values!r} must be a list.")
    if not (found := tuple(check(name, value) for value in values)):
        raise ToPiError(f"{name} is empty; give at least one value.")
    return found


def check_window(name: str, value: Any, least: int) -> tuple[int, int]:
    """Rows and columns that hold at least `least` tokens.

    Raises:
        ToPiError: it is not a pair of whole numbers of at least 1, or of too few tokens.
    """
    sides = check_each(name, value, lambda name, side: check_whole(name, side, least=1))
    if len(sides) != 2 or math.prod(sides) < least:
        some = "one token" if least == 1 else "two tokens"
        raise ToPiError(f"{name}={value!r} must be two numbers for at least {some}.")
    return sides


def check_one_of(name: str, value: Any, valid: Iterable[str]) -> None:
    """Raise a ToPiError that lists the choices unless `value` is one."""
    if not isinstance(value, str) or value not in valid:
        raise ToPiError(f"{name}={value!r} is unknown; choose one of: {', '.join(valid)}.")


def check_layers(layers: Iterable[int], model: ModelFacts) -> frozenset[int]:
    """The layers as a set; raise a ToPiError unless the model has them all."""
    found = frozenset(check_each("layers", layers, lambda name, x: check_whole(name, x, least=0)))
    if outside := sorted(found - set(range(model.depth))):
        raise ToPiError(
            f"layers {outside} do not exist; this {model.name} has layers 0 to {model.depth - 1}."
        )
    return found
