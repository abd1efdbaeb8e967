"""What the paper leaves open of a mask: CFG branches, batches, rounding, floors, static shares."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from topi.engine import Call, WatchesAttention
from topi.errors import ToPiError
from topi.methods.parameters import check_one_of, check_share
from topi.methods.parts.pruner import (
    ReferencePruner,
    filled_up,
    first_ranked,
    multiple_of,
    round_up,
)
from topi.models import Layout

CFG_MASKS = ("shared", "cond", "separate")
BATCH_MASKS = ("union", "own")
ORDERS = ("highest", "lowest")
Order = Literal["highest", "lowest"]


def static_set(scores: Tensor, ratio: float, order: Order = "highest") -> Tensor:
    """Static Top-K (section 5.3): the round(ratio |C|) best tokens, at least one: boolean."""
    ranked = scores.double().sort(dim=-1, descending=order == "highest", stable=True).indices
    return first_ranked(ranked, max(1, round(ratio * scores.shape[-1])))


@dataclass
class AnchorMasks(ReferencePruner, WatchesAttention):
    """From the scores of an anchor's CFG branches and samples to one mask, by policies.

    A subclass adds up scores of layers (`add_scores`) and chooses tokens by them (`choose`). The
    policies are its parameters `cfg_mask`, `batch_mask`, `round_to`, `reference_floor` and `order`,
    which `ToPi` describes.
    """

    cfg_mask: ClassVar[str] = "shared"
    batch_mask: ClassVar[str] = "union"
    reference_floor: ClassVar[float] = 0.0
    order: ClassVar[Order] = "highest"
    _scores: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _scored_step: int | None = field(default=None, init=False, repr=False, compare=False)
    _kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _branches: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _unsettled: Call | None = field(default=None, init=False, repr=False, compare=False)

    def check_policies(self) -> None:
        """Raise a ToPiError for a value that is out of range."""
        check_share("reference_floor", self.reference_floor)
        choices = {"cfg_mask": CFG_MASKS, "batch_mask": BATCH_MASKS, "order": ORDERS}
        for name, valid in choices.items():
            check_one_of(name, getattr(self, name), valid)

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
        return self._kept.get(self.mask_of(call.branch))

    def add_scores(self, call: Call, layer: int, scores: Tensor) -> None:
        """Add up one layer's scores [B, |C|]."""
        self._scores[call.branch] = self._scores.get(call.branch, 0) + scores

    def end(self, call: Call) -> None:
        """Algorithm 1 lines 14-16: from an anchor's scores to the mask of the steps after it.

        Branches that share a mask wait for the last of them, so that an anchor step reads once.

        Raises:
            ToPiError: no layer was seen.
        """
        if not self.scores_now(call):
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
        self._kept[self.mask_of(call.branch)] = self.chosen(scores, call.layout)

    def chosen(self, scores: Tensor, layout: Layout) -> Tensor:
        """The tokens to keep by scores [B, |C|]: see `of_batch`."""
        return self.of_batch(self.choose(scores, layout), scores)

    @abstractmethod
    def choose(self, scores: Tensor, layout: Layout, mass: Tensor | None = None) -> Tensor:
        """The tokens to keep of each sample, from its scores [B, |C|]: boolean [B, |C|]."""

    def scores_now(self, call: Call) -> bool:
        """True if this is an anchor call whose scores count."""
        first = next(iter(self._scores), call.branch)
        return call.record.anchor and (self.cfg_mask != "cond" or call.branch == first)

    def mask_of(self, branch: str) -> str:
        """The name of the mask that a CFG branch goes by."""
        return branch if self.cfg_mask == "separate" else "all branches"

    def combined(self, call: Call, scores: Mapping[str, Tensor]) -> Tensor:
        """The scores [B, |C|] that go into the call's mask: those of all branches, normalised."""
        branches = scores if self.cfg_mask == "shared" else [call.branch]
        parts = [scores[branch].double() for branch in branches]
        return sum(part / part.sum(-1, keepdim=True) for part in parts)

    def with_floor(self, kept: Tensor, scores: Tensor, layout: Layout) -> Tensor:
        """A choice [B, |C|], and of each reference image its share of tokens that stays anyway."""
        if self.reference_floor:
            for image in layout.reference_slices:
                kept[:, image] |= static_set(scores[:, image], self.reference_floor, self.order)
        return kept

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

    def _preference(self, scores: Tensor) -> Tensor:
        return scores if self.order == "highest" else -scores
