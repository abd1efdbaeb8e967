"""ToPi-KV against attention rewritten by hand, and what each of its options does to the trace."""

from itertools import pairwise

import pytest
import torch

from topi import RefKV, ToPi, ToPiKV
from topi.engine import Call, CallRecord
from topi.errors import ToPiError
from topi.methods.ours.topi_kv import coarse_grid
from topi.models import Layout

half = {"layers": (1, 3), "ratio": 0.5}
scored = half | {"selection": "top"}
PAIR = 2 * 64 * 64 * 4  # bytes of key and value of 64 tokens


def run(method, pipe, arguments):
    with method(pipe):
        return pipe(**arguments).images


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_a_step_after_the_anchor_sees_the_kept_tokens_as_they_were(tiny, kind, by_hand):
    attention, inputs_of, targets = by_hand
    adapter, (first, second) = inputs_of(tiny, kind)
    layout = adapter.layout(first)
    with ToPi(first_anchor=0, front_layers=1, **half)(adapter.transformer) as topi:
        targets(adapter, first), targets(adapter, second)
    with ToPiKV(**scored)(adapter.transformer) as method:
        targets(adapter, first)
        found = targets(adapter, second)
    assert method.trace[1].kept == topi.trace[1].kept
    dropped = torch.ones(64, dtype=torch.bool)
    dropped[list(topi.trace[1].kept)] = False
    old = {}

    def note(layer, query, key, value, mask):
        old[layer] = key[:, layout.references].clone(), value[:, layout.references].clone()
        return key, value, mask

    def replaced(layer, query, key, value, mask):
        key[:, layout.references], value[:, layout.references] = old[layer]
        allowed = torch.ones(1, 1, 1, key.shape[1], dtype=torch.bool)
        allowed[..., layout.references] = ~dropped
        return key, value, allowed

    with attention(adapter, note):
        targets(adapter, first)
    with attention(adapter, replaced):
        assert torch.allclose(found, targets(adapter, second), atol=1e-5)


@pytest.mark.parametrize("kind", ["flux", "qwen_plus"])
def test_if_all_are_kept_it_is_reference_kv_caching(tiny, kind):
    pipe, call = tiny(kind)
    schedule = {"update_every": 3, "first_anchor": 1, "front_layers": 2}
    one = run(ToPiKV(layers=(1, 3), tau=1.0, **schedule), pipe, call(steps=6))
    assert torch.equal(one, run(RefKV(**schedule), pipe, call(steps=6)))


def test_the_others_leave_the_store(qwen):
    pipe, call = qwen
    method = ToPiKV(**scored)
    run(method, pipe, call(steps=3))
    whole = 6 * PAIR
    sizes = [record.store_bytes for record in method.trace]
    assert sizes == [whole, 2 * whole, 1.5 * whole, whole, whole, whole]
    method = ToPiKV(**half)
    run(method, pipe, call(steps=3))
    assert {record.store_bytes for record in method.trace[1:]} == {2 * whole}
    assert method.trace[2].kept != method.trace[4].kept
    assert method.trace[2].stored == dict.fromkeys(range(6), 32)


def test_without_a_cover_or_live_tokens_nobody_looks_who_is_near_whom(flux, monkeypatch):
    monkeypatch.setattr("topi.methods.ours.topi_cover.neighbourhood", None)
    pipe, call = flux
    run(ToPiKV(**scored), pipe, call(steps=2))


def test_each_layer_its_own_tokens(flux):
    pipe, call = flux
    method = ToPiKV(layers=(1, 3), tau=0.6, selection="top", per_layer=True, front_layers=1)
    run(method, pipe, call(steps=2))
    stored = method.trace[1].stored
    assert set(stored) == set(range(1, 6))
    assert len(set(stored.values())) > 1
    assert max(stored.values()) < len(method.trace[1].kept) < 64


def test_a_coarse_grid_stays(qwen_plus):
    assert coarse_grid((5, 7), 3).tolist() == [8, 11, 29, 32]
    assert coarse_grid((1, 2), 4).tolist() == [1]
    pipe, call = qwen_plus
    method = ToPiKV(layers=(1, 3), ratio=0.1, coarse=4)
    run(method, pipe, call(steps=2))
    grid = {*coarse_grid((8, 8), 4).tolist(), *(64 + coarse_grid((6, 10), 4)).tolist()}
    kept = set(method.trace[2].kept)
    assert grid <= kept
    assert len(kept) <= len(grid) + 12


def test_an_anchor_comes_with_the_drift(flux):
    pipe, call = flux
    for drift, expected in ((0.0, [0, 2, 4]), (9.0, [0])):
        method = ToPiKV(drift=drift, **scored)
        run(method, pipe, call(steps=6))
        assert [record.step for record in method.trace if record.anchor] == expected


def test_drift_is_that_of_the_target_since_the_latest_anchor_in_the_scored_layers(flux):
    """Of all layers the first one's keys drift least."""
    pipe, call = flux
    keys = {}

    class Noting(ToPiKV):
        def attend(self, call, layer, query, key, value, mask):
            super().attend(call, layer, query, key, value, mask)
            if layer == 0:
                keys[call.step] = key[:, call.layout.targets].clone()

    method = Noting(drift=0.155, first_anchor=1, layers=(0,), ratio=0.5)
    run(method, pipe, call(steps=12))
    anchors = [1]
    for step in range(2, 11):
        since = keys[anchors[-1]]
        if step > anchors[-1] and (keys[step] - since).abs().mean() / since.abs().mean() > 0.155:
            anchors.append(step + 1)
    assert [record.step for record in method.trace if record.anchor] == anchors
    assert len(anchors) > 2 and all(b - a > 2 for a, b in pairwise(anchors))
    assert (
        not method._drift.anchored and not method._drift.due
    )  # freed, and the next picture begins anew


def test_extrapolation_by_hand():
    """1 at time 0.9 and 3 at 0.7 make 4 at 0.6."""
    method, layout = ToPiKV(extrapolate=True), Layout(1, (1, 2), ((1, 2),))
    for store, value in ((method._before, 1.0), (method._store, 3.0)):
        store.put("cond", 0, *torch.full((2, 1, 2, 1, 1), value))
    kept = torch.tensor([1])
    method._times["cond"], method._seen["cond"] = [0.9, 0.7], (kept, {0: kept})
    record = CallRecord(2, "cond", layout, 1, kept=(1,))
    call = Call(2, "cond", layout, 1, torch.device("cpu"), record, timestep=0.6)
    key, value = method.stored(call, 0, None, None)
    assert key.shape == (1, 1, 1, 1)
    assert float(key) == float(value) == pytest.approx(4)


def test_extrapolation_is_over_the_times_of_the_full_steps(qwen):
    pipe, call = qwen
    times, known = {}, {}

    class Noting(ToPiKV):
        def end(self, call):
            super().end(call)
            times[call.step] = call.timestep
            known[call.step, call.branch] = list(self._times[call.branch])

    method = Noting(extrapolate=True, first_anchor=1, update_every=2, **scored)
    run(method, pipe, call(steps=5))
    for branch in ("cond", "uncond"):
        assert known[4, branch] == [times[step] for step in (0, 1, 3)]
    assert len({*times.values()}) == 5
    assert method.store_bytes == 0 and not method._times  # freed


def test_extrapolation_starts_from_the_steps_before_the_first_anchor(flux):
    pipe, call = flux
    images = [
        run(ToPiKV(extrapolate=on, first_anchor=1, **scored), pipe, call(steps=4))
        for on in (True, False)
    ]
    assert not torch.equal(*images)


class TestLive:
    @pytest.mark.parametrize("kind", ["flux", "qwen"])
    def test_if_all_are_live_it_is_the_full_run(self, tiny, kind):
        pipe, call = tiny(kind)
        method = ToPiKV(live=1.0, **scored)
        assert torch.allclose(run(method, pipe, call()), pipe(**call()).images, atol=1e-5)
        assert method.trace[-1].computed == 128
        assert sum(method.trace[-1].stored.values()) == 0

    def test_all_take_their_turn_and_renew_the_store(self, qwen):
        pipe, call = qwen
        turns = []

        class Noting(ToPiKV):
            def live_tokens(self, call):
                live = super().live_tokens(call)
                if live is not None:
                    turns.append((call.step, call.branch, frozenset(live.tolist())))
                return live

        method = Noting(layers=(1, 3), tau=1.0, live=0.25)
        run(method, pipe, call(steps=6))
        of_step = {step: {tokens for s, _, tokens in turns if s == step} for step in range(1, 6)}
        assert all(len(tokens) == 1 for tokens in of_step.values())
        assert len(set.union(*(set(*tokens) for tokens in of_step.values()))) > 48
        record = method.trace[-1]
        assert record.computed == 64 + 16
        assert set(record.stored.values()) == {48}
        assert record.keep_ratio == 1

    def test_renewed_pairs_are_those_of_the_step(self, flux):
        pipe, call = flux
        after = {}

        class Noting(ToPiKV):
            def end(self, call):
                super().end(call)
                pairs = self._store.pairs[call.branch]
                after[call.step] = {layer: key.clone() for layer, (key, _) in pairs.items()}

        run(Noting(layers=(1, 3), tau=1.0, live=0.25), pipe, call(steps=2))
        changed = (after[0][3] != after[1][3]).any(-1).any(-1)[0]
        assert changed.sum() == 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "all"}, "cover, top"),
        ({"coarse": -1}, "coarse=-1"),
        ({"drift": -0.1}, "drift=-0.1"),
        ({"live": 1.5}, "live=1.5"),
        ({"live": 0.1, "extrapolate": True}, "leave extrapolate off"),
        ({"per_layer": True}, "one mask for all"),
        ({"tau": 2.0}, "tau=2.0"),
    ],
)
def test_bad_values(options, words):
    with pytest.raises(ToPiError, match=words):
        ToPiKV(**options)
