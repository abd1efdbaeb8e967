"""What a method is to the engine: a plan for each call, and capabilities that it may have.

A method without a capability costs nothing where that capability would be asked. The engine, the
stack of a method with a cache, and the replay that counts FLOPs use these same definitions.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from topi.engine.call import BlockInput, Call, CallRecord, Merge
from topi.models.rope import take_rows

KeyValue = tuple[Tensor, Tensor]
"""Key and value, each [B, n, H, D]."""
C = TypeVar("C")


@dataclass(frozen=True)
class Plan:
    """What a transformer call keeps, computes and takes from a store, from one layer on.

    Args:
        kept: reference tokens that the target sees: ascending indices [K], or [B, K] if each sample
            of the batch keeps its own; None: all.
        from_layer: the first layer that this is about; those before it run on all tokens.
        stored: the kept tokens' keys and values come from a store (`ReusesKeys`), so that of the
            reference tokens only `live` ones are computed.
        live: with `stored`, reference tokens to compute nevertheless: ascending indices, or None.
            They stand at the end of a layer's sequence; what is stored must leave them out.
        target: with `stored`, target tokens to compute: ascending indices; None: all. Something
            has to make up for the others (`CompletesOutput`).
        alone: the reference tokens first run on their own, at timestep 0 and attending to each
            other only; `attend` sees them in a call that says `alone`.
    """

    kept: Tensor | None = None
    from_layer: int = 0
    stored: bool = False
    live: Tensor | None = None
    target: Tensor | None = None
    alone: bool = False


FULL = Plan()
"""Everything is computed."""


class Planner(Protocol):
    """A method, as the engine calls it.

    Attributes:
        parts: the objects that may have capabilities: the method, or the members of a stack.
        trace: one record per transformer call of the latest pipeline call.
        plans_before: layers before which `plan` is asked again, inside a call.
    """

    name: str
    trace: list[CallRecord]

    @property
    def parts(self) -> Sequence[Any]: ...

    @property
    def plans_before(self) -> Collection[int]: ...

    def numbered(self, call: Call) -> Call:
        """The call with its `turn`: the step as the method's schedule counts it."""

    def reset(self) -> None:
        """Drop the state of a pipeline call."""

    def begin(self, call: Call) -> None:
        """Before each transformer call that has references."""

    def plan(self, call: Call, layer: int = 0) -> Plan:
        """What is kept, computed and taken from a store; before a later layer: from there on."""

    def end(self, call: Call) -> None:
        """After each transformer call that did not fail."""


class WatchesAttention:
    """Sees what layers attend to."""

    def watches(self, call: Call, layer: int) -> bool:
        """True if `attend` is to be called for this layer. What is not watched can run compiled."""
        return True

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Look at query, key, value [B, S, H, D] after norm and RoPE, and at the mask, if any."""


class WeighsText(WatchesAttention, ABC):
    """Changes how much the prompt counts in attention."""

    @abstractmethod
    def text_weight(self, call: Call, layer: int) -> float:
        """Factor on the weight of each text key in `layer`'s attention; asked after `attend`."""


class ReusesKeys(WatchesAttention, ABC):
    """Has keys and values in store, which layers attend to without computing them."""

    @abstractmethod
    def stored(self, call: Call, layer: int, key: Tensor, value: Tensor) -> KeyValue | None:
        """Keys and values [B, n, H, D] that `layer` attends to beside its own [B, S, H, D]."""


class MergesTokens(ABC):
    """Runs layers on fewer image tokens, each of which stands for several."""

    @abstractmethod
    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """How `layer` merges its image tokens, given their normed states [B, N, D]; None: not."""


class SkipsLayers:
    """Predicts what layers would compute from earlier steps."""

    @property
    def decides_before(self) -> Collection[int]:
        """Layers before which `skip` is asked; without any, `remember` is not called either."""
        return ()

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """The target states [B, G, D] after the last block, if `layer` and on need not run."""

    def remember(self, call: Call, states: Tensor) -> None:
        """Note the target states [B, G, D] after the last block of a call that skipped nothing."""


class GathersStates:
    """Does more than taking rows where tokens are dropped."""

    def gather(self, call: Call, states: Tensor, rows: Tensor) -> Tensor:
        """States [B, N, D] of the image stream to those of its kept rows [n] or [B, n]."""
        return take_rows(states, rows)


class CompletesOutput(ABC):
    """Sees, and may change, what the transformer returns."""

    @abstractmethod
    def complete(self, call: Call, output: Tensor) -> Tensor:
        """The transformer's output [B, n, C] with a row for every target token."""


class FreezesTargets(CompletesOutput):
    """Leaves target tokens out of a call (`Plan.target`) and makes up for them in `complete`."""


def capable(parts: Sequence[Any], capability: type[C]) -> C | None:
    """The part of a method that has a capability; None if none has it.

    One that skips layers counts only if it decides before some layer.
    """
    for part in parts:
        skips_nothing = isinstance(part, SkipsLayers) and not part.decides_before
        if isinstance(part, capability) and not (capability is SkipsLayers and skips_nothing):
            return part
    return None
