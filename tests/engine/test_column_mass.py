"""Fused scoring against naive float64 sums: stock flash kernels, and Triton in its interpreter."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

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
    query, key, _ = given(dtype)
    expected = naive_mass(query, key, LAYOUT)
    received = attention.reference_attention(query, key, LAYOUT).double()
    torch.testing.assert_close(received, expected, rtol=TOLERANCE[dtype], atol=0)


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
