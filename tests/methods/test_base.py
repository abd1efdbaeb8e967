"""Finding methods by name, their parameters, and the attention probe."""

import subprocess
import sys

import pytest
import torch

from topi import Full, RandomTokens, TaylorSeer, ToPi
from topi.engine import MergesTokens, ReusesKeys, SkipsLayers, WatchesAttention
from topi.errors import ToPiError
from topi.methods import METHODS, Method, make_method
from topi.methods.probes.attention_probe import AttentionProbe


def test_methods_are_found_under_their_names():
    merging = {
        f"{name}{end}" for name in ("tomesd", "toma", "sdtm", "dato") for end in ("", "_ref")
    }
    stored = {"ref_kv", "ref_kv_causal", "topi_kv", "regione"}
    kept = {"full", "topi", "topi_cover", "random", "checker", "fewer_steps", "downscaled_ref"}
    assert merging | stored | kept == set(METHODS)
    assert METHODS["topi"] is ToPi
    for name in METHODS:
        assert make_method(name).name == name


def test_parameters_are_those_it_was_built_with():
    method = make_method("random", ratio=0.25, fixed=True)
    assert isinstance(method, RandomTokens)
    assert RandomTokens(**method.params) == method
    assert method.params["ratio"] == 0.25
    assert Full().params == {}


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("topy", {}, r"no method 'topy'; choose one of: checker, dato, .*full, random"),
        ("random", {"ration": 1}, r"no parameter ration; it takes: .*ratio, fixed, redraw, seed"),
        ("full", {"trace": []}, r"no parameter trace; it takes: none"),
        ("topi", {"score": "x"}, r"score='x' is unknown"),
    ],
)
def test_unknown_names_are_refused_with_the_valid_ones(name, params, message):
    with pytest.raises(ToPiError, match=message):
        make_method(name, **params)


def test_a_method_that_overrides_nothing_is_not_asked(flux):
    class Silent(Method):
        pass

    for capability in (WatchesAttention, MergesTokens, SkipsLayers, ReusesKeys):
        assert Silent().part(capability) is None
    assert ToPi().part(WatchesAttention)


def test_full_records_every_call_as_full(qwen):
    pipe, call = qwen
    with Full()(pipe) as method:
        pipe(**call(steps=2))
    assert [(r.step, r.branch, r.keep_ratio, r.kept, r.anchor) for r in method.trace] == [
        (step, branch, 1.0, None, False) for step in (0, 1) for branch in ("cond", "uncond")
    ]


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen"])
@pytest.mark.parametrize(
    ("method", "trim_last"),
    [
        (RandomTokens(ratio=0.3, front_layers=1, first_anchor=0), False),
        (make_method("ref_kv", first_anchor=0), False),
        (make_method("regione", first_anchor=0, update_every=3), False),
        (make_method("full") + TaylorSeer(interval=2), False),
        (Full(), True),
    ],
    ids=["pruned", "stored", "frozen", "skipped", "trimmed"],
)
def test_the_transformer_returns_a_row_for_every_token(tiny, kind, method, trim_last):
    """Whoever calls it directly finds the rows of the target first; the others may be zero."""
    pipe, call = tiny(kind)
    shapes, rows = set(), []

    def look(module, args, kwargs, output):
        shapes.add((kwargs["hidden_states"].shape[:2], output[0].shape[:2]))
        rows.append(output[0])

    handle = pipe.transformer.register_forward_hook(look, with_kwargs=True)
    try:
        with method(pipe, trim_last=trim_last):
            pipe(**call(steps=4, cfg=False))
    finally:
        handle.remove()
    ((given, returned),) = shapes
    assert given == returned
    n_target = method.trace[-1].layout.n_target
    assert all(output[:, :n_target].any(-1).all() for output in rows)
    assert not all(output[:, n_target:].any() for output in rows)


class TestAttentionProbe:
    def test_mass_of_every_layer_step_and_branch(self, qwen):
        pipe, call = qwen
        plain = pipe(**call(steps=2)).images
        with AttentionProbe()(pipe) as probe:
            assert torch.equal(pipe(**call(steps=2)).images, plain)
            pipe(**call(steps=2))
        assert set(probe.mass) == {
            (step, branch, layer)
            for step in (0, 1)
            for branch in ("cond", "uncond")
            for layer in range(6)
        }
        for shares in probe.mass.values():
            assert len(shares) == 2
            assert shares[0] == shares[1]
            assert 0 < shares[0] < 1
        assert probe.received == {}

    def test_maps_add_up_to_the_mass(self, flux):
        pipe, call = flux
        with AttentionProbe(layers=(2,), maps=True)(pipe) as probe:
            pipe(**call(steps=1, batch=2))
        assert set(probe.mass) == {(0, "cond", 2)}
        (received,) = probe.received[0, "cond", 2]
        assert received.shape == (2, 64)
        assert float(received.sum(1).mean() / 64) == pytest.approx(probe.mass[0, "cond", 2][0])

    def test_layers_out_of_range(self, flux):
        with pytest.raises(ToPiError, match=r"layers \[9\]"), AttentionProbe(layers=(9,))(flux[0]):
            pass


def test_importing_the_package_alone_is_light():
    code = "import sys, topi; assert not {'torch', 'diffusers'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)
