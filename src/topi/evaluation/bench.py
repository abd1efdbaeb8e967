"""How fast a model runs in full and under each method: interleaved, with what the time went into.

One run gives both latencies: end to end on the clock of the host, and of each transformer call on
that of the device. The FLOP-ideal ratio beside them is counted from the method's own trace.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from topi.data import EditSample
from topi.engine.clock import Span
from topi.engine.compiling import eager_forward
from topi.evaluation.flops import FlopCounter
from topi.evaluation.latency import interleaved
from topi.methods import Call, CallRecord, Method
from topi.methods.full import Full
from topi.models import Layout, adapter_for
from topi.models.editor import Editor

Attach = Callable[[Any], AbstractContextManager[Method]]


@dataclass
class HooksOnly(Method):
    """All hooks of a method that scores, and nothing done in them: what hooks alone cost."""

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Look away."""

    def watches(self, call: Call, layer: int) -> bool:
        """Nowhere, so that compiled blocks stay compiled."""
        return False


@contextmanager
def uncompiled(pipe: Any) -> Iterator[Method]:
    """The full run of a compiled model as it would be without compilation."""
    blocks = adapter_for(pipe).blocks
    compiled = [block.forward for block in blocks]
    for block in blocks:
        block.forward = eager_forward(block.forward)
    try:
        with Full()(pipe) as method:
            yield method
    finally:
        for block, forward in zip(blocks, compiled, strict=True):
            block.forward = forward


@dataclass(frozen=True)
class Variant:
    """One line of a benchmark.

    Args:
        label: unique name of the line.
        method: the name in the registry, or of what it isolates.
        attach: attaches a method to a pipeline, and yields it.
        keep: the share of tokens that stays, where the method has such a parameter.
    """

    label: str
    method: str
    attach: Attach
    keep: float | None = None


@dataclass
class Run:
    """One run of a pipeline: its transformer calls and the most device memory held in it."""

    calls: list[Span] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def transformer(self) -> float:
        """Seconds of all transformer calls."""
        return sum(call.seconds for call in self.calls)


@contextmanager
def watched(transformer: nn.Module, device: torch.device) -> Iterator[Run]:
    """Time every call of the transformer, without waiting for it, and watch the device's memory."""
    run, open_spans = Run(), []
    before = transformer.register_forward_pre_hook(lambda *_: open_spans.append(Span(device)))
    after = transformer.register_forward_hook(lambda *_: run.calls.append(open_spans.pop().stop()))
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield run
    finally:
        before.remove()
        after.remove()
    if on_gpu:
        run.peak_bytes = torch.cuda.max_memory_allocated(device)


def measure(
    editor: Editor,
    sample: EditSample,
    variants: Sequence[Variant],
    seed: int,
    repeats: int,
    warmup: int = 1,
) -> Iterator[dict[str, Any]]:
    """Time each variant against the full run, in pairs; variants take turns, so that drift is fair.

    Args:
        sample: what is edited.
        repeats: pairs of each variant.
        warmup: pairs of each variant that are run first and thrown away.

    Yields:
        One row per pair as soon as it is measured, as `results.bench` describes it.
    """
    device = editor.pipe._execution_device
    counter = FlopCounter(editor.transformer)
    runs: list[Run] = []
    method: Method | None = None

    def edit(sample: EditSample) -> None:
        with watched(editor.transformer, device) as run:
            editor.edit(sample, seed)
        runs.append(run)

    def attach(variant: Variant) -> Callable[[], AbstractContextManager]:
        @contextmanager
        def attached() -> Iterator[None]:
            nonlocal method
            with variant.attach(editor.pipe) as method:
                yield

        return attached

    for repeat in range(warmup + repeats):
        for variant in variants:
            (pair,) = interleaved(edit, attach(variant), [sample], 1, 0, device)
            if repeat >= warmup:
                full, own = runs[-2:]
                flops = counter.run(method.trace)
                yield {
                    "label": variant.label,
                    "method": variant.method,
                    "keep": variant.keep,
                    "repeat": repeat - warmup,
                    "total_full": pair.seconds_full,
                    "total_method": pair.seconds_method,
                    "transformer_full": full.transformer,
                    "transformer_method": own.transformer,
                    "peak_bytes_full": full.peak_bytes,
                    "peak_bytes_method": own.peak_bytes,
                    "calls": len(own.calls),
                    "layout": layout_fields(method.trace[0].layout),
                    "flops_full": flops.full,
                    "flops_method": flops.method,
                    **step_seconds(full, own, method.trace),
                    **stage_seconds(method.trace),
                }
            runs.clear()


def step_seconds(full: Run, own: Run, trace: Sequence[CallRecord]) -> dict[str, float | None]:
    """Median seconds of a call: in full, of an anchor, of a pruned one; None where there is none.

    The first call of a run, which also settles what the others share, is left out.
    """

    def middle(seconds: Sequence[float]) -> float | None:
        return median(seconds) if seconds else None

    calls = list(zip(own.calls, trace, strict=True))[1:]
    return {
        "call_full": middle([call.seconds for call in full.calls[1:]]),
        "call_anchor": middle([call.seconds for call, record in calls if record.anchor]),
        "call_reduced": middle([call.seconds for call, record in calls if is_reduced(record)]),
    }


def layout_fields(layout: Layout) -> dict[str, Any]:
    """What `Layout(**fields)` takes, as JSON has it."""
    return {name: getattr(layout, name) for name in ("n_text", "target_grid", "reference_grids")}


def is_reduced(record: CallRecord) -> bool:
    """Did the call run on fewer tokens, or only in part?"""
    return record.kept is not None or bool(record.merged) or record.skipped


def stage_seconds(trace: Sequence[CallRecord]) -> dict[str, float]:
    """Seconds of scoring, selection and gathering over all calls (Table 7)."""
    stages = ("scoring_seconds", "selection_seconds", "gathering_seconds")
    return {stage: sum(record.seconds(stage) for record in trace) for stage in stages}
