"""Reference-KV caching: the references' keys and values of one step serve the next ones.

As FLUX.2-klein-KV does it in diffusers, for models that were not trained for it. What is stored are
keys behind norm and RoPE, and values, of every layer; a cached step computes text and target only.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topi.methods.base import Call
from topi.methods.kv_store import KVReuse


@dataclass
class RefKV(KVReuse):
    """Compute the reference tokens at anchor steps only, and attend to all of them at every step.

    Args:
        causal: klein's own variant. References run once, at timestep 0 and attending to each other
            only, so that reuse is exact; but no step is the unmodified one, as Kontext and
            Qwen-Image-Edit were trained with references that attend to text and target.
            False: anchors are the unmodified step, and reuse is off by what has changed since.
    """

    variants: ClassVar = {
        "ref_kv": {"causal": False},
        "ref_kv_causal": {
            "causal": True,
            "update_every": 0,
            "first_anchor": 0,
            "front_layers": 0,
        },
    }

    causal: bool = False

    def runs_alone(self, call: Call) -> bool:
        """Klein's extraction."""
        return self.causal and call.record.anchor

    def reduce(self, call: Call) -> Tensor | None:
        """The target never computes with a causal reference token."""
        return self.seen(call) if self.causal else super().reduce(call)

    def fills_store(self, call: Call) -> bool:
        """The anchor, or the references alone."""
        return call.alone if self.causal else super().fills_store(call)
