"""A method attached to a transformer: hooks in, calls tracked, hooks out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from topi.engine.attention import OwnAttention, is_stock, known, weigh_text
from topi.engine.call import BlockInput, Call, CallRecord, Merge
from topi.engine.caller import PipelineCall, current_pipeline_call
from topi.engine.compiling import refuse_frozen_hooks
from topi.engine.conflicts import refuse_other_holders, refuse_residuals, refuse_what_cannot_work
from topi.engine.hooks import RootHook, hooked, lists_anew
from topi.engine.inside import Inside
from topi.engine.interface import (
    CompletesOutput,
    GathersStates,
    MergesTokens,
    Plan,
    Planner,
    ReusesKeys,
    SkipsLayers,
    WatchesAttention,
    WeighsText,
    capable,
)
from topi.engine.tracker import StepTracker, steps_left
from topi.engine.transfer import send
from topi.errors import ToPiError
from topi.models.adapter import Adapter
from topi.models.held import held
from topi.models.rope import take_rows

ATTACHED = "Another method is attached to this {}; leave its `with` block first."


class Session:
    """One method on one transformer, from attach to detach.

    The attributes below describe the transformer call in progress and are read by the hooks.

    Attributes:
        is_attached: false as well for whoever has kept a hooked `forward` and calls it afterwards.
        call: the call, or None outside of one and where there is no reference to work on.
        plan: what the method wants of it.
        rows: [n], or [B, n] where each sample has its own: image-stream rows computed from
            `front_layers` on, or None for all.
        layer: the block that runs.
        predicted: [B, G, D] target states that stand for all blocks from some layer on, or None.
        open_merge: how the running block merges.
        beside: key and value [B, n, H, D] of tokens that the running layer attends to but does not
            compute, or None.
        awaited: must the method see the running layer's attention, and has it not done so yet?

    Args:
        trim_last: in the last block, whose outputs of reference tokens nobody reads, compute keys
            and values of these tokens only. Exact; methods that merge tokens are left alone.
    """

    def __init__(
        self,
        adapter: Adapter,
        method: Planner,
        pipeline: Any = None,
        trim_last: bool = False,
    ) -> None:
        self.adapter = adapter
        self.method = method
        self.pipeline = pipeline
        parts = method.parts
        self.watcher = capable(parts, WatchesAttention)
        self.weigher = capable(parts, WeighsText)
        self.reuser = capable(parts, ReusesKeys)
        self.merger = capable(parts, MergesTokens)
        self.skipper = capable(parts, SkipsLayers)
        self.gatherer = capable(parts, GathersStates)
        self.completer = capable(parts, CompletesOutput)
        self.trim_last = trim_last and self.merger is None
        self.tracker = StepTracker()
        self.is_attached = False
        self._taken = Lock()  # by the transformer call in progress
        self._n_steps: int | None = None
        self._forget_kept()
        self._clear_call()

    def _clear_call(self) -> None:
        self.call: Call | None = None
        self.plan: Plan | None = None
        self.rows: Tensor | None = None
        self.layer = -1
        self.predicted: Tensor | None = None
        self.open_merge: Merge | None = None
        self.beside: tuple[Tensor, Tensor] | None = None
        self.awaited = False
        self._rope: Any = None

    def _forget_kept(self) -> None:
        self._kept: Tensor | None = None
        self._kept_indices: tuple[tuple[int, ...], ...] = ()
        self._kept_rows: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the transformer; on leaving, also by an exception, it is as it was before.

        Raises:
            ToPiError: another method or a cache holds it, or it is compiled, offloaded or
                distributed in a way that no method can work with.
        """
        transformer = self.adapter.transformer
        with ExitStack() as undo:
            undo.enter_context(held([transformer], ATTACHED))
            refuse_what_cannot_work(self.adapter, self.trim_last)
            undo.enter_context(lists_anew(transformer))
            undo.enter_context(hooked(transformer, RootHook(self)))
            self._inside = Inside(self, undo.enter_context(ExitStack()))
            self._inside.attach()
            undo.callback(self.reset)
            self.is_attached = True
            try:
                yield
            finally:
                self.is_attached = False
            self._refuse_another_transformer()

    def _refuse_another_transformer(self) -> None:
        """Raises ToPiError if the pipeline has got one, which ran without the method."""
        transformer = self.adapter.transformer
        current = getattr(self.pipeline, "transformer", None)
        current = getattr(current, "_orig_mod", current)
        if current not in (None, transformer):
            raise ToPiError(
                f"The pipeline has got another transformer inside the `with` block, which "
                f"{type(self.method).__name__} was not attached to; exchange it before."
            )

    def reset(self) -> None:
        """Forget the pipeline call; the trace stays until the next one begins."""
        self.tracker.reset()
        self.method.reset()
        self._forget_kept()
        self._clear_call()

    def pipeline_call_ended(self) -> None:
        """Forget the pipeline call, unless it is another one that has ended."""
        caller = self.tracker.caller
        if caller is None or caller.is_same(current_pipeline_call()) or not caller.is_running():
            self.reset()

    @contextmanager
    def _alone(self) -> Iterator[PipelineCall | None]:
        """Keep other calls out of one transformer call; yields the pipeline call it is part of.

        Raises:
            ToPiError: another transformer call runs, or another pipeline call has not ended.
        """
        overlap = ToPiError(
            f"Two calls at once run through one {type(self.adapter.transformer).__name__} with "
            f"{self.method.name} attached, in two threads or one inside the other. Let one end "
            "before the next begins, or give each a transformer of its own."
        )
        if not self._taken.acquire(blocking=False):
            raise overlap
        try:
            caller, before = current_pipeline_call(), self.tracker.caller
            if before is not None and before.is_same(caller):
                caller = before
            elif before is not None and before.is_running():
                raise overlap
            yield caller
        finally:
            self._taken.release()

    @contextmanager
    def transformer_call(self, kwargs: Mapping[str, Any], context: str | None) -> Iterator[None]:
        """Surround one forward of the transformer."""
        with self._alone() as caller, self._placed(kwargs, context, caller):
            yield

    @contextmanager
    def _placed(
        self, kwargs: Mapping[str, Any], context: str | None, caller: PipelineCall | None
    ) -> Iterator[None]:
        """Surround one forward of the transformer, of which `caller` is the pipeline call."""
        self._inside.follow()
        refuse_frozen_hooks(self.adapter, self.pipeline, attached=True)
        refuse_other_holders(self.adapter, attached=True)
        layout = self.adapter.layout(kwargs, caller)
        states = kwargs["hidden_states"]
        scheduler = getattr(caller.pipeline if caller else self.pipeline, "scheduler", None)
        timestep = kwargs["timestep"].flatten()[0]
        begins, step, branch = self.tracker.observe(
            context,
            timestep,
            states,
            self.adapter.positions(kwargs),
            (layout.target_grid, layout.reference_grids, len(states), states.dtype, states.device),
            getattr(scheduler, "timesteps", None),
            caller,
            states[:, layout.n_target :],
        )
        if begins:
            self.method.reset()
            self.method.trace = []
            self._n_steps = steps_left(scheduler, float(timestep))
        if layout.n_reference == 0:  # nothing to work on: the model runs untouched
            yield
            return
        refuse_residuals(kwargs)
        record = CallRecord(step, branch, layout, len(states))
        call = Call(
            step,
            branch,
            layout,
            len(states),
            states.device,
            record,
            self._n_steps,
            states,
            timestep,
        )
        call = self.method.numbered(call)
        try:
            self.method.begin(call)
            self._follow_plan(call, self.method.plan(call))
            self.call = call
            yield
            self.method.end(call)
            self.method.trace.append(record)
        except BaseException:
            self.reset()
            raise
        finally:
            self._clear_call()

    def _follow_plan(self, call: Call, plan: Plan) -> None:
        """Settle which image-stream rows are computed from `plan.from_layer` on; recorded."""
        self.plan, record, layout = plan, call.record, call.layout
        kept = plan.kept
        if kept is None or (kept.shape[-1] == layout.n_reference and not plan.stored):
            return
        self._keep(kept, layout.n_target, call.device)
        record.kept, record.front_layers = self._kept_indices[0], plan.from_layer
        record.kept_by_sample = self._kept_indices if kept.ndim == 2 else None
        if not plan.stored:
            self.rows = self._kept_rows
            return
        rows = torch.arange(layout.n_target) if plan.target is None else plan.target.cpu()
        if plan.live is not None:
            rows = torch.cat([rows, plan.live.cpu() + layout.n_target])
        record.computed = len(rows)
        self.rows = send(rows, call.device)

    def ask_plan(self) -> None:
        """Before some layers, ask the method again what is kept from the running layer on.

        Raises:
            ToPiError: it wants to drop tokens where some were dropped before.
        """
        if self.layer not in self.method.plans_before or self.call.alone:
            return
        plan = self.method.plan(self.call, self.layer)
        if plan.kept is self.plan.kept:
            return
        if self.rows is not None:
            raise ToPiError(
                f"{type(self.method).__name__} plans anew before layer {self.layer}, but tokens "
                "were dropped before; a call drops tokens once."
            )
        self._follow_plan(self.call, replace(plan, from_layer=self.layer))

    def _keep(self, kept: Tensor, n_target: int, device: torch.device) -> None:
        """Turn a choice [K] or [B, K] into indices and rows, once for all steps that share it."""
        if kept is self._kept:
            return
        targets, indices = torch.arange(n_target), kept.cpu()
        rows = torch.cat([targets.expand(*kept.shape[:-1], -1), indices + n_target], dim=-1)
        self._kept, self._kept_rows = kept, send(rows, device)
        self._kept_indices = tuple(map(tuple, torch.atleast_2d(indices).tolist()))

    def run_references_alone(self, kwargs: Mapping[str, Any], forward: Callable[..., Any]) -> None:
        """Run the blocks on the reference tokens, at timestep 0 and with only each other's keys.

        Nothing comes out of it but what the method sees in `attend`.
        """
        if self.call is None or not self.plan.alone:
            return
        call, rows, record = self.call, self.rows, self.call.record
        layout = call.layout
        alone = replace(record, front_layers=0)
        self.call = replace(call, record=alone, alone=True)
        self.rows = torch.arange(layout.n_target, layout.n_image, device=call.device)
        forward(**{**kwargs, "timestep": torch.zeros_like(kwargs["timestep"])})
        self.call, self.rows, self._rope = call, rows, None
        record.alone = True

    def completed(self, output: Any) -> Any:
        """The transformer's output, with a row for every target and reference token.

        The rows of references are zero where not all of them were computed to the end.
        """
        if self.call is None:
            return output
        if isinstance(output, tuple):
            return (self._with_all_rows(output[0]), *output[1:])
        output.sample = self._with_all_rows(output.sample)
        return output

    def _with_all_rows(self, output: Tensor) -> Tensor:
        """[B, n, C] to [B, |G| + |C|, C]."""
        layout = self.call.layout
        if self.completer is not None:
            output = self.completer.complete(self.call, output)
        if output.shape[1] == layout.n_image:
            return output
        return pad(output[:, : layout.n_target], (0, 0, 0, layout.n_reference))

    def gathered(self, states: Tensor) -> Tensor:
        """States [B, N, D] of the image stream to those of the rows that are computed."""
        with self.call.timed("gathering_seconds"):
            if self.gatherer is None:
                return take_rows(states, self.rows)
            return self.gatherer.gather(self.call, states, self.rows)

    def kept_rope(self, rope: Any) -> Any:
        """The rotary rows of the kept tokens, gathered once from the `rope` all blocks share."""
        if self._rope is None:
            with self.call.timed("gathering_seconds"):
                self._rope = self.adapter.gather_rope(rope, self.rows, self.call.layout.n_text)
        return self._rope

    def ask_skip(self, kwargs: dict[str, Any]) -> None:
        """Ask the method whether the running layer, given its arguments, and all after it must run.

        What it predicts instead is then in `predicted`.
        """
        if self.predicted is not None or self.call.alone or self.skipper is None:
            return
        if self.layer not in self.skipper.decides_before:
            return
        normed = partial(self.adapter.normed_states, self.layer, kwargs)
        block = BlockInput(kwargs["hidden_states"], normed)
        self.predicted = self.skipper.skip(self.call, self.layer, block)
        record = self.call.record
        if self.predicted is not None:
            record.skipped_from = self.layer
            if self.layer <= record.front_layers:  # no layer ran on the kept tokens
                record.kept, record.computed, record.front_layers = None, None, 0

    def ran(self, states: Tensor) -> None:
        """A layer has run; `states` [B, N, D] of the image stream are its output.

        Raises:
            ToPiError: it did not show its attention, although the method has to see it.
        """
        if self.awaited:
            processor = type(self.adapter.merge_points(self.layer).attention.processor).__name__
            raise ToPiError(
                f"Layer {self.layer} ran without attention over text and image tokens, which "
                f"{type(self.method).__name__} has to see; its attention processor {processor} is "
                "not supported. Restore diffusers' default processor."
            )
        last = self.layer == self.adapter.facts.depth - 1
        if self.skipper is not None and last and not self.call.alone:
            self.skipper.remember(self.call, states[:, : self.call.layout.n_target])

    def ask_merge(self, states: Tensor) -> Merge | None:
        """Ask the method whether and how the running layer merges `states` [B, N, D].

        Raises:
            ToPiError: the layer cannot be merged in the scope that the method wants.
        """
        self.open_merge = merge = self.merger.merge(self.call, self.layer, states)
        if merge is not None:
            facts = self.adapter.facts
            if merge.scope not in facts.scopes[self.layer]:
                raise ToPiError(
                    f"Layer {self.layer} of {facts.name} cannot be merged in the scope "
                    f'"{merge.scope}", only in: {", ".join(facts.scopes[self.layer])} '
                    "(ModelFacts.scopes tells)."
                )
            if merge.rows is not None:
                self.call.record.merged[self.layer] = (merge.scope, len(merge.rows))
        return merge

    def at_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Show the method one layer's query, key and value [B, S, H, D] after norm and RoPE.

        An attention processor can attend more than once, as that of IP-Adapters does to the tokens
        of a prompt picture. The layer's own is the first with as many keys as queries; any other
        passes unchanged.

        Args:
            options: others that diffusers will attend with.

        Returns:
            Key, value and mask to attend to: those given, with what the block left out and what the
            method has in store; the mask is additive if the method weighs the text. And what comes
            of it [B, S, H, D], if the method's look has computed that already.
        """
        if not self.awaited or key.shape[1] != query.shape[1]:
            return key, value, mask, None
        call, self.awaited = self.call, False
        if self.beside is not None:
            key, value, mask = extended(key, value, mask, self.beside)
        weight, own = 1.0, None
        if self.watcher is not None and self.watcher.watches(call, self.layer):
            if mask is None and not call.alone and is_stock(query, key, value, options):
                own = OwnAttention(query, key, value)
            with known(own):
                self.watcher.attend(call, self.layer, query, key, value, mask)
            if self.weigher is not None:
                weight = self.weigher.text_weight(call, self.layer)
        if call.alone:  # text is no key to a reference token
            text = call.layout.n_text
            return key[:, text:], value[:, text:], None if mask is None else mask[..., text:], None
        if weight != 1:
            mask = weigh_text(query, key, mask, weight, call.layout.n_text)
        stored = None
        if self.reuser is not None:
            stored = self.reuser.stored(call, self.layer, key, value)
        if stored is None:
            return key, value, mask, None if own is None or mask is not None else own.output
        call.record.stored[self.layer] = stored[0].shape[1]
        return *extended(key, value, mask, stored), None

    def looks_inside(self) -> bool:
        """Must the running block be run uncompiled, for a method to see or change what is in it?"""
        watches = self.watcher is not None and self.watcher.watches(self.call, self.layer)
        own_rows = self.rows is not None and self.rows.ndim == 2
        self.awaited = watches or self.reuser is not None or self.beside is not None
        return own_rows or self.merger is not None or self.awaited

    def trims(self, states: Tensor) -> bool:
        """Does the running layer compute its targets only, its image-stream input [B, N, D] given?

        Of the last layer nothing else is read.
        """
        self.beside = None
        last = self.layer == self.adapter.facts.depth - 1
        trims = self.trim_last and last and not self.call.alone
        return trims and states.shape[1] > self.call.layout.n_target

    def trimmed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a block for its target tokens; references remain as key and value."""
        layout, n = self.call.layout, kwargs["hidden_states"].shape[1]
        targets, references = slice(layout.n_target), slice(layout.n_target, n)
        self.beside = self.adapter.key_value(self.layer, kwargs, references)
        self.call.record.trimmed = True
        return self.adapter.with_rows(kwargs, targets, layout.n_text)


def extended(
    key: Tensor, value: Tensor, mask: Tensor | None, more: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Key and value [B, S, H, D], and the mask if any, with more keys and values [B, n, H, D]."""
    key, value = (torch.cat(both, dim=1) for both in zip((key, value), more, strict=True))
    if mask is not None:  # none of them is padding
        seen = mask.new_full((*mask.shape[:-1], more[0].shape[1]), mask.dtype == torch.bool)
        mask = torch.cat([mask, seen], dim=-1)
    return key, value, mask
