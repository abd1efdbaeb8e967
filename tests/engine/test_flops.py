"""Counted FLOPs: the real models' sizes, exact agreement with a real run, ideal speed-ups."""

from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from topi.engine import CallRecord
from topi.engine.flops import FlopCount, FlopCounter, count_trace
from topi.methods import make_cache, make_method
from topi.methods.rivals.toma import layer_plan
from topi.models import Layout, adapter_for

TERA = 1e12
LAYOUT = Layout(512, (64, 64), ((64, 64),))  # 1024 x 1024 pixels, one reference
FULL = CallRecord(0, "cond", LAYOUT, 1)
HALF = replace(FULL, front_layers=10, kept=tuple(range(0, 4096, 2)))
CACHED = replace(FULL, kept=tuple(range(4096)), computed=4096)
CACHED = replace(CACHED, stored=dict.fromkeys(range(57), 4096))


@pytest.fixture(scope="module")
def kontext():
    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


@pytest.fixture(scope="module")
def counter(kontext):
    return FlopCounter(kontext)


def test_flux_kontext(counter):
    assert counter.call(FULL) / TERA == pytest.approx(165.46, abs=0.005)
    assert counter.call(HALF) / TERA == pytest.approx(125.49, abs=0.005)
    run = counter.run([FULL] + [HALF] * 9)
    assert run.full == 10 * counter.call(FULL)
    assert run.speedup == pytest.approx(1.278, abs=5e-4)


def test_qwen_image_edit():
    with torch.device("meta"):
        counter = FlopCounter(QwenImageTransformer2DModel())
    assert counter.call(FULL) / TERA == pytest.approx(174.17, abs=0.005)
    assert counter.run([FULL] + [HALF] * 9).speedup == pytest.approx(1.282, abs=5e-4)


@pytest.mark.parametrize(("merged", "expected"), [(6144, 1.27), (4096, 1.65), (2048, 2.22)])
def test_toma_plan(counter, kontext, merged, expected):
    """Within 3 %: the source of the expected values leaves the output projection full."""
    plan = layer_plan(adapter_for(kontext).facts)
    lengths = {layer: (each[1], merged) for layer, each in enumerate(plan) if each}
    dense = counter.run([replace(FULL, merged=lengths)]).speedup
    assert dense == pytest.approx(expected, rel=0.03)
    released = counter.run([replace(FULL, merged=lengths), FULL, FULL]).speedup
    assert released == pytest.approx({6144: 1.08, 4096: 1.15, 2048: 1.22}[merged], rel=0.015)


def test_attention_only_merge_of_single_blocks_by_hand(counter):
    """QKV and the attention core run on merged tokens, MLP and output projection on all."""
    d, n, m = 3072, 8704, 512 + 4096
    saved = counter.call(FULL) - counter.call(replace(FULL, merged={30: ("attention", 4096)}))
    assert saved == 6 * (n - m) * d**2 + 4 * (n**2 - m**2) * d
    saved = counter.call(FULL) - counter.call(replace(FULL, merged={30: ("block", 4096)}))
    assert saved == 24 * (n - m) * d**2 + 4 * (n**2 - m**2) * d


def embeddings_and_output(d=3072, text=512, image=8192, target=4096):
    """What runs outside the blocks of FLUX when all of them are skipped, in FLOPs."""
    tokens = 2 * image * 64 * d + 2 * text * 4096 * d + 2 * target * d * 64
    conditions = 2 * (2 * 256 * d + 2 * d * d) + 2 * 768 * d + 2 * d * d
    return tokens + conditions + 2 * d * 2 * d


def test_skipped_calls_by_hand(counter):
    """All blocks skipped, and all behind the first, a dual-stream one with two modulations."""
    d, n = 3072, 8704
    none = counter.call(replace(FULL, skipped_from=0))
    first = counter.call(replace(FULL, skipped_from=1))
    assert none == embeddings_and_output()
    assert first - none == 24 * n * d**2 + 4 * n**2 * d + 2 * (2 * d * 6 * d)
    run = counter.run([FULL, replace(FULL, skipped_from=0), HALF])
    assert run.full == 3 * counter.call(FULL)
    assert run.method == counter.call(FULL) + none + counter.call(HALF)


def test_a_skip_behind_the_gather_counts_the_kept_tokens(counter):
    d, m = 3072, 4608 + 2048
    short, long = (counter.call(replace(HALF, skipped_from=layer)) for layer in (10, 11))
    assert short == counter.call(replace(FULL, skipped_from=10))
    assert long - short == 24 * m * d**2 + 4 * m**2 * d + 2 * (2 * d * 6 * d)


def test_stored_references_by_hand(counter):
    """Per layer 24 n d^2 of linear layers and 4 n s d of attention, n queries to s keys."""
    d, n, s = 3072, 512 + 4096, 512 + 8192
    blocks = 57 * (24 * (s - n) * d**2 + 4 * (s * s - n * s) * d)
    ends = 2 * 4096 * 64 * d  # the output layer on references; their embedding is computed
    assert counter.call(FULL) - counter.call(CACHED) == blocks + ends
    half = replace(CACHED, stored=dict.fromkeys(range(57), 2048))
    assert counter.call(CACHED) - counter.call(half) == 57 * 4 * n * 2048 * d


def test_references_alone_by_hand(counter):
    """Another pass of text and references, in which only references are keys."""
    d, n, c = 3072, 512 + 4096, 4096
    alone = counter.call(replace(CACHED, alone=True)) - counter.call(CACHED)
    ends = embeddings_and_output()
    modulation = 19 * 2 * (2 * d * 6 * d) + 38 * (2 * d * 3 * d)
    assert alone == ends + modulation + 57 * (24 * n * d**2 + 4 * n * c * d)


def test_reference_kv_schedules(counter):
    """28 steps on FLUX.1 Kontext, refreshed every 10 and never; then with half of the store."""
    half = replace(CACHED, stored=dict.fromkeys(range(57), 2048))
    assert counter.run([FULL] * 3 + [CACHED] * 25).speedup == pytest.approx(1.72, abs=0.005)
    assert counter.run([FULL] + [CACHED] * 27).speedup == pytest.approx(1.83, abs=0.005)
    assert counter.run([FULL] * 3 + [half] * 25).speedup == pytest.approx(1.84, abs=0.005)


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "qwen_plus"])
def test_replay_counts_skipped_and_pruned_calls(tiny, kind):
    pipe, arguments = tiny(kind, zero_cond_t=True) if kind == "qwen_plus" else tiny(kind)
    method = make_method("random", front_layers=2, update_every=2, first_anchor=1)
    method = method + make_cache("taylorseer", interval=3, warmup=2)
    with method(pipe), FlopCounterMode(display=False) as counter:
        pipe(**arguments(steps=6, cfg=True))
    real = counter.get_flop_counts()[type(pipe.transformer).__name__]
    count = count_trace(pipe.transformer, method.trace)
    assert {record.skipped for record in method.trace} == {True, False}
    assert any(record.kept for record in method.trace)
    assert count.method == sum(real.values()) < count.full


@pytest.mark.parametrize("kind", ["flux", "qwen", "qwen_plus"])
def test_replay_counts_what_the_real_run_computes(tiny, kind):
    pipe, arguments = tiny(kind, zero_cond_t=True) if kind == "qwen_plus" else tiny(kind)
    method = make_method("random", ratio=0.3, front_layers=2, update_every=2, first_anchor=1)
    with method(pipe), FlopCounterMode(display=False) as counter:
        pipe(**arguments(steps=4, cfg=True, size=(144, 112)))
    real = counter.get_flop_counts()[type(pipe.transformer).__name__]
    count = count_trace(pipe.transformer, method.trace)
    assert any(record.kept for record in method.trace)
    assert count.method == sum(real.values()) < count.full


def test_each_set_of_shapes_is_counted_once(tiny, monkeypatch):
    pipe, arguments = tiny("flux")
    with make_method("tomesd")(pipe) as method:
        pipe(**arguments(steps=4))
    counter, counted = FlopCounter(pipe.transformer), []
    count = counter._count
    monkeypatch.setattr(counter, "_count", lambda record: counted.append(record) or count(record))
    run = counter.run(method.trace)
    assert len(counted) == 2 and run.full > run.method
    assert counter.run(method.trace) == run and len(counted) == 2


def test_a_run_without_references_is_full():
    assert FlopCount(0, 0).speedup == 1


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_inputs_have_the_layout_asked_for(tiny, kind):
    adapter = adapter_for(tiny(kind)[0])
    layout = Layout(7, (3, 4), ((5, 2), (1, 6)))
    inputs = adapter.inputs(layout, 2, torch.device("cpu"))
    assert adapter.layout(inputs) == layout
    with torch.no_grad():
        assert adapter.transformer(**inputs).sample.shape[:2] == (2, layout.n_image)
