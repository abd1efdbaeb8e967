"""One transformer call, as a method sees it, and the record it leaves."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from topi.engine.clock import Span
from topi.models.adapter import Layout

Stage = Literal["scoring_seconds", "selection_seconds", "gathering_seconds"]


@dataclass
class CallRecord:
    """What happened in one transformer call.

    Args:
        step: denoising step, from 0.
        branch: CFG branch, "cond" or "uncond" (or the name the pipeline gave it).
        layout: the full sequence; `batch` samples of it.
        front_layers: first layer that ran on the kept reference tokens only, if any were dropped.
        anchor: the call scored the reference tokens, or renewed what is stored of them.
        kept: ascending indices of the reference tokens that the target sees from `front_layers` on;
            None where all were computed.
        kept_by_sample: the same of each sample, where each has its own, and `kept` is the first's.
        computed: image tokens computed from `front_layers` on, if they are not just the target's
            and the kept references'.
        stored: layer -> keys that came from a store instead of being computed; layers that took
            none are absent.
        store_bytes: size of that store after the call.
        alone: the reference tokens first ran on their own, with only each other's keys.
        stands_for: calls of the full run that this one replaces.
        full_layout: what `layout` is in the full run, if the method changed the references.
        merged: layer -> (scope, image tokens computed there); layers that did not merge are absent.
        skipped_from: first layer that did not run, as what it and all later ones would have
            computed was predicted from earlier steps; None if all ran.
        probed: the first block's normed input was computed beside the block, to decide on skipping.
        trimmed: the last block computed target tokens only.
        spans: what was timed of the call, by stage.
    """

    step: int
    branch: str
    layout: Layout
    batch: int
    front_layers: int = 0
    anchor: bool = False
    kept: tuple[int, ...] | None = None
    kept_by_sample: tuple[tuple[int, ...], ...] | None = None
    computed: int | None = None
    stored: dict[int, int] = field(default_factory=dict)
    store_bytes: int = 0
    alone: bool = False
    stands_for: int = 1
    full_layout: Layout | None = None
    merged: dict[int, tuple[str, int]] = field(default_factory=dict)
    skipped_from: int | None = None
    probed: bool = False
    trimmed: bool = False
    spans: dict[Stage, list[Span]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def skipped(self) -> bool:
        """True if a part of the layers did not run."""
        return self.skipped_from is not None

    @property
    def n_image(self) -> int:
        """Image tokens computed from `front_layers` on."""
        if self.computed is not None:
            return self.computed
        kept = self.n_reference if self.kept is None else len(self.kept)
        return self.layout.n_target + kept

    @property
    def n_reference(self) -> int:
        """|C|."""
        return self.layout.n_reference

    @property
    def keep_ratio(self) -> float:
        """Kept reference tokens / all reference tokens of the full run."""
        kept = self.n_reference if self.kept is None else len(self.kept)
        return kept / (self.full_layout or self.layout).n_reference

    def seconds(self, stage: Stage) -> float:
        """Time spent on a stage; waits for the device to finish it."""
        return sum(span.seconds for span in self.spans.get(stage, ()))

    @property
    def scoring_seconds(self) -> float:
        """On scores."""
        return self.seconds("scoring_seconds")

    @property
    def selection_seconds(self) -> float:
        """On turning scores into a mask."""
        return self.seconds("selection_seconds")

    @property
    def gathering_seconds(self) -> float:
        """On taking the kept rows of states and rotary embedding."""
        return self.seconds("gathering_seconds")


@dataclass(frozen=True)
class Call:
    """The transformer call in progress. Methods write `anchor` and times into `record`.

    Args:
        n_steps: how many denoising steps the pipeline call has, by the scheduler of the pipeline
            that runs; None in a loop of one's own with the method attached to the transformer.
        latents: [B, N, C] of target and references, as the transformer got them.
        timestep: in [0, 1], 1 is noise.
        alone: the reference tokens are run on their own (see `Plan.alone`); what attends and is
            attended to is then `[text | references]`.
        turn: the step as the method's schedule counts it, which differs from `step` if a cache
            skips steps; None: `step`.
    """

    step: int
    branch: str
    layout: Layout
    batch: int
    device: torch.device
    record: CallRecord
    n_steps: int | None = None
    latents: Tensor | None = None
    timestep: float = 0.0
    alone: bool = False
    turn: int | None = None

    def __post_init__(self) -> None:
        """A call without a turn of its own has that of its step."""
        if self.turn is None:
            object.__setattr__(self, "turn", self.step)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Add the time spent inside, device work included, to the record; does not wait for it."""
        span = Span(self.device)
        yield
        self.record.spans.setdefault(stage, []).append(span.stop())


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
        rows: [n'] long; the image-stream row whose rotary position each merged token carries. None:
            no token is merged, and `unmerge` only gets to see the output.
        scope: "attention" merges around the attention only, "mlp" around the MLP only, "both"
            around each of the two, "block" around the whole block; possible where
            `ModelFacts.scopes[layer]` says so.
    """

    rows: Tensor | None
    scope: Literal["attention", "mlp", "both", "block"] = "attention"

    @abstractmethod
    def merge(self, states: Tensor) -> Tensor:
        """[B, N, D] -> [B, n', D]."""

    @abstractmethod
    def unmerge(self, states: Tensor) -> Tensor:
        """[B, n', D] -> [B, N, D]: the output of the attention or of the whole block.

        D is that of several outputs side by side where an attention yields more than one per token.
        """

    def unmerge_mlp(self, states: Tensor) -> Tensor:
        """[B, n', D'] -> [B, N, D']: the output of the MLP."""
        return self.unmerge(states)
