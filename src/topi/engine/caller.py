"""The pipeline call that a transformer call is part of, read from the Python stack.

A pipeline does not tell its transformer when a call begins or is cut short, and several pipelines
can share one transformer (`from_pipe`). The stack of the running thread tells both.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from threading import get_ident
from types import FrameType

from diffusers import DiffusionPipeline


@dataclass(frozen=True, eq=False)
class PipelineCall:
    """One run of a pipeline's `__call__`.

    Args:
        pipeline: the pipeline that runs.
        frame: of its `__call__`; no other call has the same one.
        thread: the thread it runs in.
    """

    pipeline: DiffusionPipeline
    frame: FrameType
    thread: int

    def is_same(self, other: "PipelineCall | None") -> bool:
        """True if both are one run."""
        return other is not None and other.frame is self.frame

    def is_running(self) -> bool:
        """True if it has neither returned nor raised yet."""
        innermost = sys._current_frames().get(self.thread)
        return any(frame is self.frame for frame in _outwards(innermost))


def current_pipeline_call() -> PipelineCall | None:
    """The innermost pipeline call of this thread; None in a denoising loop of one's own."""
    for frame in _outwards(sys._getframe()):
        if frame.f_code.co_name == "__call__":
            caller = frame.f_locals.get("self")
            if isinstance(caller, DiffusionPipeline):
                return PipelineCall(caller, frame, get_ident())
    return None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that it was called from."""
    while frame is not None:
        yield frame
        frame = frame.f_back
