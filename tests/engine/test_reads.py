"""Nothing on a pruned step waits for the device, and an anchor reads one value from it."""

import pytest
import torch
from torch.overrides import TorchFunctionMode, resolve_name

from topi import Checkerboard, RandomTokens, ToPi
from topi.engine.hooks import RootHook

READS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"}
READS |= {"nonzero", "unique", "unique_consecutive", "masked_select", "equal", "allclose", "cpu"}
small = {"front_layers": 1, "first_anchor": 1, "update_every": 3}


class Reads(TorchFunctionMode):
    """Tells host from device where both are the CPU, and counts what would wait for the device.

    What comes from `cpu()`, or is made without naming a device, is on the host, and so is what is
    computed from that alone; `to()` moves to the device, where all other tensors are.
    """

    def __init__(self):
        self.host, self.held, self.seen = set(), [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", str(function))
        given = [a for a in _flat([*args, *kwargs.values()]) if isinstance(a, torch.Tensor)]
        on_host = all(id(tensor) in self.host for tensor in given)
        masked = name == "__getitem__" and any(tensor.dtype == torch.bool for tensor in given[1:])
        if given and not on_host and (name in READS or masked):
            self.seen.append(resolve_name(function) or name)
        if name == "cpu":
            result, on_host = args[0].clone(), True
        else:
            result = function(*args, **kwargs)
        if on_host and name != "to" and "device" not in kwargs:
            made = [out for out in _flat([result]) if isinstance(out, torch.Tensor)]
            self.held += made  # so that an id is not used again
            self.host |= {id(out) for out in made}
        return result


def _flat(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


@pytest.fixture
def reads(monkeypatch):
    """`reads(pipe, call, method)` -> of each transformer call, what it read from the device."""

    def count(pipe, arguments, method):
        of_calls, new_forward = [], RootHook.new_forward

        def watched(self, module, *args, **kwargs):
            with Reads() as mode:
                mode.host = host
                mode.held = held
                result = new_forward(self, module, *args, **kwargs)
            of_calls.append(mode.seen)
            return result

        host, held = set(), []
        with monkeypatch.context() as patch:
            patch.setattr(RootHook, "new_forward", watched)
            with method(pipe):
                pipe(**arguments)
        return of_calls, method.trace

    return count


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "qwen_plus"])
@pytest.mark.parametrize(
    "method",
    [
        ToPi(tau=0.7, layers=(1, 3), **small),
        ToPi(ratio=0.5, layers=(1, 3), reference_floor=0.1, round_to=16, **small),
        ToPi(tau=0.7, layers=(1, 3), cfg_mask="cond", **small),
        RandomTokens(**small),
        Checkerboard(flip="anchor", **small),
    ],
    ids=["topi", "topi static", "topi cond", "random", "checker"],
)
def test_reads(tiny, reads, kind, method):
    pipe, call = tiny(kind)
    cfg = kind != "flux"
    of_calls, trace = reads(pipe, call(steps=6, cfg=cfg), method)
    assert len(of_calls) == 6 * (1 + cfg)
    assert sum(record.kept is not None for record in trace) == 3 * (1 + cfg)
    for record, seen in zip(trace, of_calls, strict=True):
        if record.kept is not None:
            assert seen == [], record.step
        elif record.step:  # the first step also reads the timestep and the positions
            assert len(seen) <= (record.anchor and isinstance(method, ToPi)), (record.step, seen)


def test_branches_without_names_cost_a_timestep(flux, reads):
    """Kontext with true CFG: only the timesteps tell the second branch from a second step."""
    pipe, call = flux
    of_calls, trace = reads(pipe, call(steps=3, cfg=True), RandomTokens(**small))
    assert [record.branch for record in trace] == ["cond", "uncond"] * 3
    assert [len(seen) for seen in of_calls[2:]] == [0, 2, 0, 2]


def test_the_first_step_is_seen_to_read(flux, reads):
    """The yardstick sees what is there to see."""
    pipe, call = flux
    of_calls, _ = reads(pipe, call(steps=2), ToPi(ratio=0.5, layers=(1, 3), **small))
    assert any("__float__" in name for name in of_calls[0])


def test_times_on_a_gpu_are_taken_without_waiting(monkeypatch):
    from topi.engine.clock import Span

    waited = []

    class Event:
        now = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.now += 1
            self.at = 500 * Event.now

        def synchronize(self):
            waited.append(self.at)

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    span = Span(torch.device("cuda")).stop()
    assert waited == []
    assert span.seconds == 0.5 and waited == [1000]
