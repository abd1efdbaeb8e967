"""What a run will cost, before it is run: FLOPs, memory traffic, memory, and the ideal speed-up.

FLOPs are counted as for measured rows, from a trace. The trace comes from a thin copy of the
transformer, of the same depth but next to no width, on a small grid of tokens: which steps are
anchors, which layers merge, and what share of the tokens stays do not depend on width, and shares
scale with the grid. So every method of the registry can be predicted, without a formula of its own.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from topi.engine import CallRecord
from topi.evaluation.bench import Attach
from topi.evaluation.flops import FlopCount, FlopCounter
from topi.models import Adapter, Layout, adapter_for

THIN = {"num_attention_heads": 1, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
THIN |= {"joint_attention_dim": 8, "pooled_projection_dim": 8}
THIN_SIDE = 16  # tokens, of target and references
TOKEN = 16
"""Pixels of a token's side: the VAE's 8 times a patch of 2."""

TRAFFIC = 20
"""Numbers per token, layer and width that matrix products read and write: QKV 1 + 3, attention
3 + 1, its projection 1 + 1, the MLP 1 + 4 + 4 + 1."""
HELD = 15
"""The same that a single-stream block holds at its peak, an estimate: residual 1, normed 1, MLP 4,
QKV 3, attention 1, their concatenation 5."""


@dataclass(frozen=True)
class Cost:
    """Of one run of the transformer, in full and under a method.

    Args:
        flops: of all calls.
        bytes_full, bytes_method: memory traffic of all calls at least: weights once a call, and
            what the matrix products read and write.
        memory: bytes held at the peak, weights included, VAE and text encoder not; an estimate.
        calls: of the transformer.
    """

    flops: FlopCount
    bytes_full: float
    bytes_method: float
    memory: float
    calls: int

    def seconds(self, flops: float, bandwidth: float, full: bool = False) -> float:
        """On a machine that always reaches its FLOP/s, or its bytes/s where these bind."""
        work = self.flops.full if full else self.flops.method
        traffic = self.bytes_full if full else self.bytes_method
        return max(work / flops, traffic / bandwidth)


def layout_of(size: int, references: int, n_text: int) -> Layout:
    """Of a square picture of `size` pixels with so many references of the same size."""
    grid = (size // TOKEN, size // TOKEN)
    return Layout(n_text, grid, (grid,) * references)


class CostModel:
    """Predicts runs of one transformer; what was counted or traced once is kept.

    Args:
        transformer: on any device, the meta device included.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._counter = FlopCounter(transformer)
        self._thin = thin_copy(transformer)
        self.facts = self._thin.facts
        config = transformer.config
        self._width = config.num_attention_heads * config.attention_head_dim
        self._depth = self.facts.depth
        self._weights = 2 * sum(parameter.numel() for parameter in transformer.parameters())

    def predict(self, attach: Attach, layout: Layout, steps: int) -> Cost:
        """A run of `steps` steps without classifier-free guidance, one sample, in bfloat16."""
        return self.of_trace(self.trace(attach, layout, steps))

    def of_trace(self, trace: Sequence[CallRecord]) -> Cost:
        """The same for a run whose trace is known."""
        full = sum(self._traffic(replace(r, kept=None, skipped_from=None)) for r in trace)
        layout = trace[0].layout
        tokens = max(record.batch for record in trace) * (layout.n_text + layout.n_image)
        return Cost(
            self._counter.run(trace),
            full,
            sum(map(self._traffic, trace)),
            self._weights + 2 * HELD * tokens * self._width,
            len(trace),
        )

    def trace(self, attach: Attach, layout: Layout, steps: int) -> list[CallRecord]:
        """What a method would do, from a run of the thin copy.

        Args:
            attach: a method, or what else attaches one.
            layout: with references of the target's size, or several times that.
        """
        small = (THIN_SIDE, THIN_SIDE)
        n_references = round(layout.n_reference / layout.n_target)
        thin = Layout(1, small, (small,) * n_references)
        inputs = self._thin.inputs(thin, 1, torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        shape = inputs["hidden_states"].shape
        with attach(self._thin.transformer) as method, torch.no_grad():
            for step in range(steps):
                inputs["hidden_states"] = torch.randn(shape, generator=generator)
                inputs["timestep"] = torch.tensor([1 - step / steps])
                self._thin.transformer(**inputs)
        return [scaled(record, layout) for record in method.trace]

    def _traffic(self, record: CallRecord) -> float:
        """Bytes that a call reads and writes at least."""
        n_text, full = record.layout.n_text, record.layout.n_image
        short = full if record.kept is None else record.layout.n_target + len(record.kept)
        run = self._depth if record.skipped_from is None else record.skipped_from
        front = min(record.front_layers if record.kept is not None else run, run)
        rows = front * (n_text + full) + (run - front) * (n_text + short)
        return self._weights + 2 * TRAFFIC * record.batch * rows * self._width


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


def scaled(record: CallRecord, layout: Layout) -> CallRecord:
    """A record of the thin copy at the size that is asked for; shares of tokens stay the same."""
    thin = record.layout
    kept = record.kept
    if kept is not None:
        kept = tuple(range(max(1, round(len(kept) * layout.n_reference / thin.n_reference))))
    merged = {
        layer: (scope, round(n * layout.n_image / thin.n_image))
        for layer, (scope, n) in record.merged.items()
    }
    return replace(record, layout=layout, kept=kept, merged=merged)
