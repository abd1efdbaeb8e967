"""Random reference tokens: the floor that a score has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topi.methods.base import Call, check_share
from topi.methods.pruner import ReferencePruner


@dataclass
class RandomTokens(ReferencePruner):
    """Keep a uniformly random share of the reference tokens, on the anchor schedule of ToPi.

    Every pipeline call draws the same masks; the generator is private.

    Args:
        ratio: share of reference tokens to keep.
        fixed: draw once instead of anew at each anchor. Redrawing lets most tokens be seen at some
            time, a head start over any method that keeps the same tokens throughout.
        seed: of the draws.
    """

    variants: ClassVar = {"random": {}}

    ratio: float = 0.5
    fixed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("ratio", self.ratio)

    def kept(self, call: Call) -> Tensor:
        """This anchor's draw."""
        with call.timed("selection_seconds"):
            draw = 0 if self.fixed else self.anchor_number(call.step)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
            count = max(1, round(self.ratio * call.layout.n_reference))
            order = torch.randperm(call.layout.n_reference, generator=generator)
            return order[:count].sort().values
