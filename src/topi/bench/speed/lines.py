"""Latency of a model in full and under each method, measured in interleaved pairs.

One run gives two latencies: end to end by the host's clock, and of each transformer call by the
device's clock. The FLOP-ideal ratio beside them is counted from the method's own trace.
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
from topi.bench.runs.latency import Timing, interleaved
from topi.engine.clock import Span
from topi.engine.compiling import CompiledForward, eager_forward
from topi.engine.flops import FlopCounter
from topi.errors import ToPiError
from topi.methods import Call, CallRecord, Method
from topi.methods.floors.full import Full
from topi.models import Layout, adapter_for

Attach = Callable[[Any], AbstractContextManager[Method]]


@dataclass
class HooksOnly(Method):
    """All hooks of a method that scores, with nothing in them: it measures the cost of hooks."""

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Do nothing."""

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
    """Stands for a method that cannot be built: attaching it raises the error."""

    def attach(pipe: Any) -> AbstractContextManager[Method]:
        raise error

    return attach


@dataclass(frozen=True)
class Variant:
    """One line of a benchmark.

    Args:
        label: unique name of the line.
        method: its name in the registry, "full" or "hooks".
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
        blocks: number of blocks of a compiled transformer that ran, and how many of them ran
            uncompiled.
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
    """The most device memory held, in all and while the transformer runs. None on a CPU.

    It reads the allocator's statistics on the host and never waits for the device.
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
    """Yields a list to which a compiled block is added each time that it runs uncompiled."""
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


@dataclass(frozen=True)
class Pair:
    """A full run and the method's run right after it, with the trace of the method."""

    seconds: Timing
    full: Run
    own: Run
    trace: Sequence[CallRecord]


def timed_pair(editor: Editor, sample: EditSample, attach: Attach, seed: int) -> Pair:
    """Edit a sample in full and under a method.

    Raises:
        ToPiError: the method cannot run here.
    """
    device = editor.pipe._execution_device
    forwards = [block.forward for block in adapter_for(editor.pipe).blocks]
    compiled = [forward for forward in forwards if isinstance(forward, CompiledForward)]
    runs: list[Run] = []
    methods: list[Method] = []

    def edit(sample: EditSample) -> None:
        with watched(editor.transformer, device, compiled) as run:
            editor.edit(sample, seed)
        runs.append(run)

    @contextmanager
    def attached() -> Iterator[None]:
        with attach(editor.pipe) as method:
            methods.append(method)
            yield

    (seconds,) = interleaved(edit, attached, [sample], 1, 0, device)
    return Pair(seconds, *runs, methods[0].trace)


def measure(
    editor: Editor,
    sample: EditSample,
    variants: Sequence[Variant],
    seed: int,
    repeats: int,
    warmup: int = 1,
    refuse: Callable[[str, str], None] = lambda label, reason: None,
) -> Iterator[dict[str, Any]]:
    """Time each variant against the full run, in pairs. Variants take turns, so that drift is fair.

    Args:
        sample: what is edited.
        repeats: pairs of each variant.
        warmup: pairs of each variant that are run first and thrown away.
        refuse: called with the label of a variant that cannot run here, and why; it is left out
            from then on, and the others go on.

    Yields:
        One row per pair as soon as it is measured, as `results.bench_run` describes it.
    """
    counter = FlopCounter(editor.transformer)
    left = list(variants)
    for repeat in range(warmup + repeats):
        for variant in tuple(left):
            try:
                pair = timed_pair(editor, sample, variant.attach, seed)
            except (ToPiError, torch.OutOfMemoryError) as error:
                left.remove(variant)
                refuse(variant.label, str(error).splitlines()[0])
                continue
            if repeat >= warmup:
                about = {"label": variant.label, "method": variant.method, "keep": variant.keep}
                yield about | {"repeat": repeat - warmup} | pair_fields(pair, counter)


def pair_fields(pair: Pair, counter: FlopCounter) -> dict[str, Any]:
    """Seconds, bytes and FLOPs of a pair, as JSON has them."""
    full, own, flops = pair.full, pair.own, counter.run(pair.trace)
    return {
        "total_full": pair.seconds.seconds_full,
        "total_method": pair.seconds.seconds_method,
        "transformer_full": full.transformer,
        "transformer_method": own.transformer,
        "peak_bytes_full": full.peak_bytes,
        "peak_bytes_method": own.peak_bytes,
        "peak_bytes_transformer_full": full.peak_bytes_transformer,
        "peak_bytes_transformer_method": own.peak_bytes_transformer,
        "uncompiled": own.uncompiled,
        "calls": len(own.calls),
        "layout": layout_fields(pair.trace[0].full_layout or pair.trace[0].layout),
        "flops_full": flops.full,
        "flops_method": flops.method,
        **step_seconds(full, own, pair.trace),
        **stage_seconds(pair.trace),
    }


def step_seconds(full: Run, own: Run, trace: Sequence[CallRecord]) -> dict[str, float | None]:
    """Median seconds of a full call, of an anchor and of a reduced call; None if there is none.

    The first call of a run is left out: it also computes what the other calls share.
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
    """The arguments of a `Layout`, as JSON has them."""
    return {name: getattr(layout, name) for name in ("n_text", "target_grid", "reference_grids")}


def is_reduced(record: CallRecord) -> bool:
    """True if the call ran on fewer tokens or in fewer layers."""
    return record.kept is not None or bool(record.merged) or record.skipped


def stage_seconds(trace: Sequence[CallRecord]) -> dict[str, float]:
    """Seconds of scoring, selection and gathering over all calls (Table 7)."""
    stages = ("scoring_seconds", "selection_seconds", "gathering_seconds")
    return {stage: sum(record.seconds(stage) for record in trace) for stage in stages}
