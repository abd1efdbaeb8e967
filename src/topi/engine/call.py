"""One transformer call, as a method sees it, and the record it leaves."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from topi.models.adapter import Layout


@dataclass
class CallRecord:
    """What happened in one transformer call.

    Args:
        step: denoising step, from 0.
        branch: CFG branch, "cond" or "uncond" (or the name the pipeline gave it).
        layout: the full sequence; `batch` samples of it.
        front_layers: first layer that ran on the kept reference tokens only, if any were dropped.
        anchor: the call scored the reference tokens.
        kept: ascending indices into the reference tokens; None where all were kept.
        merged: layer -> (scope, image tokens computed there); layers that did not merge are absent.
        skipped_from: first layer that did not run, as what it and all later ones would have
            computed was predicted from earlier steps; None if all ran.
        scoring_seconds: time spent on scores, selection_seconds: on turning them into a mask.
    """

    step: int
    branch: str
    layout: Layout
    batch: int
    front_layers: int = 0
    anchor: bool = False
    kept: tuple[int, ...] | None = None
    merged: dict[int, tuple[str, int]] = field(default_factory=dict)
    skipped_from: int | None = None
    scoring_seconds: float = 0.0
    selection_seconds: float = 0.0

    @property
    def skipped(self) -> bool:
        """Did a part of the layers not run?"""
        return self.skipped_from is not None

    @property
    def n_reference(self) -> int:
        """|C|."""
        return self.layout.n_reference

    @property
    def keep_ratio(self) -> float:
        """Kept reference tokens / all reference tokens."""
        return 1.0 if self.kept is None else len(self.kept) / self.n_reference


@dataclass(frozen=True)
class Call:
    """The transformer call in progress. Methods write `anchor` and the seconds into `record`.

    `n_steps` is how many denoising steps the pipeline call has; None where no pipeline tells it.
    """

    step: int
    branch: str
    layout: Layout
    batch: int
    device: torch.device
    record: CallRecord
    n_steps: int | None = None

    @contextmanager
    def timed(self, what: Literal["scoring_seconds", "selection_seconds"]) -> Iterator[None]:
        """Add the time spent inside to the record, device work included."""
        start = self._clock()
        yield
        setattr(self.record, what, getattr(self.record, what) + self._clock() - start)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class BlockInput:
    """What a block is about to receive.

    Args:
        states: [B, N, D] of the image stream, target tokens first; N may be less the dropped.
        normed: the same as the first block's attention gets them, normed and modulated by the
            timestep; computed when called, possible before the first block only.
    """

    states: Tensor
    normed: Callable[[], Tensor]


class Merge(ABC):
    """How one layer of one call runs on fewer image tokens. A method returns one from `merge`.

    Attributes:
        rows: [n'] long; the image-stream row whose rotary position each merged token carries.
        scope: "attention" merges around the attention only; "block" around the whole block,
            possible where `ModelFacts.scopes[layer]` says so.
    """

    rows: Tensor
    scope: Literal["attention", "block"] = "attention"

    @abstractmethod
    def merge(self, states: Tensor) -> Tensor:
        """[B, N, D] -> [B, n', D]."""

    @abstractmethod
    def unmerge(self, states: Tensor) -> Tensor:
        """[B, n', D] -> [B, N, D]."""
