"""A checkerboard of reference tokens: half of them, evenly spread, without any score."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topi.methods.base import Call
from topi.methods.parameters import check_one_of
from topi.methods.parts.pruner import ReferencePruner, round_up

FLIPS = ("never", "anchor", "step")


def checkerboard(grid: tuple[int, int], parity: int) -> Tensor:
    """Which tokens of a (rows, columns) grid lie on squares of a parity: bool [rows * columns]."""
    rows, columns = (torch.arange(size) for size in grid)
    return ((rows[:, None] + columns + parity) % 2 == 0).flatten()


@dataclass
class Checkerboard(ReferencePruner):
    """Keep every other token of each reference's own grid, on the anchor schedule of ToPi.

    Args:
        flip: when to change to the other squares: "never", at each "anchor", or at each "step".
    """

    variants: ClassVar = {"checker": {}}

    flip: str = "never"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("flip", self.flip, FLIPS)

    def kept(self, call: Call) -> Tensor:
        """The squares whose turn it is, on every reference's own grid."""
        with call.timed("selection_seconds"):
            turns = {"never": 0, "anchor": self.anchor_number(call.turn), "step": call.turn}[
                self.flip
            ]
            boards = [checkerboard(grid, turns % 2) for grid in call.layout.reference_grids]
            board = torch.cat(boards)
            return round_up(board, torch.zeros(board.shape), self.round_to).nonzero().flatten()
