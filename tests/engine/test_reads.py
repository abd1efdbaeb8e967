"""Nothing on a pruned step waits for the device, and an anchor reads one value from it."""

from unittest.mock import Mock

import pytest
import torch
from torch.overrides import TorchFunctionMode, resolve_name

from topi import Checkerboard, RandomTokens, RefKV, ToPi, ToPiCover, ToPiKV
from topi.engine.hooks import RootHook
from topi.engine.transfer import send
from topi.methods.parts.kv_store import every
from topi.models import tiny as models

READS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "cpu"}
READS |= {"nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "isin"}
READS |= {"equal", "allclose"}
MAKES_FROM_VALUES = {"tensor", "as_tensor"}
small = {"front_layers": 1, "first_anchor": 1, "update_every": 3}
scored = {**small, "layers": (1, 3)}


HOST, DEVICE = torch.device("cpu"), torch.device("cpu", 0)


class Reads(TorchFunctionMode):
    """Tells host from device where both are the CPU, and counts what would wait for the device.

    What comes from `cpu()`, or is made without naming the device, is on the host, and so is what is
    computed from that alone; `to(device)` moves to the device, where all other tensors are. That
    waits, too, unless it says not to; so does all that takes an argument from the host along.
    """

    def __init__(self):
        self.host, self.held, self.seen = set(), [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", str(function))
        given = [a for a in _flat([*args, *kwargs.values()]) if isinstance(a, torch.Tensor)]
        from_host = all(id(tensor) in self.host for tensor in given)
        if function == torch.Tensor.device.__get__:
            return HOST if from_host else DEVICE
        where = [a for a in [*args, *kwargs.values()] if isinstance(a, torch.device)]
        to_host = name == "cpu" or (where == [HOST] if where else from_host)
        if self._waits(name, given, from_host, to_host, args, kwargs):
            self.seen.append(resolve_name(function) or name)
        result = function(*args, **kwargs)
        if given and to_host != from_host and result is args[0]:
            result = result.clone()  # another tensor, as it would be with two devices
        made = [out for out in _flat([result]) if isinstance(out, torch.Tensor)]
        self.held += made  # so that an id is not used again
        (self.host.update if to_host else self.host.difference_update)(map(id, made))
        return result

    def _waits(self, name, given, from_host, to_host, args, kwargs):
        if not given:
            return name in MAKES_FROM_VALUES and not to_host
        if from_host:
            return not to_host and not kwargs.get("non_blocking")
        if any(id(tensor) in self.host and tensor.ndim for tensor in given):
            return True
        index = [a for a in _flat(args[1:2]) if isinstance(a, torch.Tensor)]
        if name == "__getitem__":  # a mask's count is read
            return any(tensor.dtype == torch.bool for tensor in index)
        if name == "__setitem__" and index:  # a number is made a tensor on the host
            return not isinstance(args[2], torch.Tensor)
        return name in READS or to_host


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

        every.cache_clear()  # made on the host, but not under these eyes
        host, held = set(), []
        with monkeypatch.context() as patch:
            patch.setattr(RootHook, "new_forward", watched)
            with method(pipe):
                pipe(**arguments)
        return of_calls, method.trace

    return count


METHODS = [
    (ToPi, {"tau": 0.7, **scored}),
    (ToPi, {"ratio": 0.5, "reference_floor": 0.1, "round_to": 16, **scored}),
    (ToPi, {"tau": 0.7, "cfg_mask": "cond", **scored}),
    (ToPi, {"tau": 0.7, "dropped": "merge", **scored}),
    (ToPiCover, {"ratio": 0.5, **scored}),
    (ToPiCover, {"tau": 0.8, "redraw": "anchor", **scored}),
    (ToPiKV, {"ratio": 0.5, **scored}),
    (ToPiKV, {"tau": 0.7, "selection": "top", **scored}),
    (ToPiKV, {"ratio": 0.3, "selection": "top", "coarse": 4, **scored}),
    (ToPiKV, {"ratio": 0.3, "selection": "top", "live": 0.2, **scored}),
    (ToPiKV, {"tau": 0.6, "selection": "top", "per_layer": True, "live": 0.2, **scored}),
    (ToPiKV, {"ratio": 0.5, "selection": "top", "extrapolate": True, **scored}),
    (ToPiKV, {"ratio": 0.5, "live": 0.2, **scored}),
    (RefKV, small),
    (RandomTokens, {"redraw": "step", **small}),
    (Checkerboard, {"flip": "anchor", **small}),
]


def named(method, params):
    own = [f"{key}={value}" for key, value in params.items() if key not in scored]
    return " ".join([method.__name__, *own])


every_method = pytest.mark.parametrize(
    ("method", "params"), METHODS, ids=[named(*each) for each in METHODS]
)


@pytest.mark.parametrize("cfg", [False, True])
@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "qwen_plus"])
@every_method
def test_reads(tiny, reads, kind, cfg, method, params):
    pipe, call = tiny(kind)
    of_calls, trace = reads(pipe, call(steps=6, cfg=cfg), method(**params))
    assert len(of_calls) == 6 * (1 + cfg)
    assert sum(record.kept is not None for record in trace) == 3 * (1 + cfg)
    of_steps = {}
    for record, seen in zip(trace, of_calls, strict=True):
        of_steps.setdefault((record.step, record.anchor, record.kept is None), []).extend(seen)
    for (step, anchor, full), seen in of_steps.items():
        if step:  # the first step also reads the timestep, the positions and the references
            assert len(seen) <= (full and anchor and issubclass(method, ToPi)), (step, seen)


@pytest.mark.parametrize(
    "params",
    [{}, {"dropped": "merge"}, {"cfg_mask": "separate"}],
    ids=lambda params: " ".join(map(str, params.values())) or "own",
)
def test_reads_of_a_batch(qwen, reads, params):
    """A mask for each branch is a read for each."""
    pipe, call = qwen
    method = ToPi(tau=0.6, batch_mask="own", **scored, **params)
    of_calls, trace = reads(pipe, call(steps=4, batch=2), method)
    for record, seen in zip(trace, of_calls, strict=True):
        if record.step:
            assert len(seen) <= record.anchor, (record.step, seen)
    assert trace[-4].kept_by_sample is not None


def test_latents_of_which_torch_counts_no_writes_cost_a_timestep(flux, reads):
    """Kontext with true CFG in inference mode: nothing else tells a branch from a step."""
    pipe, call = flux
    plain = pipe(**call(steps=3, cfg=True)).images
    with torch.inference_mode():
        of_calls, trace = reads(pipe, call(steps=3, cfg=True), RandomTokens(ratio=1.0, **small))
        assert torch.equal(pipe(**call(steps=3, cfg=True)).images, plain)
    assert [record.branch for record in trace] == ["cond", "uncond"] * 3
    assert [len(seen) for seen in of_calls[2:]] == [0, 2, 0, 2]


def test_the_first_step_is_seen_to_read(flux, reads):
    """The yardstick sees what is there to see."""
    pipe, call = flux
    of_calls, _ = reads(pipe, call(steps=2), ToPi(ratio=0.5, layers=(1, 3), **small))
    assert any("__float__" in name for name in of_calls[0])


@pytest.mark.parametrize(
    ("waits", "counts"),
    [
        (lambda host, device: host.to(device.device), True),
        (lambda host, device: host.to(device.device, non_blocking=True), False),
        (lambda host, device: host.to(torch.float64), False),
        (lambda host, device: device.to(host.device), True),
        (lambda host, device: torch.arange(3, device=host.device).tolist(), False),
        (lambda host, device: torch.arange(3, device=device.device).tolist(), True),
        (lambda host, device: device[host], True),
        (lambda host, device: device[device > 1], True),
        (lambda host, device: device[device], False),
        (lambda host, device: device.__setitem__(device.clone(), 0), True),
        (lambda host, device: device.index_fill_(0, device.clone(), 0), False),
        (lambda host, device: device.sum().item(), True),
        (lambda host, device: host.sum().item(), False),
        (lambda host, device: torch.tensor([1], device=device.device), True),
    ],
)
def test_what_counts(waits, counts):
    device = torch.arange(3)
    with Reads() as mode:
        host = torch.arange(3)
        waits(host, device)
    assert bool(mode.seen) == counts


def test_what_goes_to_a_gpu_goes_from_pinned_memory():
    rows, gpu = Mock(device=torch.device("cpu")), torch.device("cuda")
    assert send(rows, gpu) is rows.pin_memory().to.return_value
    rows.pin_memory().to.assert_called_once_with(gpu, non_blocking=True)
    there = Mock(device=gpu)
    assert send(there, gpu) is there.to.return_value
    there.pin_memory.assert_not_called()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to wait for")
@pytest.mark.parametrize("kind", ["flux", "qwen"])
@every_method
def test_nothing_waits_on_a_gpu(monkeypatch, kind, method, params):
    """Where diffusers' own transformer never does, which the run without a method tells."""
    pipe, call = getattr(models, f"tiny_{kind}")(dtype=torch.bfloat16)
    pipe.to("cuda")
    arguments, forward, calls = call(steps=6, cfg=True), pipe.transformer.forward, []

    def strictly(run):
        def watched(*args, **kwargs):
            calls.append(None)
            pruned = (len(calls) - 1) // 2 in (2, 3, 5)
            torch.cuda.set_sync_debug_mode("error" if pruned else "default")
            try:
                return run(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return watched

    with monkeypatch.context() as patch:
        patch.setattr(pipe.transformer, "forward", strictly(forward))
        try:
            pipe(**arguments)
        except RuntimeError as waits:
            pytest.skip(f"diffusers' transformer itself waits: {waits}")
    calls.clear()
    monkeypatch.setattr(RootHook, "new_forward", strictly(RootHook.new_forward))
    with method(**params)(pipe) as attached:
        pipe(**arguments)
    assert sum(record.kept is not None for record in attached.trace) == 6


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
