"""Fused scoring against naive float64 sums: stock flash kernels, and Triton in its interpreter."""

import importlib
import json
import sys

import pytest
import torch

from topi.engine import attention
from topi.engine.column_mass import flash_mass, split_sum
from topi.evaluation import scoring_speed
from topi.methods.topi import smallest_set
from topi.models import Layout

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


@pytest.fixture
def triton_kernels(monkeypatch):
    """The kernels as Triton's interpreter runs them, on a CPU; compiled where there is a GPU.

    Triton settles that at its import, its own library included, so it is imported once more.
    """
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA")
    if torch.cuda.is_available():
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in list(sys.modules):
        python = name == "triton" or name.startswith("triton.")
        if (python and not name.startswith("triton._C")) or name == "topi.engine.triton_kernels":
            monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    importlib.import_module("topi.engine.triton_kernels")
    for name in set(sys.modules) - before:  # to be forgotten again
        monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))


# Of the score in the given precision against float64 sums of the same inputs.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_swapped_flash_attention(dtype, monkeypatch):
    monkeypatch.setitem(attention.KERNEL, "cpu", "flash")
    query, key, _ = given(dtype)
    expected = naive_mass(query, key, LAYOUT)
    received = attention.reference_attention(query, key, LAYOUT).double()
    torch.testing.assert_close(received, expected, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # it multiplies bits of bfloat16
@pytest.mark.usefixtures("triton_kernels")
def test_triton(dtype, monkeypatch):
    monkeypatch.setitem(attention.KERNEL, "cpu", "triton")
    query, key, _ = given(dtype, batch=1, heads=2)
    expected = naive_mass(query, key, LAYOUT)
    received = attention.reference_attention(query, key, LAYOUT).double()
    torch.testing.assert_close(received, expected, rtol=TOLERANCE[dtype], atol=0)


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
    states = [t.transpose(1, 2) for t in (query[:, LAYOUT.targets], key, key[:, LAYOUT.references])]

    def worst():
        received = flash_mass(*states, 64**-0.5).double()
        return float(((received - expected) / expected).abs().max())

    split = worst()
    monkeypatch.setattr("topi.engine.column_mass.PARTS", 1)
    assert worst() > 5 * split


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
    assert attention.KERNEL == {"cpu": "chunked", "cuda": "chunked"}
