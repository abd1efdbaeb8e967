"""Rotary embeddings whose places differ from sample to sample of a batch."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Rope = Tensor | tuple[Tensor, Tensor]


@cache
def per_sample(rotate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """diffusers' `rotate(x, rope, ...)`, also for a rope with a batch axis.

    Args:
        rotate: from x [B, S, H, D] and a rope [S, ...], complex or (cos, sin), to [B, S, H, D].
    """

    def rotated(x: Tensor, rope: Rope, *rest: Any, **options: Any) -> Tensor:
        if (rope[0] if isinstance(rope, tuple) else rope).ndim == 2:
            return rotate(x, rope, *rest, **options)
        ropes: Iterable[Rope] = zip(*rope, strict=True) if isinstance(rope, tuple) else rope
        samples = zip(x.split(1), ropes, strict=True)
        return torch.cat([rotate(one, own, *rest, **options) for one, own in samples])

    return rotated


def take_rows(states: Tensor, rows: Tensor | slice) -> Tensor:
    """`states` [B, N, ...] at `rows` [n], a slice, or [B, n], the own ones of each sample."""
    if isinstance(rows, slice) or rows.ndim == 1:
        return states[:, rows]
    return states.take_along_dim(rows[(...,) + (None,) * (states.ndim - 2)], dim=1)
