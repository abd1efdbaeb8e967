"""Run a function's own code with a few names replaced, without touching its module."""

from collections.abc import Callable
from types import FunctionType
from typing import Any


def rebind(function: Callable, **names: Any) -> Callable:
    """Copy `function` so that its body sees `names` in place of the globals of the same name.

    The code object is shared with the original, so nothing is copied that could drift from the
    library it came from, and everyone else keeps the original.

    Raises:
        LookupError: the function's module has no such global name.
    """
    if missing := sorted(names.keys() - function.__globals__.keys()):
        raise LookupError(f"{function.__qualname__} does not use {', '.join(missing)}")
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = function.__annotations__
    return copy
