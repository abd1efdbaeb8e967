"""Methods, one file each. A class with `variants` is found under those names."""

import importlib
import pkgutil
from dataclasses import fields
from typing import Any

from topi.errors import ToPiError
from topi.methods.base import Call, CallRecord, Merge, Method

__all__ = ["METHODS", "Call", "CallRecord", "Merge", "Method", "make_method"]


def _discover() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        contents = vars(importlib.import_module(f"{__name__}.{module.name}")).values()
        for cls in contents:
            if isinstance(cls, type) and issubclass(cls, Method):
                found.update(dict.fromkeys(vars(cls).get("variants", ()), cls))
    return dict(sorted(found.items()))


METHODS: dict[str, type[Method]] = _discover()


def make_method(name: str, **params: Any) -> Method:
    """Build a method by its name.

    Raises:
        ToPiError: unknown name or parameter, or a value the method refuses; the valid choices are
        listed.
    """
    if name not in METHODS:
        raise ToPiError(f"There is no method {name!r}; choose one of: {', '.join(METHODS)}.")
    cls = METHODS[name]
    fixed = cls.variants[name]
    valid = [f.name for f in fields(cls) if f.init and f.name not in fixed]
    if unknown := sorted(params.keys() - set(valid)):
        choices = ", ".join(valid) or "none"
        raise ToPiError(
            f"Method {name} has no parameter {', '.join(unknown)}; it takes: {choices}."
        )
    return cls(**fixed, **params)
