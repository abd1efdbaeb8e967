"""Skipped blocks: what stands for them, what still runs, and that nothing else changes."""

from dataclasses import dataclass, field

import pytest
import torch

from topi import FirstBlockCache, Full, MagCache, TaylorSeer, TeaCache, ToPi
from topi.engine import SkipsLayers
from topi.errors import ToPiError
from topi.methods import Method
from topi.models import adapter_for

CASES = {
    "flux, true CFG": ("flux", {}, {"cfg": True}),
    "flux, batch of two": ("flux", {}, {"batch": 2}),
    "flux, bf16": ("flux", {"dtype": torch.bfloat16}, {}),
    "qwen, true CFG": ("qwen", {}, {}),
    "qwen, batch of two, padded text": ("qwen", {}, {"batch": 2, "padded": True}),
    "qwen plus, two references, zero_cond_t": ("qwen_plus", {"zero_cond_t": True}, {}),
}
LINE = {"coefficients": (1.0, 0.0)}
small = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 2}


def neutral():
    return [
        TeaCache(threshold=0, **LINE),
        FirstBlockCache(threshold=-1),
        TaylorSeer(interval=1),
        MagCache(max_skips=0, ratios=(1.0,)),
    ]


@dataclass
class Recorder(Method, SkipsLayers):
    """Note the last block's target states of each call."""

    decides_before = (0,)
    seen: dict = field(default_factory=dict)

    def remember(self, call, states):
        self.seen[call.step, call.branch] = states


@dataclass
class Player(Method, SkipsLayers):
    """Skip from a layer on, with what a recorder has seen."""

    layer: int = 0
    seen: dict = field(default_factory=dict)
    lengths: list = field(default_factory=list, init=False)

    @property
    def decides_before(self):
        return (self.layer,)

    def skip(self, call, layer, block):
        self.lengths.append((layer, block.states.shape[1]))
        return self.seen[call.step, call.branch]


@pytest.mark.parametrize("case", CASES)
class TestEveryModel:
    def test_caches_that_never_skip_are_untouched_runs(self, tiny, case):
        kind, options, arguments = CASES[case]
        pipe, call = tiny(kind, **options)
        plain = pipe(**call(steps=3, **arguments)).images
        methods = neutral() if case == "flux, true CFG" or kind == "qwen_plus" else neutral()[:1]
        for method in [*methods, ToPi(tau=1.0, **small) + TeaCache(threshold=0, **LINE)]:
            with method(pipe):
                assert torch.equal(pipe(**call(steps=3, **arguments)).images, plain)
            assert not any(record.skipped for record in method.trace)

    def test_the_states_of_a_full_run_stand_for_its_blocks(self, tiny, case):
        kind, options, arguments = CASES[case]
        pipe, call = tiny(kind, **options)
        with Recorder()(pipe) as recorder:
            plain = pipe(**call(steps=2, **arguments)).images
        ran, outputs = [], []
        hooks = [
            block.attn.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
            for layer, block in enumerate(adapter_for(pipe).blocks)
        ]
        hooks.append(pipe.transformer.register_forward_hook(lambda *a: outputs.append(a[-1][0])))
        for layer in (0, 3):
            with Player(layer, recorder.seen)(pipe) as player:
                images = pipe(**call(steps=2, **arguments)).images
            assert torch.allclose(images, plain, atol=1e-5 if plain.dtype == torch.float32 else 0.1)
            layout = player.trace[0].layout
            assert {r.skipped_from for r in player.trace} == {layer}
            assert set(player.lengths) == {(layer, layout.n_image)}
            assert sorted(set(ran)) == list(range(layer))
            assert {output.shape[1] for output in outputs} == {layout.n_image}
            assert not any(output[:, layout.n_target :].any() for output in outputs)
            assert len(recorder.seen) == len(player.trace)
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(("kind", "options"), [("flux", {}), ("qwen_plus", {"zero_cond_t": True})])
def test_normed_states_are_what_the_attention_gets(tiny, kind, options):
    pipe, call = tiny(kind, **options)
    blocks = adapter_for(pipe).blocks
    normed, received = [], []

    class Look(Method, SkipsLayers):
        decides_before = range(len(blocks))

        def skip(self, call, layer, block):
            normed.append(block.normed())
            self.n_image = call.layout.n_image

    hooks = [
        block.attn.register_forward_pre_hook(
            lambda module, args, kwargs: received.append(kwargs["hidden_states"]), with_kwargs=True
        )
        for block in blocks
    ]
    with Look()(pipe) as look:
        pipe(**call(steps=1))
    for hook in hooks:
        hook.remove()
    assert len(normed) == len(received) >= len(blocks)
    for mine, theirs in zip(normed, received, strict=True):
        assert torch.equal(mine, theirs[:, -look.n_image :])


@pytest.mark.parametrize(("kind", "arguments"), [("flux", {"cfg": True}), ("qwen", {})])
class TestState:
    def test_two_calls_in_a_row_and_an_exception_between(self, tiny, kind, arguments):
        pipe, call = tiny(kind)

        def stop(pipe, step, timestep, kwargs):
            if step == 3:
                raise RuntimeError("stop")
            return {}

        with (ToPi(**small) + TaylorSeer(interval=3, warmup=1))(pipe) as method:
            clean = pipe(**call(steps=6, **arguments)).images
            trace = [(r.step, r.branch, r.anchor, r.kept, r.skipped_from) for r in method.trace]
            assert {r.skipped for r in method.trace} == {True, False}
            with pytest.raises(RuntimeError, match="stop"):
                pipe(**call(steps=6, seed=5, callback_on_step_end=stop, **arguments))
            assert torch.equal(pipe(**call(steps=6, **arguments)).images, clean)
            assert trace == [
                (r.step, r.branch, r.anchor, r.kept, r.skipped_from) for r in method.trace
            ]
        assert method.cache._memory == {}

    def test_the_number_of_steps_is_known(self, tiny, recorded, kind, arguments):
        pipe, call = tiny(kind)
        told, kwargs = [], recorded(pipe, call(steps=1, **arguments))[0]

        class Steps(Method):
            def begin(self, call):
                told.append((call.step, call.n_steps))

        for steps in (1, 5):
            with Steps()(pipe):
                pipe(**call(steps=steps, **arguments))
            assert set(told) == {(step, steps) for step in range(steps)}
            told.clear()
        with Steps()(pipe.transformer), torch.no_grad():
            pipe(**call(steps=1, **arguments))
            pipe.transformer(**kwargs)
        assert set(told[:-1]) == {(0, 1)} and told[-1] == (0, None)


def test_the_number_of_steps_in_low_precision(tiny):
    pipe, call = tiny("flux", dtype=torch.bfloat16)
    with TeaCache(threshold=1e9, **LINE)(pipe) as method:
        pipe(**call(steps=28))
    assert [r.step for r in method.trace if not r.skipped] == [0, 27]


def test_a_transformer_alone_does_not_tell_the_last_step(flux, recorded):
    pipe, call = flux
    kwargs = recorded(pipe, call(steps=1))[0]
    for method in (TeaCache(**LINE), MagCache(ratios=(1.0,))):
        with method(pipe.transformer), pytest.raises(ToPiError, match="attach it to the pipeline"):
            pipe.transformer(**kwargs)


def test_no_reference_passes_through(flux):
    pipe, call = flux
    plain = pipe(**call(references=[])).images
    with TaylorSeer(warmup=0)(pipe) as method:
        assert torch.equal(pipe(**call(references=[])).images, plain)
    assert method.trace == []


def test_tokens_kept_only_where_layers_ran(flux):
    """A skip behind the layer of the gather leaves what was kept in the record."""
    pipe, call = flux
    options = {**small, "ratio": 0.5}
    with (ToPi(**options) + FirstBlockCache(threshold=1e9, first_blocks=3, rows="target"))(
        pipe
    ) as m:
        pipe(**call(steps=4))
    assert [(r.skipped_from, r.keep_ratio, r.front_layers) for r in m.trace] == [
        (None, 1.0, 0),
        (None, 1.0, 0),
        (3, 0.5, 1),
        (3, 0.5, 1),
    ]
    with (ToPi(**options) + FirstBlockCache(threshold=1e9, first_blocks=1))(pipe) as method:
        pipe(**call(steps=4))
    assert [(r.skipped_from, r.kept) for r in method.trace] == [(None, None)] * 2 + [(1, None)] * 2


def test_full_is_no_cache(flux):
    assert Full().part(SkipsLayers) is None
