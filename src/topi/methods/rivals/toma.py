"""ToMA: token merging with attention (arXiv 2509.10918, ICML 2025; official code WenboLuu/ToMA).

The image is cut into square tiles. In each of them

1. *destinations* are chosen greedily, so that they cover the tile (facility location);
2. every token is spread over the destinations by a sharp softmax of its similarities: the map A;
3. merging takes the row-normalised map, unmerging its transpose.

Destinations and map are computed at the first layer of a group of layers and serve the whole group
in that step. A merged token carries the rotary position of its destination. Text is never merged.
The columns of A sum to one, so that unmerging commutes with the affine projection behind an
attention: it makes no difference that the original unmerges before and this code after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import BoolTensor, LongTensor, Tensor

from topi.engine import MergesTokens
from topi.methods.base import Call, Merge, Method
from topi.methods.parameters import check_positive, check_share, check_whole, check_window
from topi.models import ModelFacts

Grid = tuple[int, int]

# The official plan for FLUX's 19 dual and 38 single blocks, by what can be merged in a stack's
# blocks: the share of its first blocks that stay untouched.
UNTOUCHED: Mapping[str, float] = {"attention": 5 / 19, "block": 5 / 38}

NEVER = -torch.inf  # step of what has not been computed yet


def layer_plan(model: ModelFacts) -> list[tuple[int, str] | None]:
    """For each layer None (untouched) or (its group, the scope it merges in).

    Each stack is a group, merged in the widest scope of its blocks behind the first 5/19 (blocks
    that merge around the attention only) or 5/38 (whole blocks): on FLUX dual 5-18 and single
    5-37, on 60 dual blocks 16-59.
    """
    plan: list[tuple[int, str] | None] = []
    for group, depth in enumerate(model.stacks):
        for index in range(depth):
            scope = "block" if "block" in model.scopes[len(plan)] else "attention"
            merged = index >= round(depth * UNTOUCHED[scope])
            plan.append((group, scope) if merged else None)
    return plan


def tiles(grid: Grid, tile: Grid) -> LongTensor:
    """Cut a (rows, cols) grid into tiles: row-major token indices [tiles, m], -1 for padding."""
    (rows, cols), (height, width) = grid, tile
    index = torch.arange(rows * cols).view(1, 1, rows, cols)
    index = F.pad(index, (0, -cols % width, 0, -rows % height), value=-1)[0, 0]
    by_tile = index.unflatten(1, (-1, width)).unflatten(0, (-1, height)).transpose(1, 2)
    return by_tile.flatten(2).flatten(0, 1)


def destination_counts(index: LongTensor, ratio: float) -> LongTensor:
    """Destinations in each tile of one image [tiles], at least one.

    Full tiles share N - int(N * ratio), rounded down, as in the official code. It knows no other
    grids; where tiles are padded, each keeps its valid tokens times 1 - ratio, rounded.
    """
    valid = (index >= 0).sum(dim=-1)
    n, full = int(valid.sum()), bool((index >= 0).all())
    if full:
        counts = torch.full_like(valid, (n - int(n * ratio)) // len(valid))
    else:
        counts = (valid * (1 - ratio)).round().long()
    return counts.clamp(min=1)


@dataclass(frozen=True, eq=False)
class Tiling:
    """The tiles of all images of a region of n tokens; no tile spans two images.

    Args:
        member: [tiles, m] token index, 0 for padding; valid: [tiles, m], False for padding.
        home: [n] where each token sits in the flattened `member`.
        served: [tiles, k], True for the first counts[tile] of its k destinations.
        slot: [n'] where the merged tokens sit in the flattened `served`.
        token: [tiles, k] the merged token of each slot; any for an unserved one.
    """

    member: LongTensor
    valid: BoolTensor
    home: LongTensor
    served: BoolTensor
    slot: LongTensor
    token: LongTensor

    @property
    def k(self) -> int:
        """Most destinations of a tile."""
        return self.served.shape[1]


@lru_cache(maxsize=8)
def tiling(grids: tuple[Grid, ...], tile: Grid, ratio: float, device: torch.device) -> Tiling:
    """Tile each of the grids, which follow each other in the sequence."""
    parts, counts, first = [], [], 0
    for rows, cols in grids:
        index = tiles((rows, cols), tile)
        parts.append(torch.where(index < 0, index, index + first))
        counts.append(destination_counts(index, ratio))
        first += rows * cols
    index, count = torch.cat(parts), torch.cat(counts)
    served = torch.arange(int(count.max())) < count[:, None]
    parts = {
        "member": index.clamp(min=0),
        "valid": index >= 0,
        "home": index.flatten().argsort(stable=True)[-first:],
        "served": served,
        "slot": served.flatten().nonzero().flatten(),
        "token": (served.flatten().cumsum(0) - 1).view_as(served),
    }
    return Tiling(**{name: part.to(device) for name, part in parts.items()})


def facility_location(similarity: Tensor, valid: BoolTensor, k: int) -> LongTensor:
    """Greedy choice of k destinations per tile that together are similar to every token.

    The first has the largest total similarity sum_j S_ij. With m_j the similarity of token j to
    the best destination so far, the next one has the largest gain sum_j relu(S_ij - m_j). The
    first k' < k destinations are those that a smaller k would choose. A chosen token is never
    chosen again, also if its gain is zero.

    Args:
        similarity: [B, tiles, m, m]. A batch shares its destinations (the gains add up), since
            the rotary rows of a model have no batch axis.
        valid: [tiles, m], False where a tile is padded; such tokens neither count nor serve as
            destinations while others are left.

    Returns:
        [tiles, k] positions within the tile, in the order of choice.
    """
    similarity = similarity * (valid[:, :, None] & valid[:, None, :])
    blocked = ~valid
    chosen, covered = [], None
    for _ in range(k):
        gain = similarity if covered is None else (similarity - covered).relu()
        pick = gain.sum(dim=(0, -1)).masked_fill(blocked, -torch.inf).argmax(dim=-1, keepdim=True)
        chosen.append(pick)
        blocked = blocked.scatter(-1, pick, True)
        index = pick[None, :, :, None].expand(len(similarity), -1, -1, similarity.shape[-1])
        row = similarity.gather(2, index)
        covered = row if covered is None else torch.maximum(covered, row)
    return torch.cat(chosen, dim=-1)


def merge_map(
    unit: Tensor, destinations: LongTensor, served: BoolTensor, valid: BoolTensor, scale: float
) -> Tensor:
    """The map A = softmax over destinations of scale * <x_destination, x_token>.

    Args:
        unit: [B, tiles, m, D] tokens of norm one, fp32: at scale 1000 the logits of bf16 are 4
            apart.
        destinations: [tiles, k] positions within the tile.
        served: [tiles, k], False where a tile has fewer than k destinations.
        valid: [tiles, m], False where a tile is padded.

    Returns:
        A [B, tiles, k, m]; the column of a valid token sums to one, that of a padded one is zero.
    """
    index = destinations[None, :, :, None].expand(len(unit), -1, -1, unit.shape[-1])
    logits = scale * (unit.gather(2, index) @ unit.mT)
    logits = logits.masked_fill(~served[:, :, None], -torch.inf)
    return logits.softmax(dim=-2) * valid[:, None, :]


class TileMerge(Merge):
    """Merge with the row-normalised map, unmerge with the transposed one.

    The first `start` image rows pass through bit-identical; the others are tiled.

    Args:
        A: [B, tiles, k, m], see `merge_map`.
        destinations: [tiles, k] positions within the tile.
        dtype: of the states to merge.
    """

    def __init__(
        self,
        A: Tensor,
        destinations: LongTensor,
        tiling: Tiling,
        start: int,
        scope: str,
        dtype: torch.dtype,
    ) -> None:
        rows = start + tiling.member.gather(1, destinations).flatten()[tiling.slot]
        self.rows = torch.cat([torch.arange(start, device=rows.device), rows])
        self.scope = scope
        self._start, self._tiling = start, tiling
        eps = torch.finfo(A.dtype).tiny  # an unserved destination has an empty row
        self._down = (A / A.sum(dim=-1, keepdim=True).clamp_min(eps)).to(dtype)
        self._up = A.mT.to(dtype)

    def merge(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, n', D]: weighted means."""
        head, body = x[:, : self._start], x[:, self._start :]
        merged = self._down @ body[:, self._tiling.member]
        return torch.cat([head, merged.flatten(1, 2)[:, self._tiling.slot]], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """[B, n', D] -> [B, N, D]: convex mixes of the tile's destinations."""
        head, body = y[:, : self._start], y[:, self._start :]
        tokens = self._up @ body[:, self._tiling.token]
        return torch.cat([head, tokens.flatten(1, 2)[:, self._tiling.home]], dim=1)


@dataclass
class ToMA(Method, MergesTokens):
    """Tile-wise token merging with the layer plan of the official FLUX code, scaled by depth.

    Args:
        ratio: share of the image tokens to merge away.
        reference_only: merge reference tokens only; target tokens pass through untouched.
        merge_every: merge at steps 0, merge_every, 2 * merge_every, ... and run the others dense;
            3 is the official schedule, 1 merges at each step.
        tile: rows and columns of a tile in tokens. Tiles at the border of other grids are padded.
        scale: sharpness of the softmax; 1000 makes the map nearly one-hot.
        destinations_every, map_every: keep the destinations and the map for this many steps; the
            official FLUX code computes both anew in each merging step. New destinations always
            bring a new map. CFG branches share destinations, each has its own map.
    """

    variants: ClassVar = {
        "toma": {"reference_only": False},
        "toma_ref": {"reference_only": True},
    }

    ratio: float = 0.5
    reference_only: bool = False
    merge_every: int = 3
    tile: tuple[int, int] = (4, 4)
    scale: float = 1000.0
    destinations_every: int = 1
    map_every: int = 1
    _plan: list[tuple[int, str] | None] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    # group -> (step, destinations); (group, branch) -> (step, merge)
    _destinations: dict[int, tuple[int, LongTensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _merges: dict[tuple[int, str], tuple[int, TileMerge]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("ratio", self.ratio)
        self.tile = check_window("tile", self.tile, least=1)
        for name in ("merge_every", "destinations_every", "map_every"):
            check_whole(name, getattr(self, name), least=1)
        check_positive("scale", self.scale)

    def prepare(self, model: ModelFacts) -> None:
        self._plan = layer_plan(model)

    def reset(self) -> None:
        self._destinations.clear()
        self._merges.clear()

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """The merge of the layer's group, computed from the normed states of its first layer."""
        if self._plan[layer] is None or call.turn % self.merge_every:
            return None
        start, grids = call.layout.region(self.reference_only)
        cut = tiling(grids, self.tile, self.ratio, states.device)
        if len(cut.slot) == len(cut.home):  # every token would be a destination
            return None

        group, scope = self._plan[layer]
        chosen, destinations = self._destinations.get(group, (NEVER, None))
        mapped, merge = self._merges.get((group, call.branch), (NEVER, None))
        choose = call.turn - chosen >= self.destinations_every
        if not choose and mapped >= chosen and call.turn - mapped < self.map_every:
            return merge

        unit = F.normalize(states[:, start:][:, cut.member].float(), dim=-1)
        if choose:
            destinations = facility_location(unit @ unit.mT, cut.valid, cut.k)
            self._destinations[group] = (call.turn, destinations)
        A = merge_map(unit, destinations, cut.served, cut.valid, self.scale)
        merge = TileMerge(A, destinations, cut, start, scope, states.dtype)
        self._merges[group, call.branch] = (call.turn, merge)
        return merge
