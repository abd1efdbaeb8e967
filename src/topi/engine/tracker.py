"""Which pipeline call, denoising step and CFG branch a transformer call belongs to."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

BRANCHES = ("cond", "uncond")


def steps_left(scheduler: Any, timestep: float) -> int | None:
    """Denoising steps from the one at `timestep` (in [0, 1]) to the last; None: nobody knows.

    The nearest of the scheduler's timesteps, as a pipeline hands on what its low precision left.
    """
    if (timesteps := getattr(scheduler, "timesteps", None)) is None:
        return None
    gaps = (timesteps.float() / scheduler.config.num_train_timesteps - timestep).abs()
    return len(gaps) - int(gaps.argmin())


@dataclass
class StepTracker:
    """Follows a denoising loop from inside its transformer.

    A pipeline that names its branches (`cache_context`, as Qwen does) is believed. Others (Flux
    Kontext) hand the same latents tensor to every branch of a step, so a call with the very tensor
    of the previous call, not written to since, is the step's next branch. Timesteps fall within a
    pipeline call; one that does not begins another. As reading a timestep waits for the device,
    none is read where the objects alone place a call.
    """

    step: int = -1
    _first: float | None = None  # timestep of step 0
    _timestep: float | Tensor | None = None
    _latents: Tensor | None = None  # held, so that its identity cannot be reused
    _version: int | None = None  # of the latents
    _positions: dict[str | None, Any] = field(default_factory=dict)  # of each branch with a name
    _schedule: Any = None
    _signature: Any = None
    _seen: list[str] = field(default_factory=list)  # branches of this step so far

    def observe(
        self,
        context: str | None,
        timestep: float | Tensor,
        latents: Tensor,
        positions: Any,
        signature: Any,
        schedule: Any = None,
    ) -> tuple[bool, int, str]:
        """Place the next transformer call.

        Args:
            context: the branch name the pipeline set, or None.
            timestep: of the first sample, a number or a tensor that holds one.
            latents: the transformer's input tensor.
            positions: an object that each pipeline call makes anew, for each branch if it names
                its branches.
            signature: anything that stays equal within a pipeline call.
            schedule: the scheduler's timesteps, made anew by each pipeline call; None: nobody has
                told, so the timesteps themselves must.

        Returns:
            (this call begins a new pipeline call, step, branch).
        """
        version, begins = _version(latents), False
        known = (
            schedule is not None
            and schedule is self._schedule
            and positions is self._positions.get(context)
            and signature == self._signature
        )
        if known and context is not None:
            same_step = context not in self._seen
        elif known and latents is not self._latents:
            same_step = False
        elif known and version is not None and version == self._version:
            same_step = True
        else:
            timestep = float(timestep)
            self._timestep = None if self._timestep is None else float(self._timestep)
            if context is None:
                same_step = latents is self._latents and timestep == self._timestep
            else:
                same_step = context not in self._seen and timestep == self._timestep
            same_step = same_step and signature == self._signature
            known = positions is self._positions.get(context)
            begins = not same_step and self._begins(timestep, known, signature)
        if begins:
            self.reset()
            self._first = timestep
        if not same_step:
            self.step += 1
            self._seen = []
        branch = context or (
            BRANCHES[len(self._seen)] if len(self._seen) < 2 else f"branch{len(self._seen)}"
        )
        self._seen.append(branch)
        self._timestep, self._schedule = timestep, schedule
        self._latents, self._version = latents, version
        self._positions[context], self._signature = positions, signature
        return begins, self.step, branch

    def _begins(self, timestep: float, known: bool, signature: Any) -> bool:
        """Is a call that opens a step also the first of a pipeline call?"""
        if self._timestep is None or signature != self._signature or timestep > self._timestep:
            return True
        # The previous pipeline call ended after its first step (an exception). Low precision can
        # also round the first timesteps to one value; then the positions are still the same object.
        return timestep == self._first and not known

    def reset(self) -> None:
        """Forget the pipeline call."""
        self.__init__()


def _version(tensor: Tensor) -> int | None:
    """How often it has been written to; None: torch does not count."""
    return None if tensor.is_inference() else tensor._version
