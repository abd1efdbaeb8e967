"""ToPi: score the reference tokens at anchor steps, keep the influential ones in between.

Equations and Algorithm 1 are those of "Token Pruning for In-Context Generation in Diffusion
Transformers".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from topi.engine import WatchesAttention
from topi.engine.attention import output_change, own_rows, reference_attention
from topi.errors import ToPiError
from topi.methods.base import Call
from topi.methods.parameters import check_each, check_layers, check_one_of, check_share, check_whole
from topi.methods.pruner import ReferencePruner, filled_up, first_ranked, multiple_of, round_up
from topi.models import Layout, ModelFacts

Score = Callable[[Tensor, Tensor, Tensor, Layout, Tensor | None], Tensor]


def influence(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """Eq. 9, one layer: I_j = sum_h ||v_jh|| sum_i A_ijh, from [B, S, H, D] to [B, |C|]."""
    return (value_norms(value, layout) * reference_attention(query, key, layout, mask)).sum(1)


def attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """Attn-Only of Table 3: Eq. 9 without the value norm."""
    return reference_attention(query, key, layout, mask).sum(1)


def similarity(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """Feature Similarity of Table 3: mean cosine to the target tokens, shifted to [0, 1].

    The paper does not say of which features. These are the values, per head: a plain projection of
    the layer's input, where queries and keys carry positions. The shift keeps the order and gives
    Eq. 10 a mass.
    """
    targets, references = (
        torch.nn.functional.normalize(value[:, rows].float(), dim=-1)
        for rows in (layout.targets, layout.references)
    )
    cosine = torch.einsum("bjhd,bhd->bjh", references, targets.mean(1)).mean(-1)
    return (1 + cosine) / 2


def value_norm(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """Eq. 9 without the attention: sum_h ||v_jh||."""
    return value_norms(value, layout).sum(1)


def leave_one_out(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """The exact change of the target outputs, sum_h sum_i A_ij / (1 - A_ij) ||v_j - y_i||.

    Eq. 8 approximates it: it leaves out that the softmax spreads a dropped token's weight over the
    others.
    """
    return output_change(query, key, value, layout, mask).sum(1)


def value_norms(value: Tensor, layout: Layout) -> Tensor:
    """||v_jh|| of the reference tokens: [B, H, |C|]."""
    references = value[:, layout.references]
    return torch.linalg.vector_norm(references, dim=-1, dtype=torch.float32).transpose(1, 2)


SCORES: dict[str, Score] = {
    score.__name__: score for score in (influence, attention, similarity, value_norm, leave_one_out)
}
CFG_MASKS = ("shared", "cond", "separate")
BATCH_MASKS = ("union", "own")
ORDERS = ("highest", "lowest")


def smallest_set(
    scores: Tensor,
    tau: float,
    order: Literal["highest", "lowest"] = "highest",
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


def static_set(
    scores: Tensor, ratio: float, order: Literal["highest", "lowest"] = "highest"
) -> Tensor:
    """Static Top-K (section 5.3): the round(ratio |C|) best tokens, at least one: as above."""
    ranked = scores.double().sort(dim=-1, descending=order == "highest", stable=True).indices
    return first_ranked(ranked, max(1, round(ratio * scores.shape[-1])))


def select(scores: Tensor, tau: float, order: Literal["highest", "lowest"] = "highest") -> Tensor:
    """`smallest_set` of scores [|C|] as ascending indices [K]."""
    return smallest_set(scores, tau, order).nonzero().flatten()


def top_k(scores: Tensor, ratio: float, order: Literal["highest", "lowest"] = "highest") -> Tensor:
    """`static_set` of scores [|C|] as ascending indices [K]."""
    return static_set(scores, ratio, order).nonzero().flatten()


# Compared by identity: `ToPi(ratio=0.5)` did not ask for a tau, `ToPi(tau=0.85, ratio=0.5)` did.
DEFAULT_TAU = 0.85


@dataclass
class ToPi(ReferencePruner, WatchesAttention):
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
    _layers: frozenset[int] = field(default=frozenset(), init=False, repr=False, compare=False)
    _scores: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _scored_step: int | None = field(default=None, init=False, repr=False, compare=False)
    _kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _branches: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _unsettled: Call | None = field(default=None, init=False, repr=False, compare=False)

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
        for name in ("tau", "ratio", "reference_floor"):
            if (value := getattr(self, name)) is not None:
                check_share(name, value)
        choices = {"score": SCORES, "cfg_mask": CFG_MASKS, "batch_mask": BATCH_MASKS}
        for name, valid in (choices | {"order": ORDERS}).items():
            check_one_of(name, getattr(self, name), valid)
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

    def reset(self) -> None:
        """Drop scores and masks."""
        self._scores, self._scored_step, self._kept = {}, None, {}
        self._branches, self._unsettled = set(), None

    def begin(self, call: Call) -> None:
        """On a new anchor, start the scores anew."""
        super().begin(call)
        if self._unsettled is not None and call.turn != self._scored_step:
            self._branches = {*self._scores}  # another has left
            self._settle()
        self._branches.add(call.branch)
        if call.record.anchor and call.turn != self._scored_step:
            self._scores, self._scored_step = {}, call.turn

    def kept(self, call: Call) -> Tensor | None:
        """The mask of the latest anchor; a branch that has seen none keeps all."""
        return self._kept.get(self._mask_of(call.branch))

    def watches(self, call: Call, layer: int) -> bool:
        """Representative layers at anchors."""
        return layer in self._layers and self._scores_now(call)

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

    def add_scores(self, call: Call, layer: int, scores: Tensor) -> None:
        """Add up one layer's scores [B, |C|]."""
        self._scores[call.branch] = self._scores.get(call.branch, 0) + scores

    def end(self, call: Call) -> None:
        """Algorithm 1 lines 14-16: from an anchor's scores to the mask of the steps after it.

        Branches that share a mask wait for the last of them, so that an anchor step reads once.

        Raises:
            ToPiError: no layer was seen.
        """
        if not self._scores_now(call):
            return
        if call.branch not in self._scores:
            raise ToPiError(
                f"Step {call.step} was to score the references in layers {sorted(self._layers)}, "
                "but none of them showed its attention. If they are compiled, undo that, and when "
                "all else is done to the pipeline, compile it with `topi.compile(pipe)`."
            )
        self._unsettled = call
        if self.cfg_mask != "shared" or self._branches <= self._scores.keys():
            self._settle()

    def _settle(self) -> None:
        call, self._unsettled = self._unsettled, None
        with call.timed("selection_seconds"):
            self.settle(call)

    def settle(self, call: Call) -> None:
        """Choose after an anchor whose scores are complete."""
        scores = self.combined(call, self._scores)
        self._kept[self._mask_of(call.branch)] = self.chosen(scores, call.layout)

    def chosen(self, scores: Tensor, layout: Layout) -> Tensor:
        """The tokens to keep by scores [B, |C|]: see `of_batch`."""
        return self.of_batch(self.choose(scores, layout), scores)

    def combined(self, call: Call, scores: Mapping[str, Tensor]) -> Tensor:
        """The scores [B, |C|] that go into the call's mask: those of all branches, normalised."""
        branches = scores if self.cfg_mask == "shared" else [call.branch]
        parts = [scores[branch].double() for branch in branches]
        return sum(part / part.sum(-1, keepdim=True) for part in parts)

    def of_batch(self, masks: Tensor, scores: Tensor) -> Tensor:
        """The mask for a batch, by `batch_mask`: ascending indices [K] or [B, K], on the CPU.

        Args:
            masks: boolean [B, |C|].
            scores: [B, |C|], for what is added to fill up to a multiple of `round_to`.
        """
        if self.batch_mask == "own" and len(masks) > 1:
            most = multiple_of(masks.sum(-1).amax(), self.round_to)
            own = filled_up(masks, self._preference(scores), most)
            return own.cpu().nonzero()[:, 1].view(len(masks), -1)
        # the only value that leaves the device, as the rows of the next steps hang on it
        return self.union(masks, scores).cpu().nonzero().flatten()

    def union(self, masks: Tensor, scores: Tensor) -> Tensor:
        """`of_batch` with one mask for all samples, as boolean [|C|] on the device."""
        return round_up(masks.any(0), self._preference(scores.sum(0)), self.round_to)

    def choose(self, scores: Tensor, layout: Layout, mass: Tensor | None = None) -> Tensor:
        """The tokens to keep of each sample, from its scores [B, |C|]: boolean [B, |C|].

        Args:
            mass: see `smallest_set`.
        """
        if self.ratio is not None:
            kept = static_set(scores, self.ratio, self.order)
        else:
            kept = smallest_set(scores, self.tau, self.order, mass)
        if self.reference_floor:
            for image in layout.reference_slices:
                kept[:, image] |= static_set(scores[:, image], self.reference_floor, self.order)
        return kept

    def _preference(self, scores: Tensor) -> Tensor:
        return scores if self.order == "highest" else -scores

    def _scores_now(self, call: Call) -> bool:
        """Is this an anchor call whose scores count?"""
        first = next(iter(self._scores), call.branch)
        return call.record.anchor and (self.cfg_mask != "cond" or call.branch == first)

    def _mask_of(self, branch: str) -> str:
        return branch if self.cfg_mask == "separate" else "all branches"
