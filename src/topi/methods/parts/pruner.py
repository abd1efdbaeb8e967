"""Methods that drop reference tokens: score, select, gather."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from topi.engine import FULL, GathersStates, Plan
from topi.methods.base import Call
from topi.methods.parameters import check_one_of, check_whole
from topi.methods.parts.schedule import AnchorSchedule

DROPPED = ("prune", "merge")


def first_ranked(order: Tensor, count: Tensor | int) -> Tensor:
    """The first `count` [..., 1] of the indices in `order` [..., n]: boolean [..., n]."""
    ranks = torch.arange(order.shape[-1], device=order.device)
    kept = (ranks < count).expand_as(order)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def filled_up(mask: Tensor, preference: Tensor, count: Tensor) -> Tensor:
    """The tokens of a mask, and the most preferred others until there are `count`, or all.

    Args:
        mask: boolean [..., |C|].
        preference: [..., |C|], higher is better.
    """
    order = preference.masked_fill(mask, torch.inf).sort(descending=True, stable=True).indices
    return first_ranked(order, count)


def round_up(mask: Tensor, preference: Tensor, multiple: int) -> Tensor:
    """`filled_up` [|C|] until a multiple of `multiple`, or all, are kept."""
    return mask if multiple == 1 else filled_up(mask, preference, multiple_of(mask.sum(), multiple))


def multiple_of(count: Tensor, multiple: int) -> Tensor:
    """The next multiple from `count` on."""
    return -(-count // multiple) * multiple


def complement(rows: Tensor, n: int) -> Tensor:
    """The indices below `n` that are not among `rows` [K], ascending: [n - K].

    Their number is known, so that nothing is read from the device to find them.
    """
    taken = torch.zeros(n, dtype=torch.uint8, device=rows.device).scatter_(0, rows, 1)
    return taken.argsort(stable=True)[: n - len(rows)]


def merge_into_nearest(states: Tensor, kept: Tensor) -> Tensor:
    """Average every dropped token into the kept one it resembles most (section 5.3, Table 4).

    The paper says "merge" and no more. Here nearest is by cosine, and a merged token is the plain
    mean of all that it holds, itself included.

    Args:
        states: [B, n, D] of all reference tokens.
        kept: ascending indices [K].

    Returns:
        [B, K, D], in the order of `kept`.
    """
    keepers = states[:, kept].float()
    dropped = states[:, complement(kept, states.shape[1])].float()
    unit = torch.nn.functional.normalize
    nearest = (unit(dropped, dim=-1) @ unit(keepers, dim=-1).mT).argmax(-1, keepdim=True)
    sums = keepers.scatter_add(1, nearest.expand_as(dropped), dropped)
    ones = torch.ones_like(nearest, dtype=sums.dtype)
    counts = torch.ones_like(sums[..., :1]).scatter_add(1, nearest, ones)
    return (sums / counts).to(states.dtype)


@dataclass
class ReferencePruner(AnchorSchedule, GathersStates):
    """Algorithm 1 without the choice of tokens: when all are kept, when not, from which layer on.

    Tokens are dropped once, before layer `front_layers`.

    Args:
        dropped: "prune" drops the other tokens, "merge" averages them into the kept ones (Table 4).
        round_to: keep a multiple of so many tokens, rounded up, for compiled kernels that like
            lengths to repeat; what is added is what would have been kept next.
    """

    dropped: str = "prune"
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ToPiError: a value is out of range.
        """
        super().__post_init__()
        check_whole("round_to", self.round_to, least=1)
        check_one_of("dropped", self.dropped, DROPPED)

    def plan(self, call: Call, layer: int = 0) -> Plan:
        """Eq. 11: all tokens up to the first anchor and on anchors, else the anchor's choice."""
        return FULL if self.runs_in_full(call) else Plan(self.kept(call), self.front_layers)

    def gather(self, call: Call, states: Tensor, rows: Tensor) -> Tensor:
        """Eq. 11, with what is dropped merged into the rest where that is asked for."""
        if self.dropped == "prune":
            return super().gather(call, states, rows)
        n_target = call.layout.n_target
        if rows.ndim == 2:
            samples = zip(states.split(1), rows, strict=True)
            return torch.cat([self.gather(call, *sample) for sample in samples])
        merged = merge_into_nearest(states[:, n_target:], rows[n_target:] - n_target)
        return torch.cat([states[:, :n_target], merged], dim=1)

    @abstractmethod
    def kept(self, call: Call) -> Tensor | None:
        """The reference tokens to keep on a pruned step: [K] or [B, K]; None for all."""
