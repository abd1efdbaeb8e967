"""What is known of the transformer call in progress."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from topi.engine.call import Call, Merge
from topi.engine.interface import Plan


@dataclass
class CallState:
    """The transformer call in progress, as far as it has come.

    Args:
        call: the call, or None outside of one and where there is no reference to work on.
        plan: what the method wants of it.
        rows: [n], or [B, n] where each sample has its own: image-stream rows computed from
            `plan.from_layer` on, or None for all.
        layer: the block that runs.
        predicted: [B, G, D] target states that stand for all blocks from some layer on, or None.
        open_merge: how the running block merges.
        beside: key and value [B, n, H, D] of tokens that the running layer attends to but does not
            compute, or None.
        awaited: the method has to see the running layer's attention, and has not done so yet.
        rope: the rotary rows of the rows that are computed, once they have been gathered.
    """

    call: Call | None = None
    plan: Plan | None = None
    rows: Tensor | None = None
    layer: int = -1
    predicted: Tensor | None = None
    open_merge: Merge | None = None
    beside: tuple[Tensor, Tensor] | None = None
    awaited: bool = False
    rope: Any = None
