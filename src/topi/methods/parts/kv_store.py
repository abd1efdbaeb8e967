"""Keys and values of reference tokens, kept from anchor steps for the steps in between."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from topi.engine import FULL, Plan, ReusesKeys
from topi.methods.base import Call
from topi.methods.parameters import check_at_least_zero
from topi.methods.parts.schedule import AnchorSchedule
from topi.methods.parts.temporal import relative_change

Pair = tuple[Tensor, Tensor]


def take(pair: Pair, rows: Tensor) -> Pair:
    """A pair of [B, n, H, D] to those of some rows [m]: [B, m, H, D]."""
    key, value = pair
    return key[:, rows], value[:, rows]


@lru_cache(maxsize=8)
def every(n: int) -> Tensor:
    """All indices below `n`; the same tensor each time, which the engine looks at once."""
    return torch.arange(n)


@dataclass
class KVStore:
    """(key, value), each [B, n, H, D] after norm and RoPE, by CFG branch and layer.

    Branches never share a pair: keys and values depend on the text. FLUX.1 Kontext at 1024 x 1024
    in bfloat16 stores 57 layers x 2 x 4096 tokens x 3072 x 2 bytes = 2.87 GB per reference and
    branch, Qwen-Image-Edit 3.02 GB.
    """

    pairs: dict[str, dict[int, Pair]] = field(default_factory=dict)

    def put(self, branch: str, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep copies, so that a part of a long sequence does not hold all of it."""
        self.pairs.setdefault(branch, {})[layer] = (key.clone(), value.clone())

    def get(self, branch: str, layer: int) -> Pair | None:
        """What was kept, if anything was."""
        return self.pairs.get(branch, {}).get(layer)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(
            each.nbytes for pairs in self.pairs.values() for pair in pairs.values() for each in pair
        )


@dataclass
class Drift:
    """How far the target's keys have moved from those of the last anchor, in some layers.

    Args:
        due: steps that are to be anchors, as some layer's keys had moved too far in the one before.
    """

    due: set[int] = field(default_factory=set)
    anchored: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def see(self, call: Call, layer: int, key: Tensor, most: float) -> None:
        """Look at a layer's key [B, S, H, D]; `most` is a mean absolute, relative change."""
        targets = key[:, call.layout.targets]
        if call.record.anchor:
            self.anchored[call.branch, layer] = targets.clone()
        elif relative_change(targets, self.anchored[call.branch, layer]) > most:
            self.due.add(call.turn + 1)


def check_drift(drift: float | None) -> None:
    """Raises ToPiError for what is neither None nor a number of at least 0."""
    if drift is not None:
        check_at_least_zero("drift", drift)


@dataclass
class KVReuse(AnchorSchedule, ReusesKeys):
    """Compute reference tokens at anchor steps only; between them the target attends to a store.

    A branch with nothing in store has its anchor when it comes. See `KVStore` for the memory.

    Args:
        front_layers: layers that compute all reference tokens at every step.
    """

    first_anchor: int = 0
    front_layers: int = 0
    _store: KVStore = field(default_factory=KVStore, init=False, repr=False, compare=False)

    def reset(self) -> None:
        """Free the store."""
        super().reset()
        self._store = KVStore()

    def anchors(self, call: Call) -> bool:
        """By the schedule, or as there is nothing in store."""
        late = call.turn >= self.first_anchor and call.branch not in self._store.pairs
        return super().anchors(call) or late

    def begin(self, call: Call) -> None:
        """Note what is in store, should the call be skipped."""
        super().begin(call)
        call.record.store_bytes = self.store_bytes

    def plan(self, call: Call, layer: int = 0) -> Plan:
        """What of the store the target sees, unless all reference tokens are computed."""
        return FULL if self.runs_in_full(call) else self.from_store(call)

    def from_store(self, call: Call) -> Plan:
        """The plan of a call that takes reference tokens from the store."""
        return Plan(
            self.seen(call),
            self.front_layers,
            stored=True,
            live=self.live_tokens(call),
            target=self.active(call),
        )

    def active(self, call: Call) -> Tensor | None:
        """Target tokens to compute: ascending indices; None: all."""

    def live_tokens(self, call: Call) -> Tensor | None:
        """Reference tokens to compute beside those in store: ascending indices; None: none."""

    def seen(self, call: Call) -> Tensor:
        """Reference tokens in store that the target attends to: ascending indices."""
        return every(call.layout.n_reference)

    def fills_store(self, call: Call) -> bool:
        """True if the call computes what is to be stored."""
        return call.record.anchor

    def watches(self, call: Call, layer: int) -> bool:
        """Every layer has keys and values to store."""
        return True

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Store a layer's keys and values of what `to_store` says."""
        if super().watches(call, layer):
            super().attend(call, layer, query, key, value, mask)
        if self.fills_store(call) and layer >= self.front_layers:
            rows = self.to_store(call)
            self._store.put(call.branch, layer, key[:, rows], value[:, rows])

    def to_store(self, call: Call) -> slice:
        """The rows to store: those of the references, which always come last."""
        return slice(-call.layout.n_reference, None)

    def stored(self, call: Call, layer: int, key: Tensor, value: Tensor) -> Pair | None:
        """What the anchor stored, where the call computes no reference token."""
        if call.record.kept is None or layer < self.front_layers:
            return None
        return self._store.get(call.branch, layer)

    def end(self, call: Call) -> None:
        """Note what is in store now."""
        super().end(call)
        call.record.store_bytes = self.store_bytes

    @property
    def store_bytes(self) -> int:
        """Memory held for later steps."""
        return self._store.nbytes
