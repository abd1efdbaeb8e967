"""Taps in attention processors, through which a method sees and changes attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topi.errors import ToPiError
from topi.models.rebind import rebind
from topi.models.rope import per_sample

if TYPE_CHECKING:
    from topi.engine.layers import Layers

ROTATIONS = ("apply_rotary_emb", "apply_rotary_emb_qwen")
"""Functions by which attention processors rotate queries and keys."""


@contextmanager
def tapped(processor: Any) -> Iterator[None]:
    """Let `Layers.at_attention` say what key, value and mask an attention processor attends to.

    Or what comes of it, where a look at the layer has computed that.

    Inside, the processor's class is a subclass that runs the same code with `dispatch_attention_fn`
    rebound. Copies are of the class itself.

    Raises:
        ToPiError: the processor does not attend through `dispatch_attention_fn`.
    """
    stock = getattr(processor, "stock", type(processor))  # what is made from a tapped one is tapped
    processor.__class__ = tapped_class(stock)
    try:
        yield
    finally:
        processor.__class__ = stock


def is_tapped(processor: Any) -> bool:
    """True if it is of a class made by `tapped_class`."""
    return "stock" in vars(type(processor))


@cache
def tapped_class(cls: type) -> type:
    """The subclass, one for each class of processors: compiled blocks depend on which it is."""
    dispatch = getattr(cls.__call__, "__globals__", {}).get("dispatch_attention_fn")
    if dispatch is None:
        raise ToPiError(
            f"The attention processor {cls.__name__} is not supported; "
            "restore diffusers' default processor."
        )

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any
    ) -> Tensor:
        # a compiled block is one that nobody looks into
        if not torch.compiler.is_compiling() and (layers := _running.get()) is not None:
            key, value, attn_mask, output = layers.at_attention(query, key, value, attn_mask, rest)
            if output is not None:
                return output
        return dispatch(query, key, value, attn_mask=attn_mask, **rest)

    def reduce(self: Any, protocol: int) -> tuple:
        _, (_, *arguments), *rest = cls.__reduce_ex__(self, protocol)
        return cls.__new__, (cls, *arguments), *rest

    known = cls.__call__.__globals__
    rotations = {name: per_sample(known[name]) for name in ROTATIONS if name in known}
    call = rebind(cls.__call__, dispatch_attention_fn=attend, **rotations)
    changed = {"__call__": call, "__reduce_ex__": reduce, "stock": cls}
    return type(cls.__name__, (cls,), {**changed, "__module__": cls.__module__})


@contextmanager
def running(layers: "Layers") -> Iterator[None]:
    """Inside, taps of this thread show attention to these layers."""
    before = _running.set(layers)
    try:
        yield
    finally:
        _running.reset(before)


def running_layers() -> "Layers | None":
    """The layers of the session whose block runs in this thread, if one does."""
    return _running.get()


_running: ContextVar["Layers | None"] = ContextVar("layers of which one runs", default=None)
