"""Anchor steps: when a method looks at all reference tokens again."""

from dataclasses import dataclass

from topi.errors import ToPiError
from topi.methods.base import Call, Method
from topi.methods.parameters import check_whole
from topi.models import ModelFacts

FRONT_SHARE = 10 / 57  # ten front layers of FLUX's 57


@dataclass
class AnchorSchedule(Method):
    """T_anchor of Algorithm 1, and the front layers that are exempt from what a method saves.

    Args:
        update_every: steps from one anchor to the next (Delta T); 0: the first anchor is the only
            one (the static mask of Fig. 11).
        first_anchor: the first anchor step, 0-based; before it nothing is saved. 2 is what the
            paper's Fig. 7 shows (t = 38, 28, 18, 8 of 40).
        front_layers: the first K layers are exempt (section 4.3).
    """

    update_every: int = 10
    first_anchor: int = 2
    front_layers: int = 10

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ToPiError: a value is out of range.
        """
        super().__post_init__()
        for name in ("update_every", "first_anchor", "front_layers"):
            check_whole(name, getattr(self, name), least=0)

    def prepare(self, model: ModelFacts) -> None:
        """Check `front_layers` against the model's depth."""
        if self.front_layers >= model.depth:
            proportional = max(1, round(model.depth * FRONT_SHARE))
            raise ToPiError(
                f"front_layers={self.front_layers} leaves none of the {model.depth} layers of this "
                f"{model.name} to save on; front_layers={proportional} is the paper's proportion."
            )

    @property
    def drops_from(self) -> int:
        """Behind the front layers."""
        return self.front_layers

    def anchor_number(self, step: int) -> int:
        """How many anchors came before the interval of `step`; negative before the first anchor."""
        if self.update_every == 0:
            return 0 if step >= self.first_anchor else -1
        return (step - self.first_anchor) // self.update_every

    def is_anchor(self, step: int) -> bool:
        """Is t in T_anchor? The step runs in full and renews what the method goes by."""
        since = step - self.first_anchor
        if self.update_every == 0:
            return since == 0
        return since >= 0 and since % self.update_every == 0

    def anchors(self, call: Call) -> bool:
        """True if the call is one of an anchor."""
        return self.is_anchor(call.turn)

    def begin(self, call: Call) -> None:
        """Say in the record whether this is an anchor."""
        call.record.anchor = self.anchors(call)

    def runs_in_full(self, call: Call) -> bool:
        """True if everything is computed: before the first anchor, and on anchors."""
        return call.turn < self.first_anchor or call.record.anchor
