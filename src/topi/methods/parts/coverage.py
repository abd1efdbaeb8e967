"""Facility location over a token grid: every token is covered by the kept one most like it.

f(S) = sum_i w_i max_{j in S} s_ij, with s_ij in [0, 1], s_ii = 1 and s_ij = 0 beyond a radius, is
submodular: what a token adds to S never grows as S does (Nemhauser et al., 1978). That makes greedy
choice good, and lets it run on many places of the grid at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH = 1.2
"""Tokens: standard deviation of the Gaussian over distance."""


@dataclass(frozen=True)
class Neighbourhood:
    """Which of n tokens cover which others, and how well, tile by tile.

    A phase is a set of tiles that are so far apart that no token is near to two of them.

    Args:
        tokens: of each phase, [tiles, side**2] long; n fills up a tile.
        index: of each phase, [tiles, side**2, M] long: the tokens around each one, itself included;
            n where there is none.
        similarity: of each phase, as `index`: s_ij; 0 where there is none.
    """

    tokens: tuple[Tensor, ...]
    index: tuple[Tensor, ...]
    similarity: tuple[Tensor, ...]


def neighbourhood(grid: tuple[int, int], latents: Tensor, radius: int = 1) -> Neighbourhood:
    """s_ij = exp(-d_ij^2 / 2 width^2) exp(-|z_i - z_j| / mean |z_i - z_j|) within `radius`.

    Args:
        grid: rows and columns.
        latents: [rows * columns, C], z.
        radius: in tokens, along rows and columns.
    """
    rows, columns = grid
    n, device = rows * columns, latents.device
    offsets = torch.arange(-radius, radius + 1, device=device)
    offsets = torch.cartesian_prod(offsets, offsets)  # [M, 2]
    at = torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid))  # [n, 2]
    near = at[:, None] + offsets
    inside = ((near >= 0) & (near < torch.tensor(grid, device=device))).all(-1)
    index = torch.where(inside, near[..., 0] * columns + near[..., 1], n)
    padded = torch.cat([latents.float(), latents.new_zeros(1, latents.shape[1]).float()])
    apart = (padded[index] - padded[:n, None]).norm(dim=-1)
    others = inside & (index != torch.arange(n, device=device)[:, None])
    scale = apart[others].mean().clamp_min(torch.finfo(torch.float32).tiny)
    space = torch.exp(-offsets.float().square().sum(-1) / (2 * WIDTH**2))
    similarity = torch.where(inside, space * torch.exp(-apart / scale), 0.0)
    # the row behind the last token, which fills up tiles, has no neighbours
    index = torch.cat([index, torch.full_like(index[:1], n)])
    similarity = torch.cat([similarity, torch.zeros_like(similarity[:1])])
    phases = tiles(grid, 2 * radius, device)
    return Neighbourhood(
        phases, tuple(index[each] for each in phases), tuple(similarity[each] for each in phases)
    )


def tiles(grid: tuple[int, int], side: int, device: torch.device) -> tuple[Tensor, ...]:
    """The tokens of each `side` x `side` tile in four phases, as the squares of a 2 x 2 board.

    Two tokens in different tiles of a phase are more than `side` apart, along rows or columns.
    """
    rows, columns = grid
    at = torch.arange(rows * columns, device=device).reshape(grid)
    below, right = -rows % (2 * side), -columns % (2 * side)
    at = torch.nn.functional.pad(at, (0, right, 0, below), value=rows * columns)
    at = at.reshape(-1, 2, side, at.shape[1] // (2 * side), 2, side)
    by_phase = at.permute(1, 4, 0, 3, 2, 5).reshape(4, -1, side * side)
    return tuple(phase[(phase < rows * columns).any(1)] for phase in by_phase)


def covering_gains(near: Neighbourhood, weights: Tensor, damping: Tensor) -> Tensor:
    """What each token adds to the covered weight, in the order of a stratified greedy choice.

    In every round each tile takes its token of largest damped gain; tiles of one phase do so at
    once, which is no approximation, as none of them covers a token that another one does. A token's
    gain is therefore exact for those taken before it; all gains add up to the sum of the weights,
    and those of any set of tokens to no more than what the set covers.

    Args:
        near: of n tokens.
        weights: [n] w, not negative.
        damping: [n] factors of the gains by which a tile chooses.

    Returns:
        [n].
    """
    n, weights, damping = len(weights), weights.float(), damping.float()
    beyond = weights.new_zeros(1)  # what lies outside of the grid weighs nothing
    weights, damping = torch.cat([weights, beyond]), torch.cat([damping, beyond])
    covered, gains = torch.zeros_like(weights), torch.zeros_like(weights)
    phases = [
        _Choice(tokens, index, similarity, weights, damping)
        for tokens, index, similarity in zip(near.tokens, near.index, near.similarity, strict=True)
        if len(tokens)
    ]
    for _ in range(near.tokens[0].shape[1]):
        for phase in phases:
            phase.take_best(covered, gains)
    return gains[:n]


class _Choice:
    """The tiles of a phase, which take a token each at a time. Rows are tokens, tile after tile.

    Args:
        tokens, index, similarity: as in `Neighbourhood`, of one phase.
        weights, damping: [n + 1].
    """

    def __init__(
        self, tokens: Tensor, index: Tensor, similarity: Tensor, weights: Tensor, damping: Tensor
    ) -> None:
        count, size, near = index.shape
        self.tokens, self.similarity = tokens.flatten(), similarity.flatten(0, 1)
        self.around = index.flatten()
        self.index = index.flatten(0, 1)
        self.worth = weights.index_select(0, self.around).view(-1, near)
        self.damping = damping[tokens]
        self.first = torch.arange(0, count * size, size, device=index.device)
        # -inf: taken, or fills up a tile
        self.barred = torch.zeros_like(self.damping).masked_fill_(
            tokens == len(weights) - 1, -torch.inf
        )

    def take_best(self, covered: Tensor, gains: Tensor) -> None:
        """Each tile takes its token of largest damped gain; `covered` and `gains` [n + 1] follow.

        A tile that is used up takes one of its tokens again, which covers nothing more.
        """
        known = covered.index_select(0, self.around).view_as(self.index)
        gain = (self.similarity - known).relu_().mul_(self.worth).sum(-1)
        best = torch.addcmul(self.barred, gain.view_as(self.barred), self.damping).argmax(-1)
        best += self.first
        self.barred.view(-1).index_fill_(0, best, -torch.inf)
        gains.index_add_(0, self.tokens.index_select(0, best), gain.index_select(0, best))
        now = torch.maximum(known.index_select(0, best), self.similarity.index_select(0, best))
        covered.index_copy_(0, self.index.index_select(0, best).flatten(), now.flatten())
