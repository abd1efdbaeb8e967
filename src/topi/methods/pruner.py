"""Methods that drop reference tokens: score, select, gather."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from topi.errors import ToPiError
from topi.methods.base import Call, Method, check_one_of, check_whole
from topi.models import ModelFacts

FRONT_SHARE = 10 / 57  # ten front layers of FLUX's 57
DROPPED = ("prune", "merge")


def merge_into_nearest(states: Tensor, kept: Tensor) -> Tensor:
    """Average every dropped token into the kept one it resembles most (section 5.3, Table 4).

    The paper says "merge" and no more. Here nearest is by cosine, and a merged token is the plain
    mean of all that it holds, itself included.

    Args:
        states: [B, n, D] of all reference tokens.
        kept: ascending indices [K].

    Returns:
        [B, K, D], in the order of `kept`.
    """
    is_dropped = torch.ones(states.shape[1], dtype=torch.bool, device=states.device)
    is_dropped[kept] = False
    keepers, dropped = states[:, kept].float(), states[:, is_dropped].float()
    unit = torch.nn.functional.normalize
    nearest = (unit(dropped, dim=-1) @ unit(keepers, dim=-1).mT).argmax(-1, keepdim=True)
    sums = keepers.scatter_add(1, nearest.expand_as(dropped), dropped)
    ones = torch.ones_like(nearest, dtype=sums.dtype)
    counts = torch.ones_like(sums[..., :1]).scatter_add(1, nearest, ones)
    return (sums / counts).to(states.dtype)


@dataclass
class ReferencePruner(Method):
    """Algorithm 1 without the choice of tokens: when all are kept, when not, from which layer on.

    Args:
        update_every: steps from one anchor to the next (Delta T); 0: the first anchor is the only
            one, and its mask stays to the end (the static mask of Fig. 11).
        first_anchor: the first anchor step, 0-based; before it all tokens are kept. 2 is what the
            paper's Fig. 7 shows (t = 38, 28, 18, 8 of 40).
        front_layers: the first K layers are exempt (section 4.3); tokens are dropped once, before
            layer K.
        dropped: "prune" drops the other tokens, "merge" averages them into the kept ones (Table 4).
    """

    update_every: int = 10
    first_anchor: int = 2
    front_layers: int = 10
    dropped: str = "prune"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ToPiError: a value is out of range.
        """
        for name in ("update_every", "first_anchor", "front_layers"):
            check_whole(name, getattr(self, name), least=0)
        check_one_of("dropped", self.dropped, DROPPED)

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
        if self.update_every == 0:
            return 0 if step >= self.first_anchor else -1
        return (step - self.first_anchor) // self.update_every

    def is_anchor(self, step: int) -> bool:
        """Is t in T_anchor? The step runs in full and renews the mask."""
        since = step - self.first_anchor
        if self.update_every == 0:
            return since == 0
        return since >= 0 and since % self.update_every == 0

    def begin(self, call: Call) -> None:
        """Say in the record whether this is an anchor."""
        call.record.anchor = self.is_anchor(call.step)

    def reduce(self, call: Call) -> Tensor | None:
        """Eq. 11: all tokens up to the first anchor and on anchors, else the anchor's choice."""
        if call.step < self.first_anchor or call.record.anchor:
            return None
        return self.kept(call)

    def gather(self, call: Call, states: Tensor, rows: Tensor) -> Tensor:
        """Eq. 11, with what is dropped merged into the rest where that is asked for."""
        if self.dropped == "prune":
            return super().gather(call, states, rows)
        n_target = call.layout.n_target
        merged = merge_into_nearest(states[:, n_target:], rows[n_target:] - n_target)
        return torch.cat([states[:, :n_target], merged], dim=1)

    @abstractmethod
    def kept(self, call: Call) -> Tensor | None:
        """The reference tokens to keep on a pruned step: ascending indices, or None for all."""
