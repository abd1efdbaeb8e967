"""MagCache: skip steps as long as the residual's known change of magnitude stays small.

Ma et al., "MagCache: Fast Video Generation with Magnitude-Aware Cache"; the rules are those of the
official code and diffusers' hook, with target-only residuals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from topi.methods.base import BlockInput, Call
from topi.methods.parameters import (
    check_at_least_zero,
    check_each,
    check_positive,
    check_share,
    check_whole,
)
from topi.methods.parts.temporal import Memory, TemporalCache


def nearest(ratios: Sequence[float], count: int) -> list[float]:
    """As many ratios as there are steps: those calibrated for the nearest point of the way."""
    if count == 1:
        return [ratios[-1]]
    scale = (len(ratios) - 1) / (count - 1)
    return [ratios[round(step * scale)] for step in range(count)]


def magnitude_ratio(residual: Tensor, before: Tensor) -> float:
    """Mean over tokens of ||residual|| / ||residual of the step before||, from [B, n, D]."""
    now, before = residual.float().norm(dim=-1), before.float().norm(dim=-1)
    return float((now / (before + 1e-8)).mean())


@dataclass
class MagMemory(Memory):
    """Also what has come together since the latest computed step."""

    ratio: float = 1.0
    error: float = 0.0
    skips: int = 0


@dataclass
class MagCache(TemporalCache):
    """Skip while sum |1 - product of magnitude ratios| stays small; no tensor decides.

    Args:
        threshold: of that sum. None: the official one of the model, else 0.05.
        max_skips: at most this many steps in a row; 0 computes every step. None: the official
            number of the model, else 4.
        retention: share of the first steps that is always computed.
        ratios: each step's ||residual|| over that of the step before. None: the model's own,
            published for FLUX.1 Kontext and Qwen-Image-Edit, measured by `topi fit-cache` for
            others. With another number of steps the nearest ones are taken.
        always: numbers of ratios, from 0, whose steps are computed in any case. None: those of the
            official script with the model's own ratios (11 for FLUX.1 Kontext), else none.
    """

    variants: ClassVar = {"magcache": {}}
    fitted: ClassVar = ("ratios", "threshold", "max_skips", "always")
    unfitted: ClassVar = {"threshold": 0.05, "max_skips": 4, "always": ()}
    needs_steps: ClassVar = True

    threshold: float | None = None
    max_skips: int | None = None
    retention: float = 0.2
    ratios: tuple[float, ...] | None = None
    always: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None:
            check_at_least_zero("threshold", self.threshold)
        if self.max_skips is not None:
            check_whole("max_skips", self.max_skips, least=0)
        check_share("retention", self.retention)
        if self.ratios is not None:
            self.ratios = check_each("ratios", self.ratios, check_positive)
            if self.always is None:  # the model's own belong to its own ratios
                self.always = ()
        if self.always not in (None, ()):
            self.always = check_each("always", self.always, partial(check_whole, least=0))

    def new_memory(self) -> MagMemory:
        """Without any error."""
        return MagMemory()

    def may_skip(self, call: Call, block: BlockInput, memory: MagMemory) -> bool:
        """True if the accumulated error is small."""
        if call.step < int(self.retention * call.n_steps + 0.5):
            return False
        ratios = self._fit["ratios"]
        at = nearest(range(len(ratios)), call.n_steps)[call.step]
        memory.ratio *= ratios[at]
        memory.error += abs(1 - memory.ratio)
        memory.skips += 1
        small = memory.error <= self._fit["threshold"] and memory.skips <= self._fit["max_skips"]
        return small and at not in self._fit["always"]

    def computed(self, call: Call, memory: MagMemory, states: Tensor) -> None:
        """The error starts anew."""
        super().computed(call, memory, states)
        memory.ratio, memory.error, memory.skips = 1.0, 0.0, 0
