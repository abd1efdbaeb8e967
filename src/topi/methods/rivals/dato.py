"""DaTo: dynamics-aware token pruning (arXiv 2501.00375; code EvelynZhang-epiclab/DaTo, SD 1.5).

Feature caching makes neighbouring steps alike. So tokens that change much from step to step stay in
the attention, and stand in for the others:

1. the dynamics of a token is how far the model's output for it moved since the step before;
2. the most dynamic token of every patch is a *base*;
3. the tokens most similar to some base are pruned: they are neither query, key nor value;
4. afterwards each takes over the attention output of the most similar surviving token.

In cached steps only the first layers run, and what the others added at the latest computed step is
added again. The paper searches both for every step, the cached depth and the pruned share, with
NSGA-II over quality and time: `topi search`. Text is never pruned.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor

from topi.engine import CompletesOutput, MergesTokens, SkipsLayers
from topi.errors import ToPiError
from topi.methods.base import BlockInput, Call, Merge, Method
from topi.methods.parameters import check_each, check_number, check_share, check_whole, check_window
from topi.methods.rivals.sdtm import highest_in_window, windows
from topi.methods.rivals.tomesd import bipartite_soft_matching
from topi.models import ModelFacts


def dynamics(now: Tensor, before: Tensor) -> Tensor:
    """D_j = mean_c |eps_t - eps_(t-1)| of each token: [B, n, C] twice to [n], the mean of B."""
    return (now.float() - before.float()).abs().mean((0, 2))


def nearest_survivor(metric: Tensor, bases: LongTensor, r: int) -> tuple[LongTensor, LongTensor]:
    """Prune the ``r`` tokens most similar to a base.

    Args:
        metric: [B, n, D] token features; a batch shares one choice (its mean cosine).
        bases: [k] distinct token indices.
        r: at most n - k are pruned.

    Returns:
        ``home`` [n], the position among the survivors that each token takes its output from, and
        ``rows`` [n - r], the survivors, ordered [other tokens | bases], each part ascending.
    """
    home, rows = bipartite_soft_matching(metric, bases, r)
    pruned = torch.ones_like(home, dtype=torch.bool)
    pruned[rows] = False
    unit = F.normalize(metric.float(), dim=-1)
    home[pruned] = (unit[:, pruned] @ unit[:, rows].mT).mean(0).argmax(-1)
    return home, rows


class PruneMerge(Merge):
    """Computes some tokens only, and hands their values to the others.

    The first ``start`` image rows pass through bit-identical; ``home`` and ``rows`` (see
    `nearest_survivor`) number the tokens after them.
    """

    def __init__(
        self, home: LongTensor, rows: LongTensor, start: int, scope: str = "attention"
    ) -> None:
        self.scope = scope
        prefix = torch.arange(start, device=rows.device)
        self.rows = torch.cat([prefix, start + rows])
        self._home = torch.cat([prefix, start + home])

    def merge(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, n', D]: the survivors."""
        return x[:, self.rows]

    def unmerge(self, y: Tensor) -> Tensor:
        """[B, n', D] -> [B, N, D]: every token takes the value of its survivor."""
        return y[:, self._home]


@dataclass
class Features:
    """What is remembered of a CFG branch.

    Args:
        output: [B, N, C] the latest output of each token; dynamics: [N] of it.
        start: layer -> [B, G, D] target states before it, of the running call.
        residual: layer -> [B, G, D] what it and all later layers added at the latest computed step.
    """

    output: Tensor | None = None
    dynamics: Tensor | None = None
    start: dict[int, Tensor] = field(default_factory=dict)
    residual: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class DaTo(Method, MergesTokens, SkipsLayers, CompletesOutput):
    """Dynamics-aware token pruning with feature caching.

    The score is the paper's, +D. The released code flips its sign at random, and by default draws
    the bases (`random_bases`). Of reference tokens D is known from steps that run in full, and
    holds between. Without D, in the first two steps, it is zero.

    Args:
        ratio: share of the image tokens to prune from attention, or a share for every step; at
            most all but the bases are (3/4 of the tokens with 2 x 2 patches). Released: 0.4.
        reference_only: prune reference tokens only; target tokens pass through untouched.
        cache_every: run all layers in every so many steps, from the first; 1 in all. A period
            instead of a search is ours.
        front_layers: the layers that run in the other steps.
        depths: for every step how many layers run, instead of the two above; the model's depth
            or more: all, as always in the first step.
        noise: standard normal noise on the scores, in units of their standard deviation.
        random_bases: a random token of each patch is its base.
        align_cfg: the CFG branches of a step share their bases.
        patch: rows and columns of a patch.
        seed: of noise and random bases.
    """

    variants: ClassVar = {
        "dato": {"reference_only": False},
        "dato_ref": {"reference_only": True},
    }

    ratio: float | tuple[float, ...] = 0.4
    reference_only: bool = False
    cache_every: int = 2
    front_layers: int = 10
    depths: tuple[int, ...] | None = None
    noise: float = 0.0
    random_bases: bool = False
    align_cfg: bool = True
    patch: tuple[int, int] = (2, 2)
    seed: int = 0
    _depth: int = field(default=0, init=False, repr=False, compare=False)
    _features: dict[str, Features] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _scopes: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)
    _bases: dict[str, tuple[int, LongTensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.ratio, tuple):
            check_each("ratio", self.ratio, check_share)
        else:
            check_share("ratio", self.ratio)
        if self.depths is not None:
            check_each("depths", self.depths, partial(check_whole, least=0))
        check_whole("cache_every", self.cache_every, least=1)
        check_whole("front_layers", self.front_layers, least=0)
        check_whole("seed", self.seed, least=0)
        check_number("noise", self.noise, "of at least 0", lambda number: 0 <= number < math.inf)
        self.patch = check_window("patch", self.patch, least=2)

    @property
    def decides_before(self) -> Collection[int]:
        """The layers from which on some step is cached."""
        if self.depths is not None:
            return sorted({depth for depth in self.depths if depth < (self._depth or math.inf)})
        return (self.front_layers,) if self.cache_every > 1 else ()

    def prepare(self, model: ModelFacts) -> None:
        """Some layers must be left to cache.

        Raises:
            ToPiError: the front layers are all that there are.
        """
        self._depth = model.depth
        self._scopes = tuple(allowed[0] for allowed in model.scopes)
        if self.depths is None and self.cache_every > 1 and self.front_layers >= model.depth:
            raise ToPiError(
                f"front_layers={self.front_layers} leaves none of the {model.depth} layers of this "
                f"{model.name} to cache; use fewer, or cache_every=1."
            )

    def reset(self) -> None:
        """Forget outputs, features and bases."""
        self._features, self._bases = {}, {}

    def begin(self, call: Call) -> None:
        """Make sure that what is given for every step is of this many steps.

        Raises:
            ToPiError: it is of another number of steps.
        """
        for name in ("ratio", "depths"):
            given = getattr(self, name)
            wanted = call.n_steps or call.turn + 1
            if isinstance(given, tuple) and (
                len(given) < wanted or (call.n_steps and len(given) > wanted)
            ):
                raise ToPiError(
                    f"{name} is a schedule of {len(given)} steps, but there are {wanted}; give one "
                    "for this many, as `topi search` finds it."
                )

    def layers_at(self, step: int) -> int | None:
        """How many layers run at a step; None: all."""
        if step == 0:
            return None
        if self.depths is not None:
            return self.depths[step] if self.depths[step] < self._depth else None
        return self.front_layers if step % self.cache_every else None

    def _of(self, call: Call) -> Features:
        return self._features.setdefault(call.branch, Features())

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """At a cached step, what the layers from here on added before."""
        features = self._of(call)
        features.start[layer] = block.states[:, : call.layout.n_target]
        if layer == self.layers_at(call.turn) and layer in features.residual:
            return features.start[layer] + features.residual[layer]
        return None

    def remember(self, call: Call, states: Tensor) -> None:
        """Keep what the layers added."""
        features = self._of(call)
        features.residual = {layer: states - start for layer, start in features.start.items()}
        features.start = {}  # views of whole sequences

    def complete(self, call: Call, output: Tensor) -> Tensor:
        """Measure the dynamics of every token that has an output, and change nothing."""
        features, n = self._of(call), output.shape[1]
        if features.output is None:
            features.output = output.clone()
            features.dynamics = torch.zeros(n, device=output.device)
        else:
            features.dynamics[:n] = dynamics(output, features.output[:, :n])
            features.output[:, :n] = output
        return output

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """Which tokens the layer's attention goes without; None if none."""
        start, grids = call.layout.region(self.reference_only)
        body = states[:, start:]
        patches, n = windows(grids, self.patch, states.device), body.shape[1]
        ratio = self.ratio[call.turn] if isinstance(self.ratio, tuple) else self.ratio
        r = min(int(n * ratio), n - len(patches))
        if r <= 0 or not len(patches):
            return None
        home, rows = nearest_survivor(body, self._bases_of(call, patches, n), r)
        return PruneMerge(home, rows, start, self._scopes[layer])

    def _bases_of(self, call: Call, patches: LongTensor, n: int) -> LongTensor:
        """The bases of the call's step [w]."""
        branch = "" if self.align_cfg else call.branch
        step, bases = self._bases.get(branch, (None, None))
        if step != call.turn:
            bases = highest_in_window(patches, self._score(call, n, patches.device))
            self._bases[branch] = (call.turn, bases)
        return bases

    def _score(self, call: Call, n: int, device: torch.device) -> Tensor:
        """D of the n last image tokens, with noise if asked for."""
        generator = torch.Generator().manual_seed(self.seed * 10_007 + call.turn)
        if self.random_bases:
            return torch.rand(n, generator=generator).to(device)
        known = self._of(call).dynamics
        score = torch.zeros(n, device=device) if known is None else known[-n:]
        if self.noise:
            scale = score.std() if known is not None else 1.0
            score = score + self.noise * scale * torch.randn(n, generator=generator).to(device)
        return score
