"""Methods, one file each, in folders that are the catalogue.

A class with `variants` is found under those names, in whatever module of this package it is.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from topi.errors import ToPiError
from topi.methods.base import BlockInput, Call, CallRecord, Merge, Method
from topi.methods.parts.temporal import TemporalCache

__all__ = ["BlockInput", "Call", "CallRecord", "Merge", "Method", "TemporalCache"]
__all__ += ["CACHES", "METHODS", "make_cache", "make_method"]


def _discover() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        for cls in vars(importlib.import_module(module.name)).values():
            if isinstance(cls, type) and issubclass(cls, Method):
                found.update(dict.fromkeys(vars(cls).get("variants", ()), cls))
    return dict(sorted(found.items()))


_FOUND = _discover()
CACHES: dict[str, type[TemporalCache]] = {
    name: cls for name, cls in _FOUND.items() if issubclass(cls, TemporalCache)
}
"""What stacks with a method."""
METHODS: dict[str, type[Method]] = {k: cls for k, cls in _FOUND.items() if k not in CACHES}
CLASSES: dict[str, type[Method]] = {cls.__name__: cls for cls in _FOUND.values()}
"""Class name -> class; `topi` exports these."""


def make_method(name: str, **params: Any) -> Method:
    """Build a method by its name.

    Raises:
        ToPiError: unknown name or parameter, or a value the method refuses; the valid choices are
        listed.
    """
    return _make("method", METHODS, name, params)


def make_cache(name: str, **params: Any) -> TemporalCache:
    """Build a temporal cache by its name; like `make_method`."""
    return _make("cache", CACHES, name, params)


def _make(kind: str, known: Mapping[str, type[Method]], name: str, params: dict) -> Any:
    if name not in known:
        raise ToPiError(f"There is no {kind} {name!r}; choose one of: {', '.join(known)}.")
    cls, title = known[name], kind.capitalize()
    fixed = cls.variants[name]
    valid = [f.name for f in fields(cls) if f.init and f.name not in fixed]
    if unknown := sorted(params.keys() - set(valid)):
        choices = ", ".join(valid) or "none"
        raise ToPiError(
            f"{title} {name} has no parameter {', '.join(unknown)}; it takes: {choices}."
        )
    return cls(**fixed, **params)
