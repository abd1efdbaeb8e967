"""What a method is to the engine."""

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from topi.engine.call import BlockInput, Call, CallRecord, Merge


class Callbacks(Protocol):
    """What the engine calls; `attend`, `merge`, `stored` only if `observes`, `merges`, `reuses`.

    `skip` is asked before the layers in `decides_before`; if there are none, `remember` is not
    called either.
    """

    front_layers: int
    observes: bool
    merges: bool
    reuses: bool
    decides_before: Collection[int]
    trace: list[CallRecord]

    def begin(self, call: Call) -> None:
        """Before each transformer call."""

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """The target states [B, G, D] after the last block, if `layer` and on need not run."""

    def remember(self, call: Call, states: Tensor) -> None:
        """The target states [B, G, D] after the last block of a call that skipped nothing."""

    def reduce(self, call: Call) -> Tensor | None:
        """Reference tokens to keep: ascending indices [K] or [B, K], or None for all.

        A method that `reuses` has [K] of them in store, and computes only the `live_tokens`.
        """

    def active(self, call: Call) -> Tensor | None:
        """Target tokens to compute: ascending indices, or None for all."""

    def live_tokens(self, call: Call) -> Tensor | None:
        """Reference tokens to compute beside what is in store: ascending indices, or None."""

    def runs_alone(self, call: Call) -> bool:
        """Are the reference tokens first run on their own, at timestep 0?"""

    def gather(self, call: Call, states: Tensor, rows: Tensor) -> Tensor:
        """States [B, N, D] of the image stream to those of its kept rows: [B, n, D]."""

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """How a layer merges its image tokens, if at all."""

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """See what a layer attends to."""

    def text_weight(self, call: Call, layer: int) -> float:
        """How many times its own weight each text key has in the layer's attention."""

    def stored(
        self, call: Call, layer: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Keys and values [B, n, H, D] to attend to beside those that a layer computed."""

    def complete(self, call: Call, output: Tensor) -> Tensor:
        """The transformer's output [B, n, C] with a row for every target token."""

    def watches(self, call: Call, layer: int) -> bool:
        """Does it need to see what this layer attends to?"""

    def end(self, call: Call) -> None:
        """After each transformer call."""

    def reset(self) -> None:
        """Drop the state of a pipeline call."""
