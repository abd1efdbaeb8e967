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

from topi.bench.data import EditSample
from topi.bench.editors.editor import Editor
from topi.bench.runs.latency import interleaved
from topi.engine.clock import Span
from topi.engine.compiling import CompiledForward, eager_forward
from topi.engine.flops import FlopCounter
from topi.errors import ToPiError
from topi.methods import Call, CallRecord, Method
from topi.methods.full import Full
from topi.models import Layout, adapter_for

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

    def eager(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: eager_forward(forward)(*args, **kwargs)

    for block in blocks:
        block.forward = eager(block.forward)
    try:
        with Full()(pipe) as method:
            yield method
    finally:
        for block, forward in zip(blocks, compiled, strict=True):
            block.forward = forward


def refused(error: ToPiError) -> Attach:
    """What stands for a method that cannot be built: attaching it says why."""

    def attach(pipe: Any) -> AbstractContextManager[Method]:
        raise error

    return attach


@dataclass(frozen=True)
class Variant:
    """One line of a benchmark.

    Args:
        label: unique name of the line.
        method: the name in the registry, or of what it isolates.
        attach: attaches a method to a pipeline, and yields it.
        keep: the share of tokens, or of steps, that stays, where a method has one.
    """

    label: str
    method: str
    attach: Attach
    keep: float | None = None


@dataclass
class Run:
    """One run of a pipeline.

    Args:
        calls: of the transformer.
        peak_bytes: the most device memory held in the run; None on a CPU.
        peak_bytes_transformer: the same while the transformer runs, so without the VAE's own.
        blocks: how many blocks of a compiled transformer ran, and how many of these uncompiled.
    """

    calls: list[Span] = field(default_factory=list)
    peak_bytes: int | None = None
    peak_bytes_transformer: int | None = None
    blocks: tuple[int, int] = (0, 0)

    @property
    def transformer(self) -> float:
        """Seconds of all transformer calls."""
        return sum(call.seconds for call in self.calls)

    @property
    def uncompiled(self) -> float | None:
        """Share of the blocks that ran uncompiled; None if none is compiled."""
        count, eager = self.blocks
        return eager / count if count else None


class PeakMemory:
    """The most device memory held, in all and while the transformer runs; nothing on a CPU.

    The statistics that it reads are the allocator's on the host: it never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self.whole = self.transformer = 0 if self._on_gpu else None
        self._reset()

    def enter(self) -> None:
        """Before a call of the transformer."""
        if self._on_gpu:
            self.whole = max(self.whole, self._read())
            self._reset()

    def leave(self) -> None:
        """After it."""
        if self._on_gpu:
            self.transformer = max(self.transformer, self._read())

    def stop(self) -> None:
        """At the end of the run."""
        if self._on_gpu:
            self.whole = max(self.whole, self.transformer, self._read())

    def _read(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    def _reset(self) -> None:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)


@contextmanager
def watched(
    transformer: nn.Module, device: torch.device, compiled: Sequence[CompiledForward] = ()
) -> Iterator[Run]:
    """Time every call of the transformer, without waiting for it, and watch the device's memory.

    Args:
        compiled: its blocks, as far as they are.
    """
    run, open_spans, memory = Run(), [], PeakMemory(device)

    def before(*_: Any) -> None:
        memory.enter()
        open_spans.append(Span(device))

    def after(*_: Any) -> None:
        run.calls.append(open_spans.pop().stop())
        memory.leave()

    hooks = transformer.register_forward_pre_hook(before), transformer.register_forward_hook(after)
    try:
        with counted_eager(compiled) as eager:
            yield run
    finally:
        for hook in hooks:
            hook.remove()
    memory.stop()
    run.peak_bytes, run.peak_bytes_transformer = memory.whole, memory.transformer
    run.blocks = len(compiled) * len(run.calls), len(eager)


@contextmanager
def counted_eager(compiled: Sequence[CompiledForward]) -> Iterator[list[CompiledForward]]:
    """Yields a list that gets a compiled block each time that it runs uncompiled."""
    ran: list[CompiledForward] = []
    originals = [block.eager for block in compiled]

    def noting(block: CompiledForward, eager: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            ran.append(block)
            return eager(*args, **kwargs)

        return run

    for block, eager in zip(compiled, originals, strict=True):
        block.eager = noting(block, eager)
    try:
        yield ran
    finally:
        for block, eager in zip(compiled, originals, strict=True):
            block.eager = eager


def measure(
    editor: Editor,
    sample: EditSample,
    variants: Sequence[Variant],
    seed: int,
    repeats: int,
    warmup: int = 1,
    refuse: Callable[[str, str], None] = lambda label, reason: None,
) -> Iterator[dict[str, Any]]:
    """Time each variant against the full run, in pairs; variants take turns, so that drift is fair.

    Args:
        sample: what is edited.
        repeats: pairs of each variant.
        warmup: pairs of each variant that are run first and thrown away.
        refuse: called with the label of a variant that cannot run here, and why; it is left out
            from then on, and the others go on.

    Yields:
        One row per pair as soon as it is measured, as `results.bench` describes it.
    """
    device = editor.pipe._execution_device
    counter = FlopCounter(editor.transformer)
    forwards = [block.forward for block in adapter_for(editor.pipe).blocks]
    compiled = [each for each in forwards if isinstance(each, CompiledForward)]
    runs: list[Run] = []
    method: Method | None = None

    def edit(sample: EditSample) -> None:
        with watched(editor.transformer, device, compiled) as run:
            editor.edit(sample, seed)
        runs.append(run)

    def attach(variant: Variant) -> Callable[[], AbstractContextManager]:
        @contextmanager
        def attached() -> Iterator[None]:
            nonlocal method
            with variant.attach(editor.pipe) as method:
                yield

        return attached

    left = list(variants)
    for repeat in range(warmup + repeats):
        for variant in tuple(left):
            runs.clear()
            try:
                (pair,) = interleaved(edit, attach(variant), [sample], 1, 0, device)
            except (ToPiError, torch.OutOfMemoryError) as error:
                left.remove(variant)
                refuse(variant.label, str(error).splitlines()[0])
                continue
            if repeat < warmup:
                continue
            full, own = runs
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
                "peak_bytes_transformer_full": full.peak_bytes_transformer,
                "peak_bytes_transformer_method": own.peak_bytes_transformer,
                "uncompiled": own.uncompiled,
                "calls": len(own.calls),
                "layout": layout_fields(method.trace[0].full_layout or method.trace[0].layout),
                "flops_full": flops.full,
                "flops_method": flops.method,
                **step_seconds(full, own, method.trace),
                **stage_seconds(method.trace),
            }


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
