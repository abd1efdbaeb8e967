"""Random reference tokens: the floor that a score has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from topi.methods.base import Call
from topi.methods.parameters import check_one_of, check_share, check_whole
from topi.methods.parts.pruner import ReferencePruner

REDRAWS = ("anchor", "step")


@dataclass
class RandomTokens(ReferencePruner):
    """Keep a uniformly random share of the reference tokens, on the anchor schedule of ToPi.

    Both CFG branches keep the same. All pipeline calls within one `with` draw the same masks; a
    bench gives every sample a seed there, so that luck evens out. The generator is private.

    Args:
        ratio: share of reference tokens to keep.
        fixed: one draw for the whole run. Redrawing lets most tokens be seen at some time, a head
            start over what keeps the same throughout.
        redraw: when to draw anew otherwise: at each "anchor" or at every "step".
        seed: of the draws, beside the one given to the `with`.
    """

    variants: ClassVar = {"random": {}}

    ratio: float = 0.5
    fixed: bool = False
    redraw: str = "anchor"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("ratio", self.ratio)
        check_one_of("redraw", self.redraw, REDRAWS)
        check_whole("seed", self.seed, least=0)

    def kept(self, call: Call) -> Tensor:
        """The draw whose turn it is."""
        with call.timed("selection_seconds"):
            turn = call.turn if self.redraw == "step" else self.anchor_number(call.turn)
            draw = 0 if self.fixed else turn
            entropy = np.random.SeedSequence((self.seed, self._seed, draw))
            generator = torch.Generator().manual_seed(int(entropy.generate_state(1)[0]))
            count = max(1, round(self.ratio * call.layout.n_reference))
            count = -(-count // self.round_to) * self.round_to
            order = torch.randperm(call.layout.n_reference, generator=generator)
            return order[:count].sort().values
