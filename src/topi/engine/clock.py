"""Stretches of time on a device's own clock: taking them never waits for the device."""

import time
from typing import Any

import torch


class Span:
    """From its making to `stop`; on CUDA between two events in the stream.

    Reading `seconds` waits for the device; that is left to whoever reads, after the run.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._start = self._now()

    def stop(self) -> "Span":
        """End the stretch; returns itself."""
        self._end = self._now()
        return self

    @property
    def seconds(self) -> float:
        """How long it took, device work included."""
        if not self._on_gpu:
            return self._end - self._start
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1000

    def _now(self) -> Any:
        """A number of seconds, or an event on CUDA."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
