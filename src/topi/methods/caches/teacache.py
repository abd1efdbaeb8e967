"""TeaCache: skip steps as long as the timestep-modulated input has drifted little.

Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model"; the rules are
those of the official TeaCache4FLUX, with target-only residuals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topi.methods.base import BlockInput, Call
from topi.methods.parameters import check_at_least_zero, check_each, check_finite
from topi.methods.parts.temporal import Memory, TemporalCache, relative_change


def rescale(change: float, coefficients: Sequence[float], ceiling: float) -> float:
    """The polynomial from the input's relative change to the output's, never negative.

    Args:
        change: relative change of the modulated input between two steps.
        coefficients: highest power first.
        ceiling: the largest change that the polynomial was fitted on; it may do anything beyond.
    """
    change, value = min(change, ceiling), 0.0
    for coefficient in coefficients:  # Horner
        value = value * change + coefficient
    return max(value, 0.0)


@dataclass
class TeaMemory(Memory):
    """Also the modulated input of the previous step and the drift since the latest computed one."""

    signal: Tensor | None = None
    drift: float = 0.0


@dataclass
class TeaCache(TemporalCache):
    """Accumulate the rescaled change of the first block's modulated input; skip below a threshold.

    The change is over all image tokens, as the published polynomials want it. The first and the
    last step are computed in any case.

    Args:
        threshold: of the accumulated change (delta of the paper); 0 computes every step. None: the
            one at which half of the model's steps are computed, if it was fitted, else 0.3.
        coefficients: of the polynomial, highest power first. None: the model's own, published for
            FLUX.1 Kontext and Qwen-Image, fitted by `topi fit-cache` for others.
        ceiling: the largest change the polynomial is used for; None: the model's own.
    """

    variants: ClassVar = {"teacache": {}}
    fitted: ClassVar = ("coefficients", "ceiling", "threshold")
    unfitted: ClassVar = {"threshold": 0.3}
    ends: ClassVar = True

    threshold: float | None = None
    coefficients: tuple[float, ...] | None = None
    ceiling: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "ceiling"):
            if (value := getattr(self, name)) is not None:
                check_at_least_zero(name, value)
        if self.coefficients is not None:
            self.coefficients = check_each("coefficients", self.coefficients, check_finite)
            if self.ceiling is None:
                self.ceiling = float("inf")

    def new_memory(self) -> TeaMemory:
        """Without any drift."""
        return TeaMemory()

    def may_skip(self, call: Call, block: BlockInput, memory: TeaMemory) -> bool:
        """True if the accumulated change is below the threshold."""
        signal, call.record.probed = block.normed(), True
        if memory.signal is not None:
            change = relative_change(signal, memory.signal)
            memory.drift += rescale(change, self._fit["coefficients"], self._fit["ceiling"])
        memory.signal = signal
        return memory.drift < self._fit["threshold"]

    def computed(self, call: Call, memory: TeaMemory, states: Tensor) -> None:
        """The drift starts anew."""
        super().computed(call, memory, states)
        memory.drift = 0.0
