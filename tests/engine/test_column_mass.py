"""Fused scoring against naive float64 sums: stock flash kernels, and Triton in its interpreter."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from typing import ClassVar

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

import topi
from topi import ToPi, ToPiKV
from topi.bench.speed import scoring_speed
from topi.engine import Call, ReusesKeys, WeighsText, attention
from topi.engine.column_mass import attended, fits, flash_mass, log_sum_exp, split_sum
from topi.methods.paper.topi import smallest_set
from topi.models import Layout, adapter_for

LAYOUT = Layout(n_text=7, target_grid=(10, 13), reference_grids=((9, 9), (2, 11)))


def naive_mass(query, key, layout):
    """Column sums of softmax(QK^T / sqrt d) over all keys, float64."""
    query, key = (states.double().transpose(1, 2) for states in (query, key))
    logits = query[:, :, layout.targets] @ key.mT / query.shape[-1] ** 0.5
    return logits.softmax(-1)[..., layout.references].sum(2)


def given(dtype, batch=2, heads=3, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, LAYOUT.n_text + LAYOUT.n_image, heads, width)
    return [torch.randn(shape, generator=generator).mul(1.5).to(dtype) for _ in range(3)]


class WeightedText(ToPi, WeighsText):
    def text_weight(self, call, layer):
        return 2.0


class RefKVLike(ToPi, ReusesKeys):
    """Attends to a second copy of the references, in the scored layers as well."""

    def stored(self, call, layer, key, value):
        references = call.layout.references
        return key[:, references], value[:, references]


# Triton settles at its import whether it interprets, so without a GPU these tests have a process of
# their own: `test_triton_in_its_interpreter`.
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    not (INTERPRETS or torch.cuda.is_available()) or not find_spec("triton"),
    reason="needs a CUDA device, or TRITON_INTERPRET=1 and Triton, which comes with torch for CUDA",
)


# Of the score in the given precision against float64 sums of the same inputs.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_swapped_flash_attention(dtype, monkeypatch):
    monkeypatch.setitem(attention.KERNEL, "cpu", "flash")
    query, key, value = given(dtype)
    expected = naive_mass(query, key, LAYOUT)
    received = attention.reference_attention(query, key, LAYOUT).double()
    torch.testing.assert_close(received, expected, rtol=TOLERANCE[dtype], atol=0)
    with attention.known(own := attention.OwnAttention(query, key, value)):
        again = attention.reference_attention(query, key, LAYOUT).double()
    torch.testing.assert_close(again, expected, rtol=TOLERANCE[dtype], atol=0)
    states = (t.transpose(1, 2) for t in (query, key, value))
    stock = torch.nn.functional.scaled_dot_product_attention(*states)
    assert torch.equal(own.output, stock.transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # it multiplies bits of bfloat16
@needs_triton
def test_triton(dtype, monkeypatch):
    monkeypatch.setitem(attention.KERNEL, "cpu", "triton")
    query, key, _ = given(dtype, batch=1, heads=2)
    expected = naive_mass(query, key, LAYOUT)
    received = attention.reference_attention(query, key, LAYOUT).double()
    torch.testing.assert_close(received, expected, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.skipif(INTERPRETS, reason="is that process")
@pytest.mark.skipif(not find_spec("triton"), reason="Triton comes with torch for CUDA")
def test_triton_in_its_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_triton"]
    run = subprocess.run(
        [*command, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert re.search(r"^\.\.s? *\[100%\]|2 passed", run.stdout, re.MULTILINE), run.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["chunked", "flash", "triton"])
def test_on_a_gpu_at_real_size(kernel):
    heads, width, layout = scoring_speed.REAL
    states = scoring_speed.inputs(heads, width, layout, torch.bfloat16, torch.device("cuda"))
    off = scoring_speed.compare(kernel, states, layout, scoring_speed.exact(*states, layout))
    assert off["largest_relative_error"] < 2e-2
    assert off["kept_otherwise"] <= 0.01 * off["kept"]


def test_one_column_of_low_precision_would_not_do(monkeypatch):
    """Why the log-sum-exp is split: a single bfloat16 of it costs a factor in precision."""
    query, key, _ = given(torch.bfloat16, width=64)
    expected = naive_mass(query, key, LAYOUT)
    targets, references = (t.transpose(1, 2) for t in (query, key))
    targets, references = targets[:, :, LAYOUT.targets], references[:, :, LAYOUT.references]
    rows = log_sum_exp(targets, key.transpose(1, 2), 64**-0.5)

    def worst():
        received = flash_mass(targets, references, rows, 64**-0.5).double()
        return float(((received - expected) / expected).abs().max())

    split = worst()
    monkeypatch.setattr("topi.engine.column_mass.PARTS", 1)
    assert worst() > 5 * split


FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class TestOwnAttention:
    """A scored layer's attention is run once, for its output and the rows' log-sum-exp."""

    small: ClassVar = {"front_layers": 1, "first_anchor": 1, "update_every": 3}

    def run(self, pipe, arguments, method, **attach):
        """The picture, the trace, and of each call how often flash attention ran: with values of
        its own, and with the keys as values, for a log-sum-exp alone."""
        counts = []

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                if function is FLASH and counts:
                    counts[-1][args[1] is args[2]] += 1
                return function(*args, **(kwargs or {}))

        handle = pipe.transformer.register_forward_pre_hook(lambda *_: counts.append([0, 0]))
        with Count(), method(pipe, **attach):
            images = pipe(**arguments()).images  # each with a new generator
        handle.remove()
        return images, method.trace, counts

    def both(self, pipe, arguments, method, **attach):
        """The same by the general way, and with the swapped kernel."""
        plain, before, _ = self.run(pipe, arguments, method, **attach)
        with attention.scored_by("flash"):
            images, trace, counts = self.run(pipe, arguments, method, **attach)
        assert [record.kept for record in trace] == [record.kept for record in before]
        return plain, images, counts

    @pytest.mark.parametrize("kind", ["flux", "flux2", "qwen"])
    @pytest.mark.parametrize("trim_last", [False, True])
    def test_it_is_run_once_and_yields_the_same(self, tiny, kind, trim_last):
        pipe, call = tiny(kind)
        method = ToPi(tau=1.0, layers=(1, 5), **self.small)
        plain, images, counts = self.both(
            pipe, lambda: call(steps=3, cfg=False), method, trim_last=trim_last
        )
        assert torch.equal(images, plain)
        assert counts == [[6, 0], [6, 2], [6, 0]]

    @pytest.mark.parametrize("method", [ToPi, ToPiKV])
    def test_with_fewer_tokens(self, qwen, method):
        pipe, call = qwen
        method = method(tau=0.7, layers=(1, 3), **self.small)
        plain, images, counts = self.both(pipe, lambda: call(steps=3), method)
        assert torch.equal(images, plain)
        assert counts == [[6, 0]] * 2 + [[6, 2]] * 2 + [[6, 0]] * 2

    def test_of_another_backend_it_is_left_alone(self, flux):
        pipe, call = flux
        method = ToPi(tau=1.0, layers=(1, 3), **self.small)
        with attention_backend("_native_math"):
            plain, images, counts = self.both(pipe, lambda: call(steps=3), method)
        assert torch.equal(images, plain)
        assert counts == [[0, 0], [0, 4], [0, 0]]  # rows, and columns

    def test_with_a_mask_it_is_left_alone(self, qwen):
        pipe, call = qwen
        method = ToPi(tau=1.0, layers=(1, 3), **self.small)
        plain, images, counts = self.both(pipe, lambda: call(steps=2, batch=2, padded=True), method)
        assert torch.equal(images, plain)
        assert counts == [[6, 0]] * 3 + [[6, 2]]  # the negative prompt is not padded

    @pytest.mark.parametrize("method", [WeightedText, RefKVLike], ids=["mask", "store"])
    def test_it_is_not_the_output_of_a_layer_that_attends_to_something_else(self, flux, method):
        pipe, call = flux
        method = method(tau=1.0, layers=(1, 3), **self.small)
        plain, images, _ = self.both(pipe, lambda: call(steps=3), method)
        with ToPi(tau=1.0, layers=(1, 3), **self.small)(pipe):
            assert not torch.equal(pipe(**call(steps=3)).images, plain)
        assert torch.equal(images, plain)

    def test_it_is_that_of_no_other_states(self):
        query, key, _ = given(torch.float32)
        others = given(torch.float32, seed=1)
        with attention.scored_by("flash"), attention.known(attention.OwnAttention(*others)):
            received = attention.reference_attention(query, key, LAYOUT).double()
        torch.testing.assert_close(received, naive_mass(query, key, LAYOUT), rtol=2e-5, atol=0)

    def test_its_time_is_not_that_of_scoring(self, flux, monkeypatch):
        pipe, call = flux
        spans, ran = [], []
        monkeypatch.setattr(attention, "attended", lambda *qkv: ran.append(spans[:]))
        monkeypatch.setattr(Call, "timed", lambda self, stage: spans.append(stage) or nullcontext())
        with attention.scored_by("flash"), ToPi(tau=1.0, layers=(1, 3), **self.small)(pipe):
            pipe(**call(steps=2))
        assert ran == [[], ["scoring_seconds"]]

    def test_compiled_blocks(self, flux):
        pipe, call = flux
        method = ToPi(tau=0.7, layers=(1, 3), **self.small)
        plain = self.run(pipe, lambda: call(steps=3), method)[0]
        torch._dynamo.reset()
        topi.compile(pipe, backend="eager")
        try:
            images, counts = self.both(pipe, lambda: call(steps=3), method)[1:]
        finally:
            for block in adapter_for(pipe).blocks:
                vars(block).pop("forward", None)
        torch.testing.assert_close(images, plain, rtol=0, atol=1e-6)
        assert counts[1][1] == 2


NATIVE = AttentionBackendName.NATIVE


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"backend": None, "dropout_p": 0.0, "is_causal": False, "parallel_config": None}, True),
        ({"backend": NATIVE}, True),
        ({"backend": "native"}, True),
        ({"backend": AttentionBackendName.FLASH}, False),
        ({"is_causal": True}, False),
        ({"dropout_p": 0.1}, False),
        ({"scale": 0.5}, False),
        ({"parallel_config": object()}, False),
        ({"attention_kwargs": {"window": 3}}, False),
    ],
)
def test_what_is_stock_attention(options, expected):
    states = given(torch.float32)
    assert attention.is_stock(*states, options) == expected
    with attention_backend("_native_math"):
        assert attention.is_stock(*states, options) == (expected and bool(options.get("backend")))
    states[2].requires_grad_()
    assert not attention.is_stock(*states, options)
    with torch.no_grad():
        assert attention.is_stock(*states, options) == expected


@pytest.mark.parametrize(
    ("backend", "told"),
    [("FLASH_ATTENTION", True), ("CUDNN_ATTENTION", True), ("EFFICIENT_ATTENTION", False)],
)
def test_the_kernels_of_cuda_by_their_shapes(backend, told, monkeypatch):
    """There is no GPU to run them on, but torch knows what they take and yield."""
    choice = getattr(SDPBackend, backend).value
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *qkv: choice)
    with FakeTensorMode():
        states = torch.empty(3, 2, 3, 16, 64, device="cuda", dtype=torch.bfloat16)
        both = attended(*states)
        rows = log_sum_exp(states[0], states[1], 0.1)
    assert (both is not None) == told
    if told:
        assert [t.shape for t in both] == [(2, 3, 16, 64), (2, 3, 16)]
        assert both[1].dtype == torch.float32
    assert rows.shape == (2, 3, 16)


@pytest.mark.parametrize(("width", "usable"), [(128, True), (132, False)])
def test_heads_that_no_kernel_of_cuda_takes_go_the_general_way(width, usable, monkeypatch):
    asked = []
    check = monkeypatch.setattr
    check(torch.backends.cuda, "SDPAParams", lambda query, *rest: query)
    check(torch.backends.cuda, "can_use_flash_attention", lambda q: asked.append(q.shape) or True)
    with FakeTensorMode():
        assert fits(torch.empty(1, 9, 3, width, device="cuda", dtype=torch.bfloat16)) == usable
    assert asked == [(1, 1, 1, 136)] * usable
    query, key, _ = given(torch.float32)
    expected = attention.reference_attention(query, key, LAYOUT)
    check(attention, "fits", lambda query: False)
    with attention.scored_by("flash"):
        assert torch.equal(attention.reference_attention(query, key, LAYOUT), expected)


def test_parts_add_up():
    values = torch.tensor([100.123456789, -3.3333333, 0.0])
    parts = split_sum(values, 3, torch.bfloat16)
    assert parts.dtype == torch.bfloat16 and parts.shape == (3, 3)
    torch.testing.assert_close(parts.double().sum(-1), values.double(), rtol=1e-6, atol=0)


def test_a_mask_is_left_to_the_general_way(monkeypatch):
    query, key, _ = given(torch.float32)
    mask = torch.ones(2, 1, 1, query.shape[1], dtype=torch.bool)
    mask[1, ..., 3:7] = False
    expected = attention.reference_attention(query, key, LAYOUT, mask)
    monkeypatch.setitem(attention.KERNEL, "cpu", "flash")
    assert torch.equal(attention.reference_attention(query, key, LAYOUT, mask), expected)


@pytest.mark.parametrize("kernel", ["chunked", "flash"])
def test_half_precision_changes_next_to_nothing_of_the_choice(kernel):
    """On peaked attention in bfloat16: scores within 1 %, and at most 1 % of the tokens kept."""
    heads, width, layout = scoring_speed.SCALED_DOWN
    states = scoring_speed.inputs(heads, width, layout, torch.bfloat16, torch.device("cpu"))
    truth = scoring_speed.exact(*states, layout)
    off = scoring_speed.compare(kernel, states, layout, truth)
    assert off["largest_relative_error"] < 1e-2
    assert off["kept"] == int(smallest_set(truth, 0.85).sum()) < layout.n_reference
    assert off["kept_otherwise"] <= 0.01 * off["kept"]


def test_the_command_ranks_the_kernels(capsys):
    scoring_speed.main(["--repeats", "1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"chunked", "flash"} <= {line["kernel"] for line in lines}
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert attention.KERNEL == {"cpu": "chunked", "cuda": "flash"}
