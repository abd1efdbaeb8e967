"""Fewer denoising steps: the floor of all that makes steps cheaper."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from typing import Any, ClassVar

import numpy as np

from topi.errors import ToPiError
from topi.methods.base import Call, Method
from topi.methods.parameters import check_number
from topi.models.held import replaced


def thinned(sigmas: Any, count: int) -> list[float]:
    """A schedule of noise levels in `count` steps: linear between those given, 0 at the end."""
    levels = np.append(np.asarray(sigmas, dtype=float), 0.0)
    return np.interp(np.linspace(0, len(sigmas), count, endpoint=False), range(len(levels)), levels)


@dataclass
class FewerSteps(Method):
    """Run a share of the steps; in the trace each stands for the calls of the full run it replaces.

    A pipeline that leaves out the first steps (`strength` of inpainting) runs that share of the
    others, from the noise level at which it starts.

    Args:
        share: of the steps that run, at least one, in (0, 1].
    """

    variants: ClassVar = {"fewer_steps": {}}

    share: float = 0.5
    _steps: tuple[int, int] = field(default=(1, 1), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            ToPiError: it is out of range.
        """
        super().__post_init__()
        check_number("share", self.share, "in (0, 1]", lambda number: 0 < number <= 1)

    @contextmanager
    def around(self, model: Any) -> Iterator[None]:
        """Hold the pipeline's scheduler, which makes the steps, and what leaves out the first ones.

        Raises:
            ToPiError: it is no pipeline; or, inside, its scheduler is not told noise levels.
        """
        scheduler = getattr(model, "scheduler", None)
        if scheduler is None:
            raise ToPiError("FewerSteps needs the pipeline's scheduler; attach to the pipeline.")
        stock, leave_out = scheduler.set_timesteps, getattr(model, "get_timesteps", None)
        told: dict[str, Any] = {}

        def thin(left: int) -> None:
            """Of the last `left` steps."""
            count = max(1, round(self.share * left))
            self._steps = left, count
            if count < left:
                stock(**told | {"sigmas": thinned(told["sigmas"][-left:], count)})

        @wraps(stock)  # pipelines look at the signature
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            told.clear()
            told.update(signature(stock).bind(*args, **kwargs).arguments)
            if told.get("sigmas") is None:
                raise ToPiError("FewerSteps thins out noise levels, but the pipeline gives none.")
            stock(**told)
            self._steps = 2 * (len(told["sigmas"]),)
            if leave_out is None:
                thin(len(told["sigmas"]))

        def get_timesteps(*args: Any, **kwargs: Any) -> tuple[Any, int]:
            found = leave_out(*args, **kwargs)
            thin(left := len(found[0]))
            if self._steps[1] == left:
                return found
            scheduler.set_begin_index(0)
            return scheduler.timesteps, self._steps[1]

        later = nullcontext()
        if leave_out is not None:
            later = replaced(model, "get_timesteps", get_timesteps)
        with replaced(scheduler, "set_timesteps", set_timesteps), later:
            yield

    def begin(self, call: Call) -> None:
        """Of the full run's steps, as many as lie between this step and the next."""
        full, count = self._steps
        bounds = ((call.turn + ahead) * full // count for ahead in (1, 0))
        call.record.stands_for = next(bounds) - next(bounds)
