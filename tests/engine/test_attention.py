"""Attention statistics against naive float64 maps, and how much memory they take."""

import pytest
import torch

from topi.engine import attention as module
from topi.engine.attention import (
    context_sensitivity,
    image_attention,
    output_change,
    reference_attention,
    weigh_text,
)
from topi.methods.paper.topi import influence
from topi.models import Layout

pytestmark = pytest.mark.slow

LAYOUT = Layout(n_text=7, target_grid=(15, 20), reference_grids=((9, 9), (4, 11)))
REAL_SIZE = Layout(n_text=512, target_grid=(64, 64), reference_grids=((64, 64),))
MIB = 2**20


def random_qkv(layout, batch=2, heads=3, width=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, layout.n_text + layout.n_image, heads, width)
    return [torch.randn(shape, generator=generator).mul(1.5).to(dtype) for _ in range(3)]


def naive_map(query, key, layout, mask=None):
    """Target rows of softmax(QK^T / sqrt d) over all keys: [B, H, |G|, S] float64."""
    query, key = (states.double().transpose(1, 2) for states in (query, key))
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        logits = (
            logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        )
    return logits.softmax(-1)[:, :, layout.targets]


def masks(layout):
    n = layout.n_text + layout.n_image
    keys = torch.ones(2, 1, 1, n, dtype=torch.bool)
    keys[1, ..., 3:7] = False
    bias = torch.randn(3, n, n, generator=torch.Generator().manual_seed(1))
    return {"none": None, "padded text": keys, "bias per head and row": bias, "bias": bias[0, :1]}


@pytest.mark.parametrize("which", ["none", "padded text", "bias per head and row", "bias"])
@pytest.mark.parametrize("piece", [1, 2**20])
def test_sums_equal_a_naive_softmax_over_all_keys(which, piece, monkeypatch):
    monkeypatch.setitem(module.PIECE, "cpu", piece)  # 1: one head at a time
    query, key, value = random_qkv(LAYOUT)
    mask = masks(LAYOUT)[which]
    weights = naive_map(query, key, LAYOUT, mask)
    columns = weights[..., LAYOUT.references]
    received = reference_attention(query, key, LAYOUT, mask)
    assert received.shape == (2, 3, LAYOUT.n_reference)
    torch.testing.assert_close(received.double(), columns.sum(2), rtol=1e-5, atol=0)

    values = value.double().transpose(1, 2)
    distance = torch.cdist(
        weights @ values,
        values[:, :, LAYOUT.references],
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    expected = (columns / (1 - columns) * distance).sum(2)
    change = output_change(query, key, value, LAYOUT, mask)
    torch.testing.assert_close(change.double(), expected, rtol=1e-5, atol=0)

    share = columns.sum((-1, -2)).mean(1) / LAYOUT.n_target
    torch.testing.assert_close(context_sensitivity(received, LAYOUT).double(), share)


def test_output_change_is_what_leaving_a_key_out_does():
    layout = Layout(2, (3, 3), ((2, 2),))
    query, key, value = random_qkv(layout, batch=1, heads=1)
    values = value.double().transpose(1, 2)
    outputs = naive_map(query, key, layout) @ values
    for j in range(layout.n_reference):
        mask = torch.ones(1, 1, 1, 15, dtype=torch.bool)
        mask[..., layout.references.start + j] = False
        moved = (naive_map(query, key, layout, mask) @ values - outputs).norm(dim=-1).sum()
        change = output_change(query, key, value, layout)[0, 0, j]
        torch.testing.assert_close(change.double(), moved, rtol=1e-5, atol=0)


def test_half_precision_inputs_are_scored_in_single():
    query, key, _ = random_qkv(LAYOUT, dtype=torch.bfloat16)
    expected = naive_map(query, key, LAYOUT)[..., LAYOUT.references].sum(2)
    received = reference_attention(query, key, LAYOUT)
    torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=0)


def peak_bytes(function):
    """The most CPU memory held at once by what `function` allocates, from its events."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_peak_bytes_counts_temporaries():
    states = torch.ones(1024, 1024)
    assert peak_bytes(lambda: (states + 1).sum()) in range(4 * MIB, 5 * MIB)
    assert peak_bytes(lambda: [states + 1, (states + 1).sum()]) in range(8 * MIB, 9 * MIB)


def test_peak_bytes_sees_the_map_of_a_single_head():
    """|G| x S in fp32: the yardstick of the test below."""
    query, key, _ = random_qkv(REAL_SIZE, batch=1, heads=1, width=128)
    with torch.no_grad():
        assert peak_bytes(lambda: naive_map(query, key, REAL_SIZE)) > 4096 * 8704 * 4


@pytest.mark.parametrize(
    ("kernel", "dtype", "piece"),
    [
        ("chunked", torch.float32, module.PIECE["cpu"]),
        ("chunked", torch.bfloat16, module.PIECE_ON_DEVICE),
        ("flash", torch.bfloat16, module.PIECE_ON_DEVICE),  # which holds padded copies
    ],
)
def test_scoring_at_real_size_takes_less_than_128_mib(kernel, dtype, piece, monkeypatch):
    monkeypatch.setitem(module.PIECE, "cpu", piece)
    monkeypatch.setitem(module.KERNEL, "cpu", kernel)
    query, key, value = random_qkv(REAL_SIZE, batch=1, heads=24, width=128, dtype=dtype)
    # oneDNN aside: for CPUs with AMX its flash kernel packs keys and values anew, no device does
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        peak = peak_bytes(lambda: influence(query, key, value, REAL_SIZE, None))
    assert peak < 128 * MIB


def test_image_attention_is_that_of_target_rows_over_all_keys():
    query, key, _ = random_qkv(LAYOUT)
    expected = naive_map(query, key, LAYOUT)[..., LAYOUT.n_text :].sum(2)
    found = image_attention(query, key, LAYOUT)
    assert found.shape == (2, 3, LAYOUT.n_image)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("which", ["none", "padded text", "bias"])
def test_a_text_weight_of_two_is_a_second_copy_of_the_text_keys(which):
    query, key, value = random_qkv(LAYOUT)
    mask, n = masks(LAYOUT)[which], LAYOUT.n_text
    attend = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (states.transpose(1, 2) for states in (query, key, value))
    twice = [torch.cat([states[:, :, :n], states], 2) for states in (k, v)]
    if mask is not None:
        mask = torch.cat([mask[..., :n], mask], -1)
    expected = attend(q, *twice, attn_mask=mask)
    weighed = weigh_text(query, key, masks(LAYOUT)[which], 2.0, n)
    torch.testing.assert_close(attend(q, k, v, attn_mask=weighed), expected)
