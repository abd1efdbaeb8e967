"""SDTM: structure-then-detail token merging (arXiv 2505.11707, CVPR 2025; code ICTMCG/SDTM).

Early steps draw the structure of an image, later ones its details. So

1. in the *structure stage* the most uniform windows collapse to one token each, for attention and
   MLP;
2. in the *detail stage* attention sees every token, and around the MLP the tokens that get little
   attention are merged into the most attended one of their window;
3. the share of merged tokens falls over the steps;
4. every few steps are *protected*: they run in full and store what each layer adds, and merged
   tokens blend it with what they share;
5. in the structure stage the text weighs more in the attention (prompt reweighting).

The released code for Stable Diffusion 3 differs: it finds the attended tokens without an attention
map, by how long they have been merged (`attended="frequency"`), and takes no notice of the prompt
weight (`a_p=1`). Text is never merged; a merged token carries the rotary position of one of its
window.
"""

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor

from topi.engine import MergesTokens, WeighsText
from topi.engine.attention import image_attention
from topi.errors import ToPiError
from topi.methods.base import Call, Merge, Method
from topi.methods.parameters import (
    check_at_least_zero,
    check_one_of,
    check_positive,
    check_share,
    check_whole,
    check_window,
)
from topi.methods.rivals.toma import tiles
from topi.methods.rivals.tomesd import BagMerge, bipartite_soft_matching, image_numbers
from topi.models import ModelFacts

Grid = tuple[int, int]
ATTENDED = ("attention", "frequency")


def merge_share(step: int, n_steps: int, ratio: float, deviation: float) -> float:
    """rho = (ratio - deviation) + 2 deviation cos(p pi/2), p = step / (n_steps - 1).

    It falls from ratio + deviation to ratio - deviation.
    """
    p = step / max(n_steps - 1, 1)
    return ratio - deviation + 2 * deviation * math.cos(p * math.pi / 2)


def window_count(n: int, rho: float, size: int, available: int, multiple: int) -> int:
    """Windows to collapse so that int(n rho) of n tokens disappear, `size` - 1 in each.

    Rounded down to a multiple, at most all that there are.
    """
    return min(int(n * rho) // ((size - 1) * multiple) * multiple, available)


@lru_cache(maxsize=8)
def windows(grids: tuple[Grid, ...], shape: Grid, device: torch.device) -> LongTensor:
    """Token indices [w, K] of the full windows of all grids, which follow each other.

    Rows and columns at the border that fill no window belong to none.
    """
    firsts = accumulate((rows * cols for rows, cols in grids[:-1]), initial=0)
    parts = [
        index[(index >= 0).all(-1)] + first
        for first, index in zip(firsts, (tiles(grid, shape) for grid in grids), strict=True)
    ]
    return torch.cat(parts).to(device)


def frequency_priority(merged_for: Tensor, image: LongTensor) -> Tensor:
    """P_fre = u / mean(u) [n], with the mean over the token's image.

    Args:
        merged_for: u [n], merges since the token was last computed by itself.
        image: [n] the number of the token's image.
    """
    u = merged_for.float()
    n = image.bincount()
    mean = torch.zeros_like(n, dtype=u.dtype).index_add(0, image, u) / n
    return u / (mean[image] + 1e-6)


def structure_priority(
    states: Tensor, windows: LongTensor, frequency: Tensor, a_s: float
) -> Tensor:
    """P_w = P_sim + a_s P_fre of each window [w].

    P_sim is the mean cosine over all K x K pairs of its tokens, self-pairs included as in the
    released code, P_fre the mean over its tokens.

    Args:
        states: [B, n, D]; a batch shares its priorities (the mean).
        windows: [w, K] token indices.
        frequency: [n], see `frequency_priority`.
    """
    unit = F.normalize(states.float(), dim=-1)
    similarity = unit[:, windows].mean(-2).square().sum(-1).mean(0)
    return similarity + a_s * frequency[windows].mean(-1)


def collapse(windows: LongTensor, n: int, pick: LongTensor) -> tuple[LongTensor, LongTensor]:
    """Every window becomes one token.

    Args:
        windows: [w, K] token indices.
        n: tokens in all.
        pick: [w] which member stands for the window.

    Returns:
        ``bag`` [n] and ``rows`` [n - w (K - 1)] as of `bipartite_soft_matching`, ordered [tokens
        outside the windows, ascending | windows].
    """
    w = len(windows)
    outside = torch.ones(n, dtype=torch.bool, device=windows.device)
    outside[windows.flatten()] = False
    single = outside.nonzero().flatten()
    bag = torch.empty(n, dtype=torch.long, device=windows.device)
    bag[single] = torch.arange(len(single), device=bag.device)
    bag[windows] = torch.arange(len(single), len(single) + w, device=bag.device)[:, None]
    return bag, torch.cat([single, windows.gather(1, pick[:, None]).flatten()])


def highest_in_window(windows: LongTensor, priority: Tensor) -> LongTensor:
    """The token of the highest priority [n] in every window; of equals the first: [w]."""
    return windows.gather(1, priority[windows].argmax(-1, keepdim=True)).flatten()


class Watched(Merge):
    """Merges nothing; stores what attention, MLP or block add to the tokens from `start` on."""

    rows = None

    def __init__(self, store: MutableMapping[str, Tensor], scope: str, start: int) -> None:
        self.scope, self._store, self._start = scope, store, start

    def merge(self, states: Tensor) -> Tensor:
        """Unchanged."""
        return states

    def unmerge(self, states: Tensor) -> Tensor:
        """Unchanged, and stored."""
        self._store["main"] = states[:, self._start :].clone()
        return states

    def unmerge_mlp(self, states: Tensor) -> Tensor:
        """Unchanged, and stored."""
        self._store["mlp"] = states[:, self._start :].clone()
        return states


class Blended(Merge):
    """Another merge whose merged tokens are `weight` shared value + (1 - weight) stored value.

    Args:
        inner: the merge.
        merged: [m] the tokens that are blended, counted from `start`.
        stored: what a protected step stored; empty if there was none.
    """

    def __init__(
        self,
        inner: Merge,
        merged: LongTensor,
        stored: Mapping[str, Tensor],
        weight: float,
        start: int,
    ) -> None:
        self.rows, self.scope = inner.rows, inner.scope
        self._inner, self._weight, self._stored = inner, weight, stored
        self._merged, self._start = merged, start

    def merge(self, states: Tensor) -> Tensor:
        """By the other merge."""
        return self._inner.merge(states)

    def unmerge(self, states: Tensor) -> Tensor:
        """By the other merge, then blended."""
        return self._blend(self._inner.unmerge(states), self._stored.get("main"))

    def unmerge_mlp(self, states: Tensor) -> Tensor:
        """By the other merge, then blended."""
        return self._blend(self._inner.unmerge_mlp(states), self._stored.get("mlp"))

    def _blend(self, states: Tensor, stored: Tensor | None) -> Tensor:
        if stored is not None:
            rows = self._start + self._merged
            fresh, old = states[:, rows], stored[:, self._merged]
            states[:, rows] = self._weight * fresh + (1 - self._weight) * old
        return states


@dataclass
class Past:
    """What is remembered of a CFG branch.

    Args:
        merged_for: u [n], merges since each token was last computed by itself; all layers count.
        received: [N] the attention each image token received in the latest layer that was watched.
        stored: layer -> what its attention, MLP or block added at the latest protected step.
    """

    merged_for: LongTensor | None = None
    received: Tensor | None = None
    stored: dict[int, dict[str, Tensor]] = field(default_factory=dict)


@dataclass
class SDTM(Method, MergesTokens, WeighsText):
    """Structure-then-detail token merging, with the defaults of the released command line.

    Two things the paper leaves to its attention maps are read as follows. A token's attentiveness
    in the detail stage is what it receives from all target tokens in the layer before, which also
    blocks have that compute attention and MLP in parallel, over its mean, plus ``a_d`` P_fre.
    Prompt reweighting multiplies the weight of every text key by ``a_p`` wherever attention is
    merged. What is stored is the output of attention, MLP or block before its gate; the released
    code stores it behind the gate.

    Args:
        ratio: mean share of the image tokens to merge away.
        deviation: the share falls from ratio + deviation to ratio - deviation.
        reference_only: merge reference tokens only; target tokens pass through untouched.
        structure: share of the steps, from the first, that are of the structure stage; 0.4 is step
            20 of 50. As references are clean from the start, 1 is a choice for them.
        protect_every: steps 0, protect_every, ... run in full and store; 0 protects none.
        merge_weight: what merged tokens take of the value they share; the rest is stored.
        a_s, a_d: of the frequency priority among windows, and among the tokens of a window.
        a_p: weight of a text key in the merged attention; 1 as in the released code.
        attended: how the attended tokens are found: by "attention" as in the paper, or by
            "frequency" as in the released code, which costs no attention map.
        window: rows and columns of a window.
        multiple: round counts down to a multiple of this.
        use_rand: a window takes the rotary position of a random member, else of its first.
        seed: of these.
    """

    variants: ClassVar = {
        "sdtm": {"reference_only": False},
        "sdtm_ref": {"reference_only": True},
    }

    ratio: float = 0.3
    deviation: float = 0.2
    reference_only: bool = False
    structure: float = 0.4
    protect_every: int = 3
    merge_weight: float = 0.1
    a_s: float = 0.05
    a_d: float = 0.05
    a_p: float = 2.0
    attended: Literal["attention", "frequency"] = "attention"
    window: tuple[int, int] = (2, 2)
    multiple: int = 16
    use_rand: bool = True
    seed: int = 0
    _scopes: tuple[tuple[str, ...], ...] = field(default=(), init=False, repr=False, compare=False)
    _past: dict[str, Past] = field(default_factory=dict, init=False, repr=False, compare=False)
    _weigh: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio", "deviation", "structure", "merge_weight"):
            check_share(name, getattr(self, name))
        check_whole("protect_every", self.protect_every, least=0)
        check_whole("multiple", self.multiple, least=1)
        check_one_of("attended", self.attended, ATTENDED)
        if self.deviation > self.ratio:
            raise ToPiError(
                f"deviation={self.deviation} must be at most ratio={self.ratio}, as the share of "
                "merged tokens ends at their difference."
            )
        self.window = check_window("window", self.window, least=2)
        for name in ("a_s", "a_d"):
            check_at_least_zero(name, getattr(self, name))
        check_positive("a_p", self.a_p)
        check_whole("seed", self.seed, least=0)

    def watches(self, call: Call, layer: int) -> bool:
        """True if attention finds the attended tokens or the prompt is weighed."""
        return self.attended == "attention" or self.a_p != 1

    def prepare(self, model: ModelFacts) -> None:
        """Note where the layers can be merged."""
        self._scopes = model.scopes

    def reset(self) -> None:
        """Forget what was stored and how long tokens have been merged."""
        self._past, self._weigh = {}, False

    def begin(self, call: Call) -> None:
        """Make sure that the stages can be told.

        Raises:
            ToPiError: nobody knows how many steps there are.
        """
        if call.n_steps is None:
            raise ToPiError(
                "SDTM must know how many steps there are; attach it to the pipeline instead of its "
                "transformer."
            )

    def in_structure_stage(self, step: int, n_steps: int) -> bool:
        """True if the step is of the structure stage."""
        return step <= self.structure * n_steps and self.structure > 0

    def protected(self, step: int) -> bool:
        """True if the step runs in full."""
        return self.protect_every > 0 and step % self.protect_every == 0

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """The merge of this stage, or at a protected step one that only stores."""
        start, grids = call.layout.region(self.reference_only)
        stored = self._of(call).stored.setdefault(layer, {})
        self._weigh = False
        if self.protected(call.turn):
            stored.clear()
            if self.merge_weight == 1 or self.protect_every == 1:
                return None
            scope = self._scope(call, call.turn + 1, layer)
            return Watched(stored, scope, start) if scope in self._scopes[layer] else None

        rho = merge_share(call.turn, call.n_steps, self.ratio, self.deviation)
        body, scope = states[:, start:], self._scope(call, call.turn, layer)
        if scope not in self._scopes[layer]:  # its MLP and its attention are one
            return None
        if self.in_structure_stage(call.turn, call.n_steps):
            found = self._structure(call, layer, body, grids, rho)
        else:
            found = self._detail(call, body, grids, rho)
        if found is None:
            return None
        bag, rows, merged = found
        self._weigh = scope != "mlp"
        inner = BagMerge(bag, rows, start, scope)
        return Blended(inner, merged, stored, self.merge_weight, start)

    def _structure(
        self, call: Call, layer: int, body: Tensor, grids: tuple[Grid, ...], rho: float
    ) -> tuple[LongTensor, LongTensor, LongTensor] | None:
        """Collapse the windows of the highest priority: bag, rows, and the tokens concerned."""
        n, places = body.shape[1], windows(grids, self.window, body.device)
        w = window_count(n, rho, math.prod(self.window), len(places), self.multiple)
        if w == 0:
            return None
        priority = structure_priority(body, places, self._frequency(call, grids, body), self.a_s)
        chosen = places[priority.argsort(descending=True, stable=True)[:w].sort().values]
        merged = chosen.flatten()
        self._count_merge(call, merged)
        pick = torch.zeros(w, dtype=torch.long)
        if self.use_rand:
            seed = (self.seed * 10_007 + call.turn) * 10_007 + layer  # the same in each CFG branch
            generator = torch.Generator().manual_seed(seed)
            pick = torch.randint(math.prod(self.window), (w,), generator=generator)
        return *collapse(chosen, n, pick.to(body.device)), merged

    def _detail(
        self, call: Call, body: Tensor, grids: tuple[Grid, ...], rho: float
    ) -> tuple[LongTensor, LongTensor, LongTensor] | None:
        """Merge inattentive tokens into attended ones: bag, rows, and the tokens concerned."""
        n, places = body.shape[1], windows(grids, self.window, body.device)
        r = min(int(n * rho), n - len(places)) // self.multiple * self.multiple
        if r <= 0 or not len(places):
            return None
        priority = self._frequency(call, grids, body)
        received = self._of(call).received
        if self.attended == "attention" and received is not None:
            received = received[-n:]
            priority = received / received.mean() + self.a_d * priority
        bag, rows = bipartite_soft_matching(body, highest_in_window(places, priority), r)
        alone = torch.zeros(n, dtype=torch.bool, device=body.device)
        alone[rows[: n - r - len(places)]] = True
        merged = (~alone).nonzero().flatten()
        self._count_merge(call, merged)
        return bag, rows, merged

    def _scope(self, call: Call, step: int, layer: int) -> str:
        """Where a step of this number merges the layer."""
        if not self.in_structure_stage(step, call.n_steps):
            return "mlp"
        return "block" if "block" in self._scopes[layer] else "both"

    def _of(self, call: Call) -> Past:
        return self._past.setdefault(call.branch, Past())

    def _frequency(self, call: Call, grids: tuple[Grid, ...], body: Tensor) -> Tensor:
        """P_fre of every token; before any merge 0."""
        past = self._of(call)
        if past.merged_for is None:
            past.merged_for = torch.zeros(body.shape[1], dtype=torch.long, device=body.device)
        return frequency_priority(past.merged_for, image_numbers(grids, body.device))

    def _count_merge(self, call: Call, merged: LongTensor) -> None:
        u = self._of(call).merged_for
        counted = u[merged] + 1
        u.zero_()
        u[merged] = counted

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """In the detail stage, note what attention each token receives."""
        if (
            self.attended == "attention"
            and not self.in_structure_stage(call.turn, call.n_steps)
            and not self.protected(call.turn)
        ):
            received = image_attention(query, key, call.layout, mask).mean((0, 1))
            self._of(call).received = received

    def text_weight(self, call: Call, layer: int) -> float:
        """a_p where this layer's attention is merged."""
        return self.a_p if self._weigh else 1.0
