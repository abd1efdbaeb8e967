"""A method attached to a transformer: hooks in, calls tracked, hooks out."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor

from topi.engine.call import BlockInput, Call, CallRecord, Merge
from topi.engine.hooks import (
    BlockHook,
    MergeAttentionHook,
    MergeNormHook,
    MergeProjectionHook,
    RootHook,
    add_hook,
    hooked,
    tap_processor,
)
from topi.engine.tracker import StepTracker, steps_left
from topi.errors import ToPiError
from topi.models.adapter import Adapter


class Callbacks(Protocol):
    """What the engine calls; `attend` and `merge` only if `observes` and `merges` say so.

    `skip` is asked before the layers in `decides_before`; if there are none, `remember` is not
    called either.
    """

    front_layers: int
    observes: bool
    merges: bool
    decides_before: Collection[int]
    trace: list[CallRecord]

    def begin(self, call: Call) -> None:
        """Before each transformer call."""

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """The target states [B, G, D] after the last block, if `layer` and on need not run."""

    def remember(self, call: Call, states: Tensor) -> None:
        """The target states [B, G, D] after the last block of a call that skipped nothing."""

    def reduce(self, call: Call) -> Tensor | None:
        """Reference tokens to keep: ascending indices [K], or None for all."""

    def gather(self, call: Call, states: Tensor, rows: Tensor) -> Tensor:
        """States [B, N, D] of the image stream to those of its kept rows [n]: [B, n, D]."""

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """How a layer merges its image tokens, if at all."""

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """See what a layer attends to."""

    def end(self, call: Call) -> None:
        """After each transformer call."""

    def reset(self) -> None:
        """Drop the state of a pipeline call."""


class Session:
    """One method on one transformer, from attach to detach.

    The attributes below describe the transformer call in progress and are read by the hooks.

    Attributes:
        call: the call, or None outside of one and where there is no reference to work on.
        rows: [G + K] image-stream rows kept from `front_layers` on, or None for all.
        layer: the block that runs.
        predicted: [B, G, D] target states that stand for all blocks from some layer on, or None.
        open_merge: what a single-stream block decided at its norm.
    """

    def __init__(self, adapter: Adapter, method: Callbacks, pipeline: Any = None) -> None:
        self.adapter = adapter
        self.method = method
        self.pipeline = pipeline
        self.tracker = StepTracker()
        self._n_steps: int | None = None
        self._clear_call()

    def _clear_call(self) -> None:
        self.call: Call | None = None
        self.rows: Tensor | None = None
        self.layer = -1
        self.predicted: Tensor | None = None
        self.open_merge: Merge | None = None
        self._rope: Any = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the transformer; on leaving, also by an exception, it is as it was before.

        Raises:
            ToPiError: another method holds it.
        """
        transformer = self.adapter.transformer
        if hooked(transformer):
            raise ToPiError(
                f"Another method is attached to this {type(transformer).__name__}; "
                "leave its `with` block first."
            )
        with ExitStack() as undo:
            remove_root = add_hook(transformer, RootHook(self))
            # diffusers keeps a list of the submodules with hooks; drop it last, when ours are gone
            registry = HookRegistry.check_if_exists_or_initialize(transformer)
            undo.callback(registry.invalidate_child_registries_cache)
            undo.callback(remove_root)
            self._attach_blocks(undo.callback)
            undo.callback(self.reset)
            yield

    def _attach_blocks(self, undo: Callable[[Callable[[], None]], Any]) -> None:
        tapped: dict[type, type] = {}
        processors: dict[int, Any] = {}
        for layer, block in enumerate(self.adapter.blocks):
            undo(add_hook(block, BlockHook(self, layer)))
            points = self.adapter.merge_points(layer)
            if self.method.observes and id(points.attention.processor) not in processors:
                processor = processors[id(points.attention.processor)] = points.attention.processor
                undo(tap_processor(processor, self.observe_attention, tapped))
            if self.method.merges:
                undo(add_hook(points.attention, MergeAttentionHook(self, points)))
                if points.norm is not None:
                    undo(add_hook(points.norm, MergeNormHook(self)))
                    undo(add_hook(points.projection, MergeProjectionHook(self)))

    def reset(self) -> None:
        """Forget the pipeline call; the trace stays until the next one begins."""
        self.tracker.reset()
        self.method.reset()
        self._clear_call()

    @contextmanager
    def transformer_call(self, kwargs: Mapping[str, Any], context: str | None) -> Iterator[None]:
        """Surround one forward of the transformer."""
        layout = self.adapter.layout(kwargs)
        states = kwargs["hidden_states"]
        timestep = float(kwargs["timestep"].flatten()[0])
        begins, step, branch = self.tracker.observe(
            context,
            timestep,
            states,
            self.adapter.positions(kwargs),
            (layout.target_grid, layout.reference_grids, len(states)),
        )
        if begins:
            self.method.reset()
            self.method.trace = []
            self._n_steps = steps_left(getattr(self.pipeline, "scheduler", None), timestep)
        if layout.n_reference == 0:  # nothing to work on: the model runs untouched
            yield
            return
        record = CallRecord(step, branch, layout, len(states))
        call = Call(step, branch, layout, len(states), states.device, record, self._n_steps)
        try:
            self.method.begin(call)
            kept = self.method.reduce(call)
            if kept is not None and len(kept) < layout.n_reference:
                record.kept = tuple(kept.tolist())
                record.front_layers = self.method.front_layers
                rows = torch.cat([torch.arange(layout.n_target), kept.cpu() + layout.n_target])
                self.rows = rows.to(states.device)
            self.call = call
            yield
            self.method.end(call)
            self.method.trace.append(record)
        except BaseException:
            self.reset()
            raise
        finally:
            self._clear_call()

    def kept_rope(self, rope: Any) -> Any:
        """The rotary rows of the kept tokens, gathered once from the `rope` all blocks share."""
        if self._rope is None:
            self._rope = self.adapter.gather_rope(rope, self.rows, self.call.layout.n_text)
        return self._rope

    def ask_skip(self, kwargs: dict[str, Any]) -> None:
        """Ask the method whether the running layer, given its arguments, and all after it must run.

        What it predicts instead is then in `predicted`.
        """
        if self.predicted is not None or self.layer not in self.method.decides_before:
            return
        normed = partial(self.adapter.normed_states, self.layer, kwargs)
        block = BlockInput(kwargs["hidden_states"], normed)
        self.predicted = self.method.skip(self.call, self.layer, block)
        record = self.call.record
        if self.predicted is not None:
            record.skipped_from = self.layer
            if self.layer <= record.front_layers:  # no layer ran on the kept tokens
                record.kept, record.front_layers = None, 0

    def ran(self, states: Tensor) -> None:
        """A layer has run; `states` [B, N, D] of the image stream are its output."""
        if self.method.decides_before and self.layer == self.adapter.facts.depth - 1:
            self.method.remember(self.call, states[:, : self.call.layout.n_target])

    def ask_merge(self, states: Tensor, block: bool = False) -> Merge | None:
        """Ask the method whether and how the running layer merges `states` [B, N, D].

        Raises:
            ToPiError: the method wants a whole block merged that can only be merged around its
            attention.
        """
        merge = self.method.merge(self.call, self.layer, states)
        if merge is not None:
            if merge.scope == "block" and not block:
                raise ToPiError(
                    f"Layer {self.layer} of {self.adapter.facts.name} can only be merged around "
                    'its attention; use scope "attention" there (ModelFacts.scopes tells).'
                )
            self.call.record.merged[self.layer] = (merge.scope, len(merge.rows))
        return merge

    def observe_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Show the method one layer's query, key and value [B, S, H, D] after norm and RoPE."""
        if self.call is not None:
            self.method.attend(self.call, self.layer, query, key, value, mask)
