"""ToPi: score the reference tokens at anchor steps, keep the influential ones in between.

Equations and Algorithm 1 are those of "Token Pruning for In-Context Generation in Diffusion
Transformers" (arXiv 2602.01609). Algorithm 1, line by line:

    the anchor steps T_anchor       `is_anchor` of AnchorSchedule (parts/schedule.py)
    lines 11-13, Eq. 9              `ToPi.attend`, `influence`
    lines 14-16, Eq. 10             `ToPi.choose`, `smallest_set`
    Eq. 11, what a step computes    `plan` of ReferencePruner (parts/pruner.py)
    Eq. 12, attention to what is    the engine, from the layer on that the plan names
    left, from layer K on

What the paper leaves open (CFG branches, batches, rounding, a floor for each reference) is in
parts/anchor_masks.py, the scores of its ablations in parts/scores.py.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from topi.engine.attention import own_rows, reference_attention
from topi.errors import ToPiError
from topi.methods.base import Call
from topi.methods.parameters import check_each, check_layers, check_one_of, check_share, check_whole
from topi.methods.parts.anchor_masks import AnchorMasks, Order, static_set
from topi.methods.parts.pruner import first_ranked
from topi.methods.parts.scores import ABLATIONS, Score, value_norms
from topi.models import Layout, ModelFacts


def influence(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """Eq. 9, one layer: I_j = sum_h ||v_jh|| sum_i A_ijh, from [B, S, H, D] to [B, |C|]."""
    return (value_norms(value, layout) * reference_attention(query, key, layout, mask)).sum(1)


def smallest_set(
    scores: Tensor,
    tau: float,
    order: Order = "highest",
    mass: Tensor | None = None,
) -> Tensor:
    """Eq. 10, Algorithm 1 lines 14-16: the fewest tokens that hold `tau` of the total score.

    K is the smallest count with sum_{m <= K} I_pi(m) >= tau I_total. Ties go to the lower index, at
    least one token stays, and all stay if tau >= 1 or the scores tell nothing (their total is zero
    or not finite). Nothing leaves the device: the count is a tensor.

    Args:
        scores: [..., |C|], not negative.
        tau: in [0, 1].
        order: accumulate from the highest score, or, to see what that is worth, from the lowest.
        mass: [..., |C|] what tau is a share of, if that is not the scores.

    Returns:
        Boolean [..., |C|].
    """
    scores = scores.double()
    mass = scores if mass is None else mass.double()
    ranked = scores.sort(dim=-1, descending=order == "highest", stable=True).indices
    held = mass.gather(-1, ranked).cumsum(-1)
    total = held[..., -1:]
    count = 1 + (held < tau * total).sum(-1, keepdim=True)
    tells = (total > 0) & (total < torch.inf)
    return first_ranked(ranked, count) | ~tells | (tau >= 1)


SCORES: dict[str, Score] = {"influence": influence, **ABLATIONS}
"""Name of a score -> its function."""

# Compared by identity: `ToPi(ratio=0.5)` did not ask for a tau, `ToPi(tau=0.85, ratio=0.5)` did.
DEFAULT_TAU = 0.85


@dataclass
class ToPi(AnchorMasks):
    """Influence-guided token pruning (sections 4.1-4.3, Algorithm 1).

    Args:
        tau: share of the total score to keep, in [0, 1] (Eq. 10).
        ratio: instead of tau (which is then None), the fixed share of tokens to keep (section 5.3).
        layers: representative layers, global and 0-based (Eq. 5). None: those published for
            FLUX.1 Kontext and Qwen-Image-Edit (appendix C.3), or those the transformer's config
            names under `representative_layers`.
        score: "influence" (Eq. 9), "attention" or "similarity" (Table 3), "value_norm" (Eq. 9
            without A), or "leave_one_out" (Eq. 8 without its approximation).
        cfg_mask: "shared": one mask for both branches of classifier-free guidance, from the sum of
            their scores, each branch normalised; "cond": from the first branch; "separate": a mask
            for each.
        batch_mask: in a batch, "union": every sample keeps what any of them needs; "own": each
            keeps its own best tokens, as many as the one that needs the most.
        normalise_layers: give every layer the same total score, where Eq. 9 as printed lets a
            layer with large values dominate.
        reference_floor: share of each reference image's tokens that stays in any case; Eq. 10
            ranks the tokens of all references together and can drop an image altogether.
        order: "highest" scores stay; "lowest" is the control.
    """

    variants: ClassVar = {"topi": {}}

    tau: float | None = DEFAULT_TAU
    ratio: float | None = None
    layers: tuple[int, ...] | None = None
    score: str = "influence"
    cfg_mask: str = "shared"
    batch_mask: str = "union"
    normalise_layers: bool = False
    reference_floor: float = 0.0
    order: str = "highest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None:
            if self.tau is not None and self.tau is not DEFAULT_TAU:
                raise ToPiError(
                    f"tau={self.tau} and ratio={self.ratio} exclude each other; give one of them."
                )
            self.tau = None
        elif self.tau is None:
            raise ToPiError("Neither tau nor ratio is given; give one of them.")
        for name in ("tau", "ratio"):
            if (value := getattr(self, name)) is not None:
                check_share(name, value)
        check_one_of("score", self.score, SCORES)
        self.check_policies()
        if self.layers is not None:
            self.layers = check_each("layers", self.layers, partial(check_whole, least=0))

    def prepare(self, model: ModelFacts) -> None:
        """Settle the representative layers."""
        super().prepare(model)
        layers = self.layers or model.representative_layers
        if layers is None:
            raise ToPiError(
                f"No representative layers are known for this {model.name} of {model.depth} "
                "layers; pass layers=."
            )
        self._layers = check_layers(layers, model)

    def watches(self, call: Call, layer: int) -> bool:
        """Representative layers at anchors."""
        return layer in self._layers and self.scores_now(call)

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Eq. 9, Algorithm 1 lines 11-13: add up one representative layer's scores."""
        own_rows(query, key)  # the layer's own work, and not to be timed as scoring
        with call.timed("scoring_seconds"), torch.no_grad():
            scores = SCORES[self.score](query, key, value, call.layout, mask)
            if self.normalise_layers:
                scores = scores / scores.sum(-1, keepdim=True)
            self.add_scores(call, layer, scores)

    def choose(self, scores: Tensor, layout: Layout, mass: Tensor | None = None) -> Tensor:
        """The tokens to keep of each sample, from its scores [B, |C|]: boolean [B, |C|].

        Args:
            mass: see `smallest_set`.
        """
        if self.ratio is not None:
            kept = static_set(scores, self.ratio, self.order)
        else:
            kept = smallest_set(scores, self.tau, self.order, mass)
        return self.with_floor(kept, scores, layout)
