"""TaylorSeer: forecast the states of skipped steps by a Taylor series over the computed ones.

Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers"; schedule
and factors are those of diffusers' hook. What is forecast is one tensor, the target states behind
the last block, as in its lite mode.
"""

from dataclasses import dataclass, field
from math import factorial
from typing import ClassVar

from torch import Tensor

from topi.methods.base import BlockInput, Call
from topi.methods.parameters import check_whole
from topi.methods.parts.temporal import Memory, TemporalCache


def backward_differences(now: Tensor, before: list[Tensor], gap: int, order: int) -> list[Tensor]:
    """Estimated derivatives of order 0, 1, ... by the step, as far as there is history.

    Args:
        now: the newest value.
        before: the estimates made at the value before.
        gap: steps between the two.
        order: the highest derivative.
    """
    factors = [now]
    for previous in before[:order]:
        factors.append((factors[-1] - previous) / gap)
    return factors


def taylor(factors: list[Tensor], ahead: int) -> Tensor:
    """sum_j F_j ahead^j / j!"""
    return sum(factor * (ahead**j / factorial(j)) for j, factor in enumerate(factors))


@dataclass
class TaylorMemory(Memory):
    """Also the derivatives at the latest computed step, fp32, and which step that was."""

    factors: list[Tensor] = field(default_factory=list)
    step: int = 0


@dataclass
class TaylorSeer(TemporalCache):
    """Compute every so many steps and forecast those in between.

    Args:
        interval: steps from one computed step to the next; 1 computes every step.
        warmup: compute this many first steps; the next one too, when the intervals begin.
        order: of the highest derivative; 0 repeats the latest computed states.
    """

    variants: ClassVar = {"taylorseer": {}}

    interval: int = 5
    warmup: int = 3
    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("interval", self.interval, least=1)
        check_whole("warmup", self.warmup, least=0)
        check_whole("order", self.order, least=0)

    def new_memory(self) -> TaylorMemory:
        """Without any computed step."""
        return TaylorMemory()

    def can_predict(self, memory: TaylorMemory) -> bool:
        """True if there has been a computed step."""
        return bool(memory.factors)

    def may_skip(self, call: Call, block: BlockInput, memory: TaylorMemory) -> bool:
        """True if it is neither warm-up nor the computed step of an interval."""
        since = call.step - self.warmup
        return since >= 0 and (since - 1) % self.interval != 0

    def predict(self, call: Call, memory: TaylorMemory) -> Tensor:
        """The series at this step."""
        return taylor(memory.factors, call.step - memory.step).to(memory.start.dtype)

    def computed(self, call: Call, memory: TaylorMemory, states: Tensor) -> None:
        """Renew the derivatives."""
        gap = call.step - memory.step
        memory.factors = backward_differences(states.float(), memory.factors, gap, self.order)
        memory.step = call.step
