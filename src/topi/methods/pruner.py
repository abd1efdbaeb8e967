"""Methods that drop reference tokens: score, select, gather."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from topi.errors import ToPiError
from topi.methods.base import Call, Method
from topi.models import ModelFacts

FRONT_SHARE = 10 / 57  # ten front layers of FLUX's 57


@dataclass
class ReferencePruner(Method):
    """Algorithm 1 without the choice of tokens: when all are kept, when not, from which layer on.

    Args:
        update_every: steps from one anchor to the next (Delta T).
        first_anchor: the first anchor step, 0-based; before it all tokens are kept. 2 is what the
            paper's Fig. 7 shows (t = 38, 28, 18, 8 of 40).
        front_layers: the first K layers are exempt (section 4.3); tokens are dropped once, before
            layer K.
    """

    update_every: int = 10
    first_anchor: int = 2
    front_layers: int = 10

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ToPiError: a value is out of range.
        """
        for name, least in (("update_every", 1), ("first_anchor", 0), ("front_layers", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ToPiError(f"{name}={value!r} must be a whole number of at least {least}.")

    def prepare(self, model: ModelFacts) -> None:
        """Check `front_layers` against the model's depth."""
        if self.front_layers >= model.depth:
            proportional = max(1, round(model.depth * FRONT_SHARE))
            raise ToPiError(
                f"front_layers={self.front_layers} leaves none of the {model.depth} layers of this "
                f"{model.name} to prune; front_layers={proportional} is the paper's proportion."
            )

    def anchor_number(self, step: int) -> int:
        """How many anchors came before the interval of `step`; negative before the first anchor."""
        return (step - self.first_anchor) // self.update_every

    def is_anchor(self, step: int) -> bool:
        """Is t in T_anchor? The step runs in full and renews the mask."""
        return step >= self.first_anchor and (step - self.first_anchor) % self.update_every == 0

    def begin(self, call: Call) -> None:
        """Say in the record whether this is an anchor."""
        call.record.anchor = self.is_anchor(call.step)

    def reduce(self, call: Call) -> Tensor | None:
        """Eq. 11: all tokens up to the first anchor and on anchors, else the anchor's choice."""
        if call.step < self.first_anchor or call.record.anchor:
            return None
        return self.kept(call)

    @abstractmethod
    def kept(self, call: Call) -> Tensor | None:
        """The reference tokens to keep on a pruned step: ascending indices, or None for all."""
