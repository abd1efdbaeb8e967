"""Reference-KV caching against models whose attention is rewritten by hand."""

from itertools import pairwise

import pytest
import torch

from topi import RefKV
from topi.errors import ToPiError
from topi.models import Layout, ModelFacts, adapter_for

KINDS = ["flux", "flux2", "qwen", "qwen_plus"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_step_is_a_full_one_with_the_keys_and_values_of_the_anchor(tiny, kind, by_hand):
    attention, inputs_of, targets = by_hand
    adapter, (first, second) = inputs_of(tiny, kind)
    references = adapter.layout(first).references
    old = {}

    def note(layer, query, key, value, mask):
        old[layer] = key[:, references].clone(), value[:, references].clone()
        return key, value, mask

    def replaced(layer, query, key, value, mask):
        key[:, references], value[:, references] = old[layer]
        return key, value, mask

    with attention(adapter, note):
        targets(adapter, first)
    with attention(adapter, replaced):
        expected = targets(adapter, second)
    with RefKV()(adapter.transformer) as method:
        full = targets(adapter, first)
        cached = targets(adapter, second)
    assert [record.anchor for record in method.trace] == [True, False]
    assert torch.equal(full, targets(adapter, first))
    assert torch.allclose(cached, expected, atol=1e-6)
    assert not torch.allclose(cached, targets(adapter, second), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_reuse_at_the_same_time_is_exact(tiny, kind, by_hand):
    _, inputs_of, targets = by_hand
    adapter, (first, _) = inputs_of(tiny, kind)
    again = first | {"hidden_states": first["hidden_states"].clone()}
    with RefKV()(adapter.transformer) as method:
        full, cached = targets(adapter, first), targets(adapter, again)
    assert [bool(record.stored) for record in method.trace] == [False, True]
    assert torch.allclose(cached, full, atol=1e-6)


@pytest.mark.parametrize("kind", ["flux", "qwen_plus"])
def test_causal_is_a_mask_and_references_at_timestep_zero(tiny, kind, by_hand):
    """zero_cond_t checkpoints modulate references so at any time; FLUX does at time zero."""
    attention, inputs_of, targets = by_hand
    flux = kind == "flux"
    adapter, (first, second) = inputs_of(tiny, kind, **({} if flux else {"zero_cond_t": True}))
    if flux:
        first, second = (each | {"timestep": torch.zeros(1)} for each in (first, second))
    layout = adapter.layout(first)

    def masked(layer, query, key, value, mask):
        allowed = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool)
        allowed[layout.references, : layout.references.start] = False
        return key, value, allowed

    with attention(adapter, masked):
        expected = [targets(adapter, each) for each in (first, second)]
    with RefKV(causal=True, update_every=0)(adapter.transformer) as method:
        found = [targets(adapter, each) for each in (first, second)]
    assert [record.alone for record in method.trace] == [True, False]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_first_layer_of_a_zero_cond_t_model_never_changes(tiny, by_hand):
    """Its references' states are those of time zero before the first attention."""
    _, inputs_of, targets = by_hand
    adapter, (first, second) = inputs_of(tiny, "qwen_plus", zero_cond_t=True)
    seen = []

    class Noting(RefKV):
        def attend(self, call, layer, query, key, value, mask):
            if layer < 2:
                seen.append((layer, key[:, call.layout.references].clone()))

    with Noting(update_every=1)(adapter.transformer):
        for each in (first, second):
            targets(adapter, each)
    (_, one), (_, deeper), (_, two), (_, later) = seen
    assert torch.equal(one, two)
    assert not torch.equal(deeper, later)


def test_each_branch_has_its_store_and_the_trace_counts_it(qwen):
    pipe, call = qwen
    layers, width = 6, 64
    pair = 2 * 64 * width * 4  # key and value of 64 tokens in fp32
    with RefKV(update_every=2)(pipe) as method:
        pipe(**call(steps=3))
    sizes = [(record.branch, record.store_bytes) for record in method.trace]
    one = layers * pair
    assert sizes == [("cond", one), ("uncond", 2 * one)] + [
        (branch, 2 * one) for branch in ("cond", "uncond") * 2
    ]
    with RefKV(update_every=2, front_layers=4)(pipe) as method:
        pipe(**call(steps=3))
    assert method.trace[-1].store_bytes == 2 * 2 * pair
    assert method.trace[2].stored == {4: 64, 5: 64}
    assert (method.trace[2].n_image, method.trace[2].front_layers) == (64, 4)
    assert method.trace[2].keep_ratio == 1


def test_a_branch_that_comes_late_extracts_when_it_comes(qwen):
    """Guidance may begin in the middle of a run."""
    pipe, _ = qwen
    adapter = adapter_for(pipe)
    inputs = adapter.inputs(Layout(3, (8, 8), ((8, 8),)), 1, torch.device("cpu"))
    with RefKV()(pipe.transformer) as method, torch.no_grad():
        for step, branches in enumerate((["cond"], ["cond", "uncond"], ["cond", "uncond"])):
            given = inputs | {"timestep": torch.full((1,), 1 - step / 4)}
            for branch in branches:
                with pipe.transformer.cache_context(branch):
                    pipe.transformer(**given)
    seen = [(record.step, record.branch, record.anchor) for record in method.trace]
    assert seen == [
        (0, "cond", True),
        (1, "cond", False),
        (1, "uncond", True),
        (2, "cond", False),
        (2, "uncond", False),
    ]


@pytest.mark.parametrize("first_anchor", [0, 1])
def test_an_anchor_comes_with_the_drift(flux, first_anchor):
    """Of the target's keys in the middle layer, since the latest anchor."""
    pipe, call = flux
    keys = {}

    class Noting(RefKV):
        def attend(self, call, layer, query, key, value, mask):
            super().attend(call, layer, query, key, value, mask)
            if layer == 3:
                keys[call.step] = key[:, call.layout.targets].clone()

    with Noting(drift=0.15, first_anchor=first_anchor)(pipe) as method:
        pipe(**call(steps=12))
    anchors = [first_anchor]
    for step in range(first_anchor + 1, 11):
        since = keys[anchors[-1]]
        if step > anchors[-1] and (keys[step] - since).abs().mean() / since.abs().mean() > 0.15:
            anchors.append(step + 1)
    assert [record.step for record in method.trace if record.anchor] == anchors
    assert len(anchors) > 2 and all(b - a > 1 for a, b in pairwise(anchors))
    assert (
        not method._drift.anchored and not method._drift.due
    )  # freed, and the next picture begins anew
    with RefKV(drift=9.0, first_anchor=first_anchor)(pipe) as method:
        pipe(**call(steps=12))
    assert [record.step for record in method.trace if record.anchor] == [first_anchor]


def test_the_drift_is_looked_at_in_representative_layers():
    facts = [ModelFacts("Flux", (2, 4), (("attention",),) * 6, layers) for layers in (None, (1, 4))]
    method = RefKV(drift=0.1)
    for each, layers in zip(facts, ({3}, {1, 4}), strict=True):
        method.prepare(each)
        assert method._watched == layers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drift": -1}, "drift=-1 must be a number of at least 0"),
        ({"drift": 0.1, "causal": True}, "leave drift out"),
        ({"update_every": -1}, "update_every=-1"),
        ({"first_anchor": 0.5}, "first_anchor=0.5"),
        ({"front_layers": 6}, "front_layers=6 leaves none of the 6 layers"),
    ],
)
def test_bad_values(flux, options, words):
    with pytest.raises(ToPiError, match=words), RefKV(**options)(flux[0]):
        pass
