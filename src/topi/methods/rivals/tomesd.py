"""ToMeSD: token merging for diffusion (Bolya and Hoffman, arXiv 2303.17604), carried over to DiTs.

Around each attention, in every layer and step anew:

1. one token of every ``sy x sx`` cell of an image is a *destination*, all others are *sources*;
2. each source finds its most similar destination (cosine);
3. the ``r`` sources with the highest similarity are averaged into their destination;
4. afterwards each destination's output is copied to the sources it stands for.

A merged token carries the rotary position of its destination. Text tokens are never merged.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor

from topi.engine import MergesTokens
from topi.errors import ToPiError
from topi.methods.base import Call, Merge, Method
from topi.methods.parameters import check_one_of, check_share, check_whole
from topi.models import ModelFacts

Grid = tuple[int, int]


def draw_destinations(
    grid: Grid, sx: int = 2, sy: int = 2, generator: torch.Generator | None = None
) -> LongTensor:
    """One destination in every full ``sy x sx`` cell of a (rows, cols) grid.

    A random token of the cell if a generator is given, else its top-left one. Rows and columns
    that fill no cell hold sources only, so a grid narrower than a cell has no destination.
    Returns row-major token indices, one per cell.
    """
    rows, cols = grid
    cells = (rows // sy, cols // sx)
    if generator is None:
        pick = torch.zeros(cells, dtype=torch.long)
    else:
        pick = torch.randint(sy * sx, cells, generator=generator)
    row = torch.arange(cells[0])[:, None] * sy + pick // sx
    col = torch.arange(cells[1])[None, :] * sx + pick % sx
    return (row * cols + col).flatten()


def bipartite_soft_matching(
    metric: Tensor, destinations: LongTensor, r: int, image: LongTensor | None = None
) -> tuple[LongTensor, LongTensor]:
    """Average the ``r`` best-matched sources into their most similar destination.

    Args:
        metric: [B, n, D] token features. A batch shares one matching (its mean similarity), since
            the rotary rows of a model have no batch axis.
        destinations: [k] distinct token indices.
        r: number of sources to merge; at most n - k are.
        image: [n] number of the image each token belongs to, to forbid merging across images.

    Returns:
        ``bag`` [n], the merged token that each token becomes part of, and ``rows`` [n - r], the
        token that stands for each merged one, ordered [unmerged sources | destinations], each
        part ascending.
    """
    n, k = metric.shape[1], len(destinations)
    r = max(0, min(r, n - k))
    is_destination = torch.zeros(n, dtype=torch.long, device=metric.device)
    is_destination[destinations] = 1
    src, dst = is_destination.argsort(stable=True).split((n - k, k))

    unit = F.normalize(metric.float(), dim=-1)  # fp32: bf16 ties; a zero row stays zero
    similarity = (unit[:, src] @ unit[:, dst].mT).mean(0)
    if image is not None:
        similarity.masked_fill_(image[src, None] != image[dst], -torch.inf)
    best, nearest = similarity.max(dim=-1)
    ranking = best.argsort(descending=True, stable=True)
    merged, unmerged = ranking[:r], ranking[r:].sort().values

    rows = torch.cat([src[unmerged], dst])
    bag = torch.empty(n, dtype=torch.long, device=metric.device)
    bag[rows] = torch.arange(n - r, device=metric.device)
    bag[src[merged]] = n - k - r + nearest[merged]
    return bag, rows


class BagMerge(Merge):
    """Merging by bags: a merged token is the plain mean of the tokens in its bag.

    The first ``start`` image rows pass through bit-identical; ``bag`` and ``rows`` (see
    `bipartite_soft_matching`) number the tokens after them.
    """

    def __init__(self, bag: LongTensor, rows: LongTensor, start: int, scope: str) -> None:
        prefix = torch.arange(start, device=rows.device)
        self.rows = torch.cat([prefix, start + rows])
        self.scope = scope
        self._start = start
        self._home = torch.cat([prefix, start + bag])
        self._members = bag.argsort(stable=True)
        bags = torch.arange(len(rows), device=rows.device)
        self._first = torch.searchsorted(bag[self._members], bags)

    def merge(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, n', D]. A bag's mean includes its destination, all with equal weight."""
        head, body = x[:, : self._start], x[:, self._start :]
        means = [F.embedding_bag(self._members, one, self._first, mode="mean") for one in body]
        return torch.cat([head, torch.stack(means)], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """[B, n', D] -> [B, N, D]: every token takes the value of its bag."""
        return y[:, self._home]


@lru_cache(maxsize=8)
def image_numbers(grids: tuple[Grid, ...], device: torch.device) -> LongTensor:
    """The number of the image that each token of these grids belongs to: [n]."""
    sizes = torch.tensor([rows * cols for rows, cols in grids])
    return torch.arange(len(grids)).repeat_interleave(sizes).to(device)


@dataclass
class ToMeSD(Method, MergesTokens):
    """Token merging around attention, with the defaults of the official code.

    Args:
        ratio: share of the image tokens to merge away; at most all sources are (3/4 of the tokens
            with 2 x 2 cells).
        reference_only: merge reference tokens only; target tokens pass through untouched.
        sx, sy: width and height of the cells that hold one destination each.
        use_rand: draw the destinations, else take the top-left token of each cell. They are drawn
            anew for every step and layer, and shared by the CFG branches as in the original's
            batched pair; so its rule to draw none for an odd batch is not needed.
        scope: "attention" merges for the attention alone, as the original; "block" for the whole
            block where a block allows it (parallel attention and MLP).
        skip_layers: leave this many first layers untouched; the original skips none.
        per_image: never merge a token of one image into another image's.
        seed: of the drawn destinations.
    """

    variants: ClassVar = {
        "tomesd": {"reference_only": False},
        "tomesd_ref": {"reference_only": True},
    }

    ratio: float = 0.5
    reference_only: bool = False
    sx: int = 2
    sy: int = 2
    use_rand: bool = True
    scope: Literal["attention", "block"] = "attention"
    skip_layers: int = 0
    per_image: bool = False
    seed: int = 0
    _scopes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("ratio", self.ratio)
        for name, least in (("sx", 1), ("sy", 1), ("skip_layers", 0), ("seed", 0)):
            check_whole(name, getattr(self, name), least)
        check_one_of("scope", self.scope, ("attention", "block"))

    def prepare(self, model: ModelFacts) -> None:
        """Give every layer the widest scope it allows, up to the one asked for."""
        if not 0 <= self.skip_layers < model.depth:
            raise ToPiError(
                f"ToMeSD: skip_layers must lie in [0, {model.depth - 1}] for the {model.depth} "
                f"layers of {model.name}, got {self.skip_layers}."
            )
        self._scopes = [
            self.scope if self.scope in allowed else allowed[0] for allowed in model.scopes
        ]
        if self.scope not in self._scopes:
            raise ToPiError(
                f"ToMeSD: no block of {model.name} can be merged as a whole; use scope=attention."
            )

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """Match the layer's normed states; None where there is nothing to merge."""
        if layer < self.skip_layers:
            return None
        start, grids = call.layout.region(self.reference_only)
        drawn = self._draw(grids, call.turn, layer)
        if (r := self._sources_to_merge(grids, drawn)) == 0:
            return None
        firsts = accumulate((rows * cols for rows, cols in grids[:-1]), initial=0)
        destinations = torch.cat([at + tokens for at, tokens in zip(firsts, drawn, strict=True)])
        image = image_numbers(grids, states.device) if self.per_image else None
        bag, rows = bipartite_soft_matching(
            states[:, start:], destinations.to(states.device), r, image
        )
        return BagMerge(bag, rows, start, self._scopes[layer])

    def _draw(self, grids: tuple[Grid, ...], step: int, layer: int) -> list[LongTensor]:
        """Each grid's destinations: a function of seed, step and layer, so that branches agree."""
        generator = None
        if self.use_rand:
            generator = torch.Generator().manual_seed((self.seed * 10_007 + step) * 10_007 + layer)
        return [draw_destinations(grid, self.sx, self.sy, generator) for grid in grids]

    def _sources_to_merge(self, grids: tuple[Grid, ...], drawn: list[LongTensor]) -> int:
        """r = ratio of all tokens, at most the sources that have a destination to go to."""
        sizes = [rows * cols for rows, cols in grids]
        if self.per_image:
            can = sum(n - len(dst) for n, dst in zip(sizes, drawn, strict=True) if len(dst))
        else:
            destinations = sum(map(len, drawn))
            can = sum(sizes) - destinations if destinations else 0
        return min(int(sum(sizes) * self.ratio), can)
