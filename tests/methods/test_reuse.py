"""Methods that keep keys and values for later steps: what they all have to hold."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from topi import FirstBlockCache, RefKV, TaylorSeer, TeaCache
from topi.engine import ReusesKeys
from topi.engine.flops import count_trace
from topi.errors import ToPiError
from topi.methods import make_method
from topi.models.tiny import random_image

OFTEN = {"update_every": 2, "first_anchor": 1}
SCORED = {"layers": (1, 3)}
FREEZING = {"first_anchor": 0, "update_every": 2, "threshold": 0.0, "last_full": 1}
TOPI_KV = OFTEN | SCORED | {"ratio": 0.5, "selection": "top"}
METHODS = {
    "ref_kv": OFTEN,
    "ref_kv front": OFTEN | {"front_layers": 2},
    "ref_kv_causal": {},
    "topi_kv": TOPI_KV,
    "topi_kv cover": TOPI_KV | {"selection": "cover", "front_layers": 2},
    "topi_kv live": TOPI_KV | {"live": 0.25, "front_layers": 2},
    "regione": FREEZING,
    "topi_kv everything": TOPI_KV
    | {"per_layer": True, "coarse": 3, "extrapolate": True, "drift": 0.001},
}
NEUTRAL = {
    "ref_kv": {"update_every": 1},
    "topi_kv": {"update_every": 1, "tau": 1.0, **SCORED},
    "regione": {"update_every": 1, "first_anchor": 0},
}
MODELS = {
    "flux": ({}, {}),
    "flux cfg": ({}, {"cfg": True, "batch": 2}),
    "qwen": ({}, {"padded": True, "batch": 2}),
    "qwen_plus": ({"zero_cond_t": True}, {}),
}


def make(label, **options):
    return make_method(label.split()[0], **METHODS[label] | options)


def on(tiny, model, **options):
    """The pipeline and a maker of the arguments of four steps."""
    built, arguments = MODELS[model]
    pipe, call = tiny(model.split()[0], **built)
    return pipe, lambda **more: call(**{"steps": 4, **arguments, **more})


def model_flops(pipe, counter):
    """The transformer's own: a CPU's attention is no `bmm`, but scoring is."""
    by_operator = counter.get_flop_counts()[type(pipe.transformer).__name__]
    return sum(flops for op, flops in by_operator.items() if not str(op).endswith("bmm"))


def edit(method, pipe, arguments):
    with method(pipe):
        return pipe(**arguments).images


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NEUTRAL)
def test_refreshed_at_every_step_it_is_the_full_run(tiny, model, name):
    pipe, call = on(tiny, model)
    method = make_method(name, **NEUTRAL[name])
    assert torch.equal(edit(method, pipe, call()), pipe(**call()).images)
    assert all(record.anchor and not record.stored for record in method.trace)
    assert method.trace[-1].store_bytes > 0


@pytest.mark.parametrize("model", ["flux", "qwen_plus"])
@pytest.mark.parametrize("label", METHODS)
def test_counted_flops_are_those_of_the_run(tiny, model, label):
    pipe, call = on(tiny, model)
    method = make(label)
    with FlopCounterMode(display=False) as counter:
        edit(method, pipe, call())
    count = count_trace(pipe.transformer, method.trace)
    assert any(record.stored for record in method.trace)
    assert count.method == model_flops(pipe, counter) < count.full


@pytest.mark.parametrize("label", METHODS)
def test_nothing_leaks_from_one_pipeline_call_into_the_next(flux, label):
    pipe, call = flux
    one, two = ({"steps": 4, "references": [random_image(seed=seed)]} for seed in (3, 5))
    plain = pipe(**call(**one)).images
    alone = edit(make(label), pipe, call(**two))
    method = make(label)
    with method(pipe):
        first = pipe(**call(**one)).images
        trace = method.trace
        assert torch.equal(pipe(**call(**two)).images, alone)
        with pytest.raises(ZeroDivisionError):
            pipe(**call(**one, callback_on_step_end=lambda *_: 1 // 0))
        assert torch.equal(pipe(**call(**two)).images, alone)
        assert torch.equal(pipe(**call(**one)).images, first)
        assert [(r.anchor, r.kept) for r in method.trace] == [(r.anchor, r.kept) for r in trace]
    assert not torch.equal(first, plain)
    assert torch.equal(pipe(**call(**one)).images, plain)


@pytest.mark.parametrize("label", METHODS)
def test_without_a_reference_the_model_runs_untouched(flux, label):
    pipe, call = flux
    plain = pipe(**call(references=[])).images
    method = make(label)
    assert torch.equal(edit(method, pipe, call(references=[])), plain)
    assert method.trace == []


class TestStacks:
    @pytest.mark.parametrize("label", [label for label in METHODS if label != "regione"])
    def test_a_cache_skips_steps_between_anchors(self, tiny, label):
        pipe, call = on(tiny, "flux cfg")
        method = make(label) + TaylorSeer(interval=3, warmup=2)
        edit(method, pipe, call(steps=7))
        assert any(record.skipped for record in method.trace)
        assert not any(record.skipped and record.anchor for record in method.trace)
        assert all(record.kept is None for record in method.trace if record.skipped)
        assert count_trace(pipe.transformer, method.trace).speedup > 1

    def test_a_skip_behind_the_first_layers(self, flux):
        pipe, call = flux
        cache = FirstBlockCache(threshold=9.0, rows="target")
        method = RefKV(**OFTEN) + cache
        with FlopCounterMode(display=False) as counter:
            edit(method, pipe, call(steps=5))
        skipped = [record for record in method.trace if record.skipped_from == 1]
        assert skipped and all(record.stored == {0: 64} for record in skipped)
        assert count_trace(pipe.transformer, method.trace).method == model_flops(pipe, counter)

    def test_a_statistic_over_rows_that_are_gone_is_refused(self, flux):
        pipe, call = flux
        with pytest.raises(ToPiError, match="rows=target"):
            edit(RefKV(**OFTEN) + FirstBlockCache(), pipe, call(steps=4))

    def test_what_else_changes_tokens_does_not_stack(self):
        with pytest.raises(ToPiError, match="RefKV and RandomTokens cannot be stacked"):
            RefKV() + make_method("random")
        assert (RefKV() + TeaCache()).part(ReusesKeys)
        with pytest.raises(ToPiError, match=r"RegionE computes a part .* leave TeaCache out"):
            TeaCache() + make_method("regione")
