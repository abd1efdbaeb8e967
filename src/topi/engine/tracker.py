"""Which pipeline call, denoising step and CFG branch a transformer call belongs to."""

from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from topi.engine.caller import PipelineCall
from topi.models.adapter import version

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

    A call of a diffusers pipeline is known by its frame on the stack. A loop of one's own is taken
    for a new one where anything shows that it cannot go on with the old one: its shapes, its
    references, a timestep that does not fall, or positions that are new together with the schedule
    or the thread.

    A pipeline that names its branches (`cache_context`, as Qwen does) is believed. Others (Flux
    Kontext) hand the same latents tensor to every branch of a step, so a call with the very tensor
    of the previous call, not written to since, is the step's next branch. As reading a timestep
    waits for the device, none is read where the objects that a pipeline made place a call.
    """

    step: int = -1
    caller: PipelineCall | None = None
    _first: float | Tensor | None = None  # timestep of step 0
    _timestep: float | Tensor | None = None
    _latents: Tensor | None = None  # held, so that its identity cannot be reused
    _version: int | None = None  # of the latents
    _references: Tensor | None = None  # of step 0, in a loop of one's own
    _positions: dict[str | None, Any] = field(default_factory=dict)  # of each branch with a name
    _schedule: Any = None
    _thread: int | None = None
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
        caller: PipelineCall | None = None,
        references: Tensor | None = None,
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
            caller: the pipeline call; None in a loop of one's own.
            references: [B, N, C] of the references among the latents, if any.

        Returns:
            (this call begins a new pipeline call, step, branch).
        """
        known = positions is self._positions.get(context)
        if self._is_another(known, signature, schedule, caller):
            self.reset()
            known = False
        told = known and caller is not None and schedule is not None and schedule is self._schedule
        current, begins = version(latents), False
        if told and context is not None:
            same_step = context not in self._seen
        elif told and latents is not self._latents:
            same_step = False
        elif told and current is not None and current == self._version:
            same_step = True
        else:
            timestep = float(timestep)
            self._timestep = None if self._timestep is None else float(self._timestep)
            next_branch = latents is self._latents if context is None else context not in self._seen
            same_step = next_branch and timestep == self._timestep
            begins = not same_step and self._begins(timestep, known, references)
        if begins:
            self.reset()
            self._first = timestep
            if caller is None and references is not None:  # the loop may write to its own
                self._references = references.clone()
        if not same_step:
            self.step += 1
            self._seen = []
        branch = context or (
            BRANCHES[len(self._seen)] if len(self._seen) < 2 else f"branch{len(self._seen)}"
        )
        self._seen.append(branch)
        self.caller, self._thread = caller, get_ident()
        self._timestep, self._schedule = timestep, schedule
        self._latents, self._version = latents, current
        self._positions[context], self._signature = positions, signature
        return begins, self.step, branch

    def _is_another(
        self, known: bool, signature: Any, schedule: Any, caller: PipelineCall | None
    ) -> bool:
        """True if the objects alone show that this is another pipeline call than the one before."""
        if caller is not self.caller or signature != self._signature:
            return True
        elsewhere = schedule is not self._schedule or get_ident() != self._thread
        return elsewhere and not known and caller is None

    def _begins(self, timestep: float, known: bool, references: Tensor | None) -> bool:
        """True if a call that opens a step is also the first of a pipeline call."""
        if self._timestep is None or timestep > self._timestep:
            return True
        # The previous loop ended after its first step (an exception). Low precision can also round
        # the first timesteps to one value; then the positions are still the same object.
        if timestep == self._first and not known:
            return True
        before = self._references
        if before is None or references is None:
            return False
        return not torch.equal(before, references)

    def reset(self) -> None:
        """Forget the pipeline call."""
        type(self).__init__(self)
