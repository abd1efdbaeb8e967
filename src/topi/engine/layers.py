"""What a method does in the layers of a transformer call: plans, skips, merges, attention."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from topi.engine.attention import OwnAttention, is_stock, known, weigh_text
from topi.engine.call import BlockInput, Call, Merge
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
from topi.engine.state import CallState
from topi.engine.transfer import send
from topi.errors import ToPiError
from topi.models.adapter import Adapter
from topi.models.rope import take_rows


class Layers:
    """Carries out what a method wants in the layers of one transformer; the hooks call it.

    Attributes:
        state: of the call in progress.

    Args:
        trim_last: in the last block, whose outputs of reference tokens nobody reads, compute keys
            and values of these tokens only. Exact; methods that merge tokens are left alone.
    """

    def __init__(self, adapter: Adapter, method: Planner, trim_last: bool = False) -> None:
        self.adapter, self.method = adapter, method
        parts = method.parts
        self.watcher = capable(parts, WatchesAttention)
        self.weigher = capable(parts, WeighsText)
        self.reuser = capable(parts, ReusesKeys)
        self.merger = capable(parts, MergesTokens)
        self.skipper = capable(parts, SkipsLayers)
        self.gatherer = capable(parts, GathersStates)
        self.completer = capable(parts, CompletesOutput)
        self.trim_last = trim_last and self.merger is None
        self.state = CallState()
        self.forget_kept()

    def forget_kept(self) -> None:
        """Drop the rows of the latest choice."""
        self._kept: Tensor | None = None
        self._kept_indices: tuple[tuple[int, ...], ...] = ()
        self._kept_rows: Tensor | None = None

    def follow_plan(self, call: Call, plan: Plan) -> None:
        """Settle which image-stream rows are computed from `plan.from_layer` on; recorded."""
        self.state.plan, record, layout = plan, call.record, call.layout
        kept = plan.kept
        if kept is None or (kept.shape[-1] == layout.n_reference and not plan.stored):
            return
        self._keep(kept, layout.n_target, call.device)
        record.kept, record.front_layers = self._kept_indices[0], plan.from_layer
        record.kept_by_sample = self._kept_indices if kept.ndim == 2 else None
        if not plan.stored:
            self.state.rows = self._kept_rows
            return
        rows = torch.arange(layout.n_target) if plan.target is None else plan.target.cpu()
        if plan.live is not None:
            rows = torch.cat([rows, plan.live.cpu() + layout.n_target])
        record.computed = len(rows)
        self.state.rows = send(rows, call.device)

    def ask_plan(self) -> None:
        """Before some layers, ask the method again what is kept from the running layer on.

        Raises:
            ToPiError: it wants to drop tokens where some were dropped before.
        """
        if self.state.layer not in self.method.plans_before or self.state.call.alone:
            return
        plan = self.method.plan(self.state.call, self.state.layer)
        if plan.kept is self.state.plan.kept:
            return
        if self.state.rows is not None:
            raise ToPiError(
                f"{type(self.method).__name__} plans anew before layer {self.state.layer}, but "
                "tokens were dropped before; a call drops tokens once."
            )
        self.follow_plan(self.state.call, replace(plan, from_layer=self.state.layer))

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
        if self.state.call is None or not self.state.plan.alone:
            return
        call, rows, record = self.state.call, self.state.rows, self.state.call.record
        layout = call.layout
        alone = replace(record, front_layers=0)
        self.state.call = replace(call, record=alone, alone=True)
        self.state.rows = torch.arange(layout.n_target, layout.n_image, device=call.device)
        forward(**{**kwargs, "timestep": torch.zeros_like(kwargs["timestep"])})
        self.state.call, self.state.rows, self.state.rope = call, rows, None
        record.alone = True

    def completed(self, output: Any) -> Any:
        """The transformer's output, with a row for every target and reference token.

        The rows of references are zero where not all of them were computed to the end.
        """
        if self.state.call is None:
            return output
        if isinstance(output, tuple):
            return (self._with_all_rows(output[0]), *output[1:])
        output.sample = self._with_all_rows(output.sample)
        return output

    def _with_all_rows(self, output: Tensor) -> Tensor:
        """[B, n, C] to [B, |G| + |C|, C]."""
        layout = self.state.call.layout
        if self.completer is not None:
            output = self.completer.complete(self.state.call, output)
        if output.shape[1] == layout.n_image:
            return output
        return pad(output[:, : layout.n_target], (0, 0, 0, layout.n_reference))

    def gathered(self, states: Tensor) -> Tensor:
        """States [B, N, D] of the image stream to those of the rows that are computed."""
        with self.state.call.timed("gathering_seconds"):
            if self.gatherer is None:
                return take_rows(states, self.state.rows)
            return self.gatherer.gather(self.state.call, states, self.state.rows)

    def kept_rope(self, rope: Any) -> Any:
        """The rotary rows of the kept tokens, gathered once from the `rope` all blocks share."""
        if self.state.rope is None:
            with self.state.call.timed("gathering_seconds"):
                self.state.rope = self.adapter.gather_rope(
                    rope, self.state.rows, self.state.call.layout.n_text
                )
        return self.state.rope

    def ask_skip(self, kwargs: dict[str, Any]) -> None:
        """Ask the method whether the running layer, given its arguments, and all after it must run.

        What it predicts instead is then in `predicted`.
        """
        if self.state.predicted is not None or self.state.call.alone or self.skipper is None:
            return
        if self.state.layer not in self.skipper.decides_before:
            return
        normed = partial(self.adapter.normed_states, self.state.layer, kwargs)
        block = BlockInput(kwargs["hidden_states"], normed)
        self.state.predicted = self.skipper.skip(self.state.call, self.state.layer, block)
        record = self.state.call.record
        if self.state.predicted is not None:
            record.skipped_from = self.state.layer
            if self.state.layer <= record.front_layers:  # no layer ran on the kept tokens
                record.kept, record.computed, record.front_layers = None, None, 0

    def ran(self, states: Tensor) -> None:
        """A layer has run; `states` [B, N, D] of the image stream are its output.

        Raises:
            ToPiError: it did not show its attention, although the method has to see it.
        """
        if self.state.awaited:
            processor = type(
                self.adapter.merge_points(self.state.layer).attention.processor
            ).__name__
            raise ToPiError(
                f"Layer {self.state.layer} ran without attention over text and image tokens, which "
                f"{type(self.method).__name__} has to see; its attention processor {processor} is "
                "not supported. Restore diffusers' default processor."
            )
        last = self.state.layer == self.adapter.facts.depth - 1
        if self.skipper is not None and last and not self.state.call.alone:
            self.skipper.remember(self.state.call, states[:, : self.state.call.layout.n_target])

    def ask_merge(self, states: Tensor) -> Merge | None:
        """Ask the method whether and how the running layer merges `states` [B, N, D].

        Raises:
            ToPiError: the layer cannot be merged in the scope that the method wants.
        """
        self.state.open_merge = merge = self.merger.merge(self.state.call, self.state.layer, states)
        if merge is not None:
            facts = self.adapter.facts
            if merge.scope not in facts.scopes[self.state.layer]:
                raise ToPiError(
                    f"Layer {self.state.layer} of {facts.name} cannot be merged in the scope "
                    f'"{merge.scope}", only in: {", ".join(facts.scopes[self.state.layer])} '
                    "(ModelFacts.scopes tells)."
                )
            if merge.rows is not None:
                self.state.call.record.merged[self.state.layer] = (merge.scope, len(merge.rows))
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
        if not self.state.awaited or key.shape[1] != query.shape[1]:
            return key, value, mask, None
        call, self.state.awaited = self.state.call, False
        if self.state.beside is not None:
            key, value, mask = extended(key, value, mask, self.state.beside)
        weight, own = 1.0, None
        if self.watcher is not None and self.watcher.watches(call, self.state.layer):
            if mask is None and not call.alone and is_stock(query, key, value, options):
                own = OwnAttention(query, key, value)
            with known(own):
                self.watcher.attend(call, self.state.layer, query, key, value, mask)
            if self.weigher is not None:
                weight = self.weigher.text_weight(call, self.state.layer)
        if call.alone:  # text is no key to a reference token
            text = call.layout.n_text
            return key[:, text:], value[:, text:], None if mask is None else mask[..., text:], None
        if weight != 1:
            mask = weigh_text(query, key, mask, weight, call.layout.n_text)
        stored = None
        if self.reuser is not None:
            stored = self.reuser.stored(call, self.state.layer, key, value)
        if stored is None:
            return key, value, mask, None if own is None or mask is not None else own.output
        call.record.stored[self.state.layer] = stored[0].shape[1]
        return *extended(key, value, mask, stored), None

    def looks_inside(self) -> bool:
        """True if the running block runs uncompiled, as a method sees or changes what is in it."""
        watches = self.watcher is not None and self.watcher.watches(
            self.state.call, self.state.layer
        )
        own_rows = self.state.rows is not None and self.state.rows.ndim == 2
        self.state.awaited = watches or self.reuser is not None or self.state.beside is not None
        return own_rows or self.merger is not None or self.state.awaited

    def trims(self, states: Tensor) -> bool:
        """True if the running layer, whose image stream is [B, N, D], computes its targets only.

        Of the last layer nothing else is read.
        """
        self.state.beside = None
        last = self.state.layer == self.adapter.facts.depth - 1
        trims = self.trim_last and last and not self.state.call.alone
        return trims and states.shape[1] > self.state.call.layout.n_target

    def trimmed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a block for its target tokens; references remain as key and value."""
        layout, n = self.state.call.layout, kwargs["hidden_states"].shape[1]
        targets, references = slice(layout.n_target), slice(layout.n_target, n)
        self.state.beside = self.adapter.key_value(self.state.layer, kwargs, references)
        self.state.call.record.trimmed = True
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
