"""Reference-KV caching: the references' keys and values of one step serve the next ones.

As FLUX.2-klein-KV does it in diffusers, for models that were not trained for it. What is stored are
keys behind norm and RoPE, and values, of every layer; a cached step computes text and target only.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from topi.engine import Plan
from topi.errors import ToPiError
from topi.methods.base import Call
from topi.methods.parts.kv_store import Drift, KVReuse, check_drift
from topi.models import ModelFacts


@dataclass
class RefKV(KVReuse):
    """Compute the reference tokens at anchor steps only, and attend to all of them at every step.

    Args:
        causal: klein's own variant. References run once, at timestep 0 and attending to each other
            only, so that reuse is exact; but no step is the unmodified one, as Kontext and
            Qwen-Image-Edit were trained with references that attend to text and target.
            False: anchors are the unmodified step, and reuse is off by what has changed since.
        drift: an anchor comes when the target's keys in a representative layer, or in the middle
            one if none is known, have changed by more than this (mean absolute, relative) since the
            last one, not every `update_every` steps; to see it, every step waits for the device in
            each of these layers.
    """

    variants: ClassVar = {
        "ref_kv": {"causal": False},
        "ref_kv_causal": {
            "causal": True,
            "drift": None,
            "update_every": 0,
            "first_anchor": 0,
            "front_layers": 0,
        },
    }

    causal: bool = False
    drift: float | None = None
    _watched: frozenset[int] = field(default=frozenset(), init=False, repr=False, compare=False)
    _drift: Drift = field(default_factory=Drift, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_drift(self.drift)
        if self.causal and self.drift is not None:
            raise ToPiError("Causal references do not change with the target; leave drift out.")

    def prepare(self, model: ModelFacts) -> None:
        """Settle where the drift is looked at."""
        super().prepare(model)
        self._watched = frozenset(model.representative_layers or (model.depth // 2,))

    def reset(self) -> None:
        """Also forget the target's keys."""
        super().reset()
        self._drift = Drift()

    def is_anchor(self, step: int) -> bool:
        """On schedule, or where the drift has become too large."""
        if self.drift is None:
            return super().is_anchor(step)
        return step == self.first_anchor or step in self._drift.due

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Also see how far the target's keys have drifted."""
        super().attend(call, layer, query, key, value, mask)
        watched = layer in self._watched and call.turn >= self.first_anchor
        if self.drift is not None and watched:
            self._drift.see(call, layer, key, self.drift)

    def plan(self, call: Call, layer: int = 0) -> Plan:
        """A causal reference token never runs with the target, but alone at an anchor."""
        if not self.causal:
            return super().plan(call, layer)
        return replace(self.from_store(call), alone=call.record.anchor)

    def fills_store(self, call: Call) -> bool:
        """The anchor, or the references alone."""
        return call.alone if self.causal else super().fills_store(call)
