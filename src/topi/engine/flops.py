"""FLOP-ideal speed-up: what a method's trace would save if time were proportional to FLOPs.

A copy of the transformer without weights runs on the meta device, with the token counts that each
call of the trace had, through the same hooks as the real one; PyTorch counts its matrix products.
What a skipped call still runs is counted: the embeddings, what the decision to skip runs of the
model (first blocks, or the modulation before the first one), and the output layers on target
tokens. Not counted, as it is not the model's work: scoring and selection, and the matching, merging
and unmerging of merge methods. Neither are the VAE and the text encoders. The ratio therefore
bounds the measured speed-up of the transformer from above (up to differences in utilisation).
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from topi.engine import (
    FULL,
    BlockInput,
    Call,
    CallRecord,
    Merge,
    MergesTokens,
    Plan,
    ReusesKeys,
    Session,
    SkipsLayers,
)
from topi.engine.interface import KeyValue
from topi.engine.state import CallState
from topi.models import Adapter, adapter_for


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of all transformer calls of a run: as they were, and with full context."""

    full: int
    method: int

    @property
    def speedup(self) -> float:
        """full / method; 1 for a run without any counted call, which a method leaves untouched."""
        return self.full / self.method if self.method else 1.0


class FlopCounter:
    """Counts calls of one transformer; each distinct set of shapes is counted once.

    Args:
        transformer: any supported one; only its class and config are used.
    """

    def __init__(self, transformer: nn.Module) -> None:
        known = inspect.signature(type(transformer)).parameters
        config = {name: value for name, value in transformer.config.items() if name in known}
        with torch.device("meta"):
            copy = type(transformer)(**config)
        self._adapter = adapter_for(copy)
        self._counted: dict[tuple, int] = {}

    def run(self, trace: Iterable[CallRecord]) -> FlopCount:
        """FLOPs of a whole run from its trace (`method.trace`)."""
        full = method = 0
        for record in trace:
            layout = record.full_layout or record.layout
            full += record.stands_for * self.call(CallRecord(0, "", layout, record.batch))
            method += self.call(record)
        return FlopCount(full, method)

    def call(self, record: CallRecord) -> int:
        """FLOPs of one transformer call with the token counts of `record`."""
        rows = (record.n_image, record.front_layers, record.alone, record.trimmed, record.probed)
        layers = (tuple(sorted(each.items())) for each in (record.merged, record.stored))
        shapes = (record.layout, record.batch, rows, *layers, record.skipped_from)
        if shapes not in self._counted:
            self._counted[shapes] = self._count(record)
        return self._counted[shapes]

    def _count(self, record: CallRecord) -> int:
        inputs = self._adapter.inputs(record.layout, record.batch, torch.device("meta"))
        replay, counter = Replay(self._adapter, record), FlopCounterMode(display=False)
        with alike_once(replay, counter) as others, replay.attached(), torch.no_grad(), counter:
            self._adapter.transformer(**inputs)
        return counter.get_total_flops() + sum(others)


class Replay(Session):
    """A session that repeats the shapes of one recorded call; it reads no tensor."""

    def __init__(self, adapter: Adapter, record: CallRecord) -> None:
        super().__init__(adapter, Recorded(record), trim_last=record.trimmed)
        self._record = record

    @contextmanager
    def transformer_call(self, kwargs: Mapping[str, Any], context: str | None) -> Iterator[None]:
        """Every call is the recorded one."""
        record, device = self._record, kwargs["hidden_states"].device
        layout = record.layout
        state = self.layers.state = CallState()
        state.call = Call(record.step, record.branch, layout, record.batch, device, record)
        state.plan = Plan(alone=record.alone)
        if record.kept is not None:
            state.rows = torch.empty(record.n_image, dtype=torch.long, device=device)
        yield
        self.layers.state = CallState()

    def inside(self, layer: int) -> tuple:
        """What decides the shapes in a block beside those of its states."""
        record, beside = self._record, self.layers.state.beside
        stored = record.stored.get(layer)
        kept_aside = None if beside is None else beside[0].shape[1]
        return record.merged.get(layer), stored, kept_aside, self.layers.state.call.alone


@contextmanager
def alike_once(replay: Replay, counter: FlopCounterMode) -> Iterator[list[int]]:
    """Run one of the blocks whose work has the same shapes, which takes a tenth of the time.

    Yields:
        The FLOPs of the blocks that did not run, one after the other.
    """
    known: dict[tuple, int] = {}
    others: list[int] = []

    def once(layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(**kwargs: Any) -> tuple[Tensor, Tensor]:
            states = kwargs["encoder_hidden_states"], kwargs["hidden_states"]
            shapes = (*(each.shape for each in states), replay.inside(layer))
            if (key := (type(block_of[layer]), *shapes)) in known:
                others.append(known[key])
                replay.layers.state.awaited = (
                    False  # a block that does not run has no attention to show
                )
                return states
            before = counter.get_total_flops()
            result = forward(**kwargs)
            known[key] = counter.get_total_flops() - before
            return result

        return run

    block_of = replay.adapter.blocks
    with forwards_of(block_of, once):
        yield others


@contextmanager
def forwards_of(
    blocks: Sequence[nn.Module], make: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Let `make(layer, forward)` run in place of each block's own `forward`; attach afterwards."""
    for layer, block in enumerate(blocks):
        block.forward = make(layer, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


class Recorded:
    """Stands for the method of a recorded call, as far as a replay asks it.

    Attributes:
        parts: one object for each capability that the call made use of.
    """

    name = "recorded"
    plans_before: Collection[int] = ()

    def __init__(self, record: CallRecord) -> None:
        self.trace: list[CallRecord] = []
        uses = {
            RecordedSkip: record.probed or record.skipped,
            RecordedMerges: bool(record.merged),
            RecordedStore: bool(record.stored) or record.alone,
        }
        self.parts = [part(record) for part, used in uses.items() if used]

    def numbered(self, call: Call) -> Call:
        return call

    def reset(self) -> None: ...

    def begin(self, call: Call) -> None: ...

    def plan(self, call: Call, layer: int = 0) -> Plan:
        return FULL

    def end(self, call: Call) -> None: ...


class RecordedSkip(SkipsLayers):
    """Skips from the layer from which the recorded call skipped."""

    def __init__(self, record: CallRecord) -> None:
        self._decides_before = {0} if record.probed else set()
        self._decides_before |= {record.skipped_from} if record.skipped else set()

    @property
    def decides_before(self) -> Collection[int]:
        return self._decides_before

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        if call.record.probed and layer == 0:
            block.normed()
        skipped = layer == call.record.skipped_from
        return block.states[:, : call.layout.n_target] if skipped else None

    def remember(self, call: Call, states: Tensor) -> None: ...


class RecordedMerges(MergesTokens):
    """Merges to as many tokens as the recorded call did."""

    def __init__(self, record: CallRecord) -> None:
        self._merged = dict(record.merged)

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        return ShapeMerge(*self._merged[layer], states) if layer in self._merged else None


class RecordedStore(ReusesKeys):
    """Has as many keys and values in store as the recorded call took."""

    def __init__(self, record: CallRecord) -> None:
        self._stored = dict(record.stored)

    def watches(self, call: Call, layer: int) -> bool:
        return False

    def stored(self, call: Call, layer: int, key: Tensor, value: Tensor) -> KeyValue | None:
        if layer not in self._stored:
            return None
        n = self._stored[layer]
        return tuple(each.new_empty(len(each), n, *each.shape[2:]) for each in (key, value))


class ShapeMerge(Merge):
    """Changes lengths, computes nothing."""

    def __init__(self, scope: str, n: int, states: Tensor) -> None:
        self.scope = scope
        self.rows = torch.empty(n, dtype=torch.long, device=states.device)
        self._full_length = states.shape[1]

    def merge(self, states: Tensor) -> Tensor:
        return states[:, : len(self.rows)]

    def unmerge(self, states: Tensor) -> Tensor:
        return states.new_empty(len(states), self._full_length, states.shape[2])


def count_trace(transformer: nn.Module, trace: Iterable[CallRecord]) -> FlopCount:
    """FLOPs of a run of `transformer` that left `trace`. For several runs keep a `FlopCounter`."""
    return FlopCounter(transformer).run(trace)
