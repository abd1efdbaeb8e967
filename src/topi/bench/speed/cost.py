"""The predicted cost of a run: FLOPs, memory traffic, memory and the ideal speed-up.

FLOPs are counted from a trace, as for measured rows. The trace comes from a thin copy of the
transformer, with the same depth and little width, on a small grid of tokens. Anchors, merging
layers and the share of kept tokens do not depend on width, and shares scale with the grid. So every
method of the registry can be predicted without a formula of its own. The picture is noise:
decisions that depend on it are those for noise, and RegionE takes every target token for edited.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from topi.bench.speed.lines import Attach
from topi.engine import CallRecord
from topi.engine.flops import FlopCount, FlopCounter, forwards_of
from topi.engine.taps import running_layers
from topi.models import Adapter, Layout, adapter_for
from topi.models.adapter import Grid

THIN = {"num_attention_heads": 1, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
THIN |= {"joint_attention_dim": 8, "pooled_projection_dim": 8}
THIN_SIDE = 16  # tokens, of the target
TOKEN = 16
"""Pixels of a token's side where the VAE's 8 meet a patch of 2; stand-ins have fewer."""

TRAFFIC = 20
"""Numbers per token, layer and width that matrix products read and write: QKV 1 + 3, attention
3 + 1, its projection 1 + 1, the MLP 1 + 4 + 4 + 1."""
HELD = 15
"""The same that a single-stream block holds at its peak, an estimate: residual 1, normed 1, MLP 4,
QKV 3, attention 1, their concatenation 5."""
ITEM = 2
"""Bytes of a bfloat16, in which all is assumed to be."""


@dataclass(frozen=True)
class Cost:
    """The cost of one run of the transformer, in full and under a method.

    Args:
        flops: of all calls.
        bytes_full, bytes_method: memory traffic of all calls at least: weights once a call, and
            what the matrix products read and write.
        memory_full, memory_method: bytes held at the peak, weights and what the method stores
            included, VAE and text encoder not; an estimate. What merging methods save or store is
            left out.
        store: bytes that the method keeps for later steps; each branch of classifier-free guidance
            has its own.
        calls: of the transformer, under the method.
    """

    flops: FlopCount
    bytes_full: float
    bytes_method: float
    memory_full: float
    memory_method: float
    store: float
    calls: int

    def seconds(self, flops: float, bandwidth: float, full: bool = False) -> float:
        """Seconds on a machine that reaches its FLOP/s, or its bytes/s if they are the limit."""
        work = self.flops.full if full else self.flops.method
        traffic = self.bytes_full if full else self.bytes_method
        return max(work / flops, traffic / bandwidth)


class ThinPipeline:
    """The parts of a pipeline that methods use: its scheduler and the encoding of references."""

    vae_scale_factor = TOKEN // 2

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def prepare_latents(self, image: Sequence[Tensor]) -> tuple[Grid, ...]:
        """The token grids of pictures [1, 3, H, W]."""
        return tuple((each.shape[-2] // TOKEN, each.shape[-1] // TOKEN) for each in image)

    def encoded(self, layout: Layout) -> Layout:
        """The layout of a call, with references that a method may have resized."""
        pictures = [
            torch.empty(1, 3, rows * TOKEN, columns * TOKEN, device="meta")
            for rows, columns in layout.reference_grids
        ]
        return replace(layout, reference_grids=self.prepare_latents(pictures))


class CostModel:
    """Predicts runs of one transformer. It keeps what it has counted.

    Args:
        transformer: on any device, the meta device included.
        token: pixels of a token's side.
    """

    def __init__(self, transformer: nn.Module, token: int = TOKEN) -> None:
        self.token = token
        self._counter = FlopCounter(transformer)
        self._thin = thin_copy(transformer)
        self.facts = self._thin.facts
        self._width = inner_width(transformer)
        self._depth = self.facts.depth
        self._weights = ITEM * sum(parameter.numel() for parameter in transformer.parameters())

    def layout(self, size: int, references: int, n_text: int) -> Layout:
        """The layout of a square picture of `size` pixels with references of the same size."""
        grid = (size // self.token, size // self.token)
        return Layout(n_text, grid, (grid,) * references)

    def predict(self, attach: Attach, layout: Layout, steps: int) -> Cost:
        """A run of `steps` steps without classifier-free guidance, one sample, in bfloat16.

        Raises:
            ToPiError: the method cannot run with these settings.
        """
        return self.of_trace(self.trace(attach, layout, steps))

    def of_trace(self, trace: Sequence[CallRecord]) -> Cost:
        """The cost of a run whose trace is known."""
        full = [
            (record.stands_for, replace(UNTOUCHED, layout=full_layout(record), batch=record.batch))
            for record in trace
        ]
        return Cost(
            flops=self._counter.run(trace),
            bytes_full=sum(calls * self._traffic(record) for calls, record in full),
            bytes_method=sum(map(self._traffic, trace)),
            memory_full=max(self._held(record) for _, record in full),
            memory_method=max(map(self._held, trace)),
            store=max(record.store_bytes for record in trace),
            calls=len(trace),
        )

    def trace(self, attach: Attach, layout: Layout, steps: int) -> list[CallRecord]:
        """The trace of a method, from a run of the thin copy.

        Args:
            attach: attaches a method to a pipeline; the method itself does.
            layout: of the run in full.

        Raises:
            ToPiError: see `predict`.
        """
        pipe = ThinPipeline(self._thin.transformer)
        generator = torch.Generator().manual_seed(0)
        with forwards_of(self._thin.blocks, shown), attach(pipe) as method, torch.no_grad():
            seen, thin = (pipe.encoded(each) for each in (layout, thin_layout(layout)))
            inputs = self._thin.inputs(thin, 1, torch.device("cpu"))
            noise = torch.randn(inputs["hidden_states"].shape, generator=generator)
            target, references = noise.split([thin.n_target, thin.n_reference], dim=1)
            pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
            for timestep in pipe.scheduler.timesteps:
                latents = torch.randn(target.shape, generator=generator)
                inputs["hidden_states"] = torch.cat([latents, references], dim=1)
                inputs["timestep"] = timestep[None] / pipe.scheduler.config.num_train_timesteps
                pipe.transformer(**inputs)
        wider = self._width / inner_width(pipe.transformer)
        return [scaled(record, seen, layout, wider) for record in method.trace]

    def _traffic(self, record: CallRecord) -> float:
        """The least bytes that a call reads and writes."""
        n_text, layout = record.layout.n_text, record.layout
        run = self._depth if record.skipped_from is None else record.skipped_from
        front = min(record.front_layers, run)
        rows = front * (n_text + layout.n_image) + (run - front) * (n_text + record.n_image)
        if record.alone:  # another pass, of the references
            rows += run * (n_text + layout.n_reference)
        stored = 2 * sum(record.stored.values())  # a key and a value each
        numbers = record.batch * self._width * (TRAFFIC * rows + stored)
        return self._weights + ITEM * numbers

    def _held(self, record: CallRecord) -> float:
        """Bytes that a call holds at its peak: weights, one block's states, and the store."""
        layout = record.layout
        widest = layout.n_image if record.front_layers else record.n_image
        states = HELD * record.batch * (layout.n_text + widest) * self._width
        return self._weights + ITEM * states + record.store_bytes


def shown(layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block that computes nothing and takes a tenth of the time.

    Where a method asks for states (tokens to merge; query, key and value), it gets the input.
    """

    def run(**kwargs: Any) -> tuple[Tensor, Tensor]:
        text, image = kwargs["encoder_hidden_states"], kwargs["hidden_states"]
        if (layers := running_layers()) is None:
            return forward(**kwargs)
        merge = layers.ask_merge(image) if layers.merger is not None else None
        around = merge is not None and merge.scope != "mlp"
        inside = merge.merge(image) if around else image
        if layers.state.awaited:
            states = torch.cat([text, inside], dim=1).unsqueeze(2)  # of a single head
            layers.at_attention(states, states, states, None, {})
        if around:
            merge.unmerge(inside)
        if merge is not None and merge.scope in ("mlp", "both"):
            merge.unmerge_mlp(merge.merge(image))
        return text, image

    return run


UNTOUCHED = CallRecord(0, "cond", Layout(0, (1, 1), ((1, 1),)), 1)


def full_layout(record: CallRecord) -> Layout:
    """The layout that the call has in the full run."""
    return record.full_layout or record.layout


def inner_width(transformer: nn.Module) -> int:
    """Numbers of a token's state."""
    config = transformer.config
    return config.num_attention_heads * config.attention_head_dim


def thin_copy(transformer: nn.Module) -> Adapter:
    """The transformer at its depth with next to no width, on the CPU."""
    known = inspect.signature(type(transformer)).parameters
    config = {name: value for name, value in transformer.config.items() if name in known}
    config |= {name: value for name, value in THIN.items() if name in known}
    named = transformer.config.get("representative_layers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        copy = type(transformer)(**config)
    if named:
        copy.register_to_config(representative_layers=named)
    return adapter_for(copy.eval())


def thin_layout(layout: Layout) -> Layout:
    """The same pictures with a target of `THIN_SIDE` tokens a side, and a single text token."""
    grids = (layout.target_grid, *layout.reference_grids)
    target, *references = (
        tuple(max(1, round(n * THIN_SIDE / whole)) for n, whole in zip(grid, grids[0], strict=True))
        for grid in grids
    )
    return Layout(1, target, tuple(references))


def scaled(record: CallRecord, layout: Layout, full: Layout, wider: float) -> CallRecord:
    """A record of the thin copy at the size that is asked for; shares of tokens stay the same.

    Args:
        layout: what the method runs on.
        full: what the full run does.
        wider: how many times the width of the thin copy, which stores float32.
    """
    thin = record.layout

    def targets(n: int) -> int:
        return round(n * layout.n_target / thin.n_target)

    def references(n: int) -> int:
        return round(n * layout.n_reference / thin.n_reference)

    kept, computed = record.kept, record.computed
    if kept is not None:
        kept = tuple(range(max(1, references(len(kept)))))
    if computed is not None:  # target tokens first, then references
        own = min(computed, thin.n_target)
        computed = targets(own) + references(computed - own)
    stored = {}
    for layer, n in record.stored.items():  # references, and with them target tokens or none
        own = min(n, thin.n_reference)
        stored[layer] = references(own) + targets(n - own)
    merged = {
        layer: (scope, round(n * layout.n_image / thin.n_image))
        for layer, (scope, n) in record.merged.items()
    }
    larger = wider * layout.n_image / thin.n_image * ITEM / torch.float32.itemsize
    return replace(
        record,
        layout=layout,
        full_layout=full if record.full_layout else None,
        kept=kept,
        computed=computed,
        stored=stored,
        merged=merged,
        store_bytes=round(record.store_bytes * larger),
    )
