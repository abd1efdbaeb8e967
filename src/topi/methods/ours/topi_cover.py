"""ToPi-Cover: keep the tokens that together cover what influences the target.

Eq. 9 scores tokens one by one, but neighbours that are redundant one by one cannot be dropped
together: top-K leaves holes, and the same ones at every step. Here influence is what is to be
covered, by kept tokens that are near and alike (facility location), and tokens that were kept just
now stand back for others. Ours; no paper.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from topi.errors import ToPiError
from topi.methods.base import Call
from topi.methods.paper.topi import ToPi
from topi.methods.parameters import check_one_of, check_share, check_whole
from topi.methods.parts.coverage import Neighbourhood, covering_gains, neighbourhood
from topi.models import Layout

REDRAWS = ("anchor", "step")


@dataclass
class ToPiCover(ToPi):
    """ToPi with another choice of tokens, made anew at every step from the last anchor's scores.

    Args:
        tau: share of the scores' sum to cover, at least: f(S) >= tau sum_i w_i. It needs fewer
            tokens than the same tau of `ToPi`, as each also covers some of its neighbours' weight.
        score: the weights w_i; "leave_one_out" is the exact change of the target outputs.
        radius: tokens along rows and columns that a kept one can cover.
        damping: factor of a token's gain after it was kept; it recovers by half at each new mask.
            1 does not damp; more than 0.
        redraw: a new mask at each "anchor" or at every "step".
    """

    variants: ClassVar = {"topi_cover": {}}

    score: str = "leave_one_out"
    radius: int = 1
    damping: float = 0.1
    redraw: str = "step"
    _latents: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _weights: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _near: list[list[Neighbourhood]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    _used: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _turn: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("radius", self.radius, least=1)
        check_share("damping", self.damping)
        if self.damping == 0:
            raise ToPiError("damping=0 would never let a token come back; use 0.1, say.")
        check_one_of("redraw", self.redraw, REDRAWS)
        if self.covers and self.order != "highest":
            raise ToPiError("A cover has no lowest tokens; leave order=highest.")

    @property
    def covers(self) -> bool:
        """True if the choice is by coverage; else it is ToPi's own."""
        return True

    @property
    def draws(self) -> bool:
        """True if it chooses between anchors, on the host."""
        return self.covers

    def reset(self) -> None:
        """Also drop what the masks come from."""
        super().reset()
        self._latents, self._weights, self._near = None, {}, []
        self._used, self._turn = {}, {}

    def begin(self, call: Call) -> None:
        """Take the references to the host; they do not change in a pipeline call."""
        super().begin(call)
        if self.draws and self._latents is None:
            self._latents = call.latents[:, call.layout.n_target :].cpu()

    def end(self, call: Call) -> None:
        """See who is near whom while the device still works on the first call."""
        super().end(call)
        if self.draws and not self._near:
            with call.timed("selection_seconds"):
                self._near = [self._neighbourhoods(each, call.layout) for each in self._latents]

    def settle(self, call: Call) -> None:
        """After an anchor, hold the scores from which the masks of the steps after it are made."""
        scores, mask = self.combined(call, self._scores), self.mask_of(call.branch)
        if self.draws:
            scores = self._weights[mask] = scores.cpu()
        if not self.covers:
            self._kept[mask] = self.chosen(scores, call.layout)

    def _neighbourhoods(self, latents: Tensor, layout: Layout) -> list[Neighbourhood]:
        """Of each reference image of a sample, whose latents are [|C|, C]."""
        return [
            neighbourhood(grid, latents[rows], self.radius)
            for grid, rows in zip(layout.reference_grids, layout.reference_slices, strict=True)
        ]

    def kept(self, call: Call) -> Tensor | None:
        """The mask whose turn it is; a branch that has seen no anchor keeps all."""
        if not self.covers:
            return super().kept(call)
        mask = self.mask_of(call.branch)
        if mask not in self._weights:
            return None
        turn = call.turn if self.redraw == "step" else self._scored_step
        if self._turn.get(mask) != turn:
            with call.timed("selection_seconds"):
                self._turn[mask], self._kept[mask] = turn, self._cover(mask, call.layout)
        return self._kept[mask]

    def _cover(self, mask: str, layout: Layout) -> Tensor:
        """The tokens that the batch needs: see `of_batch`."""
        return self.in_turn(
            mask, layout, self._used, lambda worth, gains: self.choose(worth, layout, gains)
        )

    def in_turn(
        self,
        mask: str,
        layout: Layout,
        used: dict[str, Tensor],
        choose: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Tokens that cover the weights, those lately used held back; now they are used, too.

        Args:
            mask: whose weights.
            used: how much each token was, [B, |C|] of each mask.
            choose: from damped and true gains [B, |C|] to boolean [B, |C|].

        Returns:
            Those of the batch: see `of_batch`.
        """
        weights = self._weights[mask]
        times = used.setdefault(mask, torch.zeros_like(weights))
        factors = self.damping ** times.div_(2)
        gains = torch.zeros_like(weights)
        for sample, near in enumerate(self._near):
            for image, rows in zip(near, layout.reference_slices, strict=True):
                gains[sample, rows] = covering_gains(
                    image, weights[sample, rows], factors[sample, rows]
                )
        chosen = choose(gains * factors, gains)
        times += chosen
        return self.of_batch(chosen, gains * factors)
