"""Watch how a model attends to its references, for calibration and Figs. 1-3."""

from dataclasses import dataclass, field

from torch import Tensor

from topi.engine import WatchesAttention
from topi.engine.attention import context_sensitivity, reference_attention
from topi.methods.base import Call, Method
from topi.methods.parameters import check_layers
from topi.methods.parts.scores import value_norms
from topi.models import ModelFacts

Key = tuple[int, str, int]


@dataclass
class AttentionProbe(Method, WatchesAttention):
    """Record the context sensitivity S of layers, call by call (Eq. 4, section 4.1).

    It gathers over all pipeline calls made inside one `with` block, and starts anew in the next. No
    method to compare, so it has no `variants`.

    Args:
        layers: the layers to look at, None for all.
        maps: also keep what each reference token receives and its influence.

    Attributes:
        mass: (step, branch, layer) -> for each pipeline call, the share of the target tokens'
            attention that goes to the references (mean over heads, target tokens and batch).
        received: (step, branch, layer) -> for each pipeline call, [B, |C|]: sum_i A_ij, mean over
            heads; empty unless `maps`.
        influence: the same of the layer's term of Eq. 9, [B, |C|]: sum_h ||v_jh|| sum_i A_ijh.
    """

    layers: tuple[int, ...] | None = None
    maps: bool = False
    mass: dict[Key, list[float]] = field(default_factory=dict, init=False, repr=False)
    received: dict[Key, list[Tensor]] = field(default_factory=dict, init=False, repr=False)
    influence: dict[Key, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def prepare(self, model: ModelFacts) -> None:
        """Start a new collection."""
        self._layers = check_layers(
            range(model.depth) if self.layers is None else self.layers, model
        )
        self.mass, self.received, self.influence = {}, {}, {}

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Record one layer of one call."""
        if layer not in self._layers:
            return
        attention = reference_attention(query, key, call.layout, mask)
        where = (call.step, call.branch, layer)
        sensitivity = context_sensitivity(attention, call.layout)
        self.mass.setdefault(where, []).append(float(sensitivity.mean()))
        if self.maps:
            self.received.setdefault(where, []).append(attention.mean(1).cpu())
            terms = value_norms(value, call.layout) * attention
            self.influence.setdefault(where, []).append(terms.sum(1).cpu())
