"""Attaching and detaching: nothing stays behind, nothing leaks from one call into the next."""

import copy
from dataclasses import dataclass

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

from topi import Full, RandomTokens, TaylorSeer, ToPi
from topi.engine import MergesTokens, WeighsText
from topi.engine.taps import tapped
from topi.errors import ToPiError
from topi.methods import Merge, Method
from topi.models import adapter_for

KINDS = ["flux", "flux2", "qwen", "qwen_plus"]
CASES = {
    "flux": ("flux", {}, {}),
    "flux, true CFG": ("flux", {}, {"cfg": True}),
    "flux, batch of two": ("flux", {}, {"batch": 2}),
    "flux, bf16": ("flux", {"dtype": torch.bfloat16}, {}),
    "flux, odd grid": ("flux", {}, {"size": (144, 112)}),
    "flux2, two references, batch of two": ("flux2", {}, {"batch": 2, "cfg": True}),
    "flux2, bf16": ("flux2", {"dtype": torch.bfloat16}, {}),
    "qwen, true CFG": ("qwen", {}, {}),
    "qwen, batch of two, padded text": ("qwen", {}, {"batch": 2, "padded": True}),
    "qwen, bf16": ("qwen", {"dtype": torch.bfloat16}, {}),
    "qwen, zero_cond_t": ("qwen", {"zero_cond_t": True}, {}),
    "qwen plus, two references": ("qwen_plus", {}, {}),
    "qwen plus, zero_cond_t": ("qwen_plus", {"zero_cond_t": True}, {}),
}
small = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 3}


def state(pipe):
    """All that hooks could leave behind: instance dicts, processor classes, weights."""
    modules = dict(pipe.transformer.named_modules())
    return (
        {name: dict(vars(module)) for name, module in modules.items()},
        [type(block.attn.processor) for block in adapter_for(pipe).blocks],
        [parameter.data_ptr() for parameter in pipe.transformer.parameters()],
    )


def same_state(one, two):
    return one[1:] == two[1:] and all(
        one[0][name].keys() == two[0][name].keys()
        and all(one[0][name][key] is two[0][name][key] for key in one[0][name])
        for name in one[0]
    )


@pytest.mark.parametrize("case", CASES)
class TestEqualToUntouched:
    def test_keep_all(self, tiny, case):
        kind, options, arguments = CASES[case]
        pipe, call = tiny(kind, **options)
        plain = pipe(**call(**arguments)).images
        with ToPi(tau=1.0, **small)(pipe) as method:
            assert torch.equal(pipe(**call(**arguments)).images, plain)
        assert any(record.anchor and record.scoring_seconds > 0 for record in method.trace)
        assert all(record.kept is None for record in method.trace)

    def test_identity_merges(self, tiny, case):
        kind, options, arguments = CASES[case]
        pipe, call = tiny(kind, **options)
        plain = pipe(**call(steps=2, **arguments)).images
        for scope in ("attention", "mlp", "both", "block"):
            with SameTokens(scope)(pipe) as method:
                assert torch.equal(pipe(**call(steps=2, **arguments)).images, plain)
            layout = method.trace[0].layout
            assert method.trace[0].merged == {
                layer: (scope if scope in scopes else scopes[0], layout.n_image)
                for layer, scopes in enumerate(method.facts.scopes)
            }


class AllRows(Merge):
    def __init__(self, n, scope):
        self.rows, self.scope = torch.arange(n), scope

    def merge(self, states):
        assert states.shape[1] == len(self.rows)
        return states

    unmerge = merge


@dataclass
class SameTokens(Method, MergesTokens):
    scope: str = "attention"

    def prepare(self, model):
        self.facts = model

    def merge(self, call, layer, states):
        scopes = self.facts.scopes[layer]
        return AllRows(states.shape[1], self.scope if self.scope in scopes else scopes[0])


class Reverse(AllRows):
    """Tokens in reverse order: the same attention if their rotary rows come along."""

    def __init__(self, n, scope):
        super().__init__(n, scope)
        self.rows = self.rows.flip(0)

    def merge(self, states):
        return states.flip(1)

    unmerge = merge


class TestMerging:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("scope", ["attention", "block"])
    def test_rotary_rows_follow_the_tokens(self, tiny, kind, scope):
        pipe, call = tiny(kind)
        plain = pipe(**call(steps=2)).images

        @dataclass
        class Reversed(SameTokens):
            def merge(self, call, layer, states):
                scopes = self.facts.scopes[layer]
                return Reverse(states.shape[1], scope if scope in scopes else scopes[0])

        with Reversed()(pipe):
            assert torch.allclose(pipe(**call(steps=2)).images, plain, atol=1e-5)

    @pytest.mark.parametrize("scope", ["attention", "block"])
    def test_text_rows_are_not_merged_and_lengths_are_reduced(self, flux, scope):
        pipe, call = flux

        class Half(AllRows):
            def __init__(self, n, scope):
                self.rows, self.scope, self.n = torch.arange(0, n, 2), scope, n

            def merge(self, states):
                return states[:, ::2]

            def unmerge(self, states):
                assert states.shape[1] == len(self.rows)
                return states.repeat_interleave(2, 1)

        @dataclass
        class Halves(SameTokens):
            def merge(self, call, layer, states):
                return Half(states.shape[1], scope) if layer == 3 else None

        lengths = {}
        block = pipe.transformer.single_transformer_blocks[1]
        hooks = [
            module.register_forward_hook(
                lambda module, args, out, name=name: lengths.__setitem__(name, out.shape[1])
            )
            for name, module in (("mlp", block.proj_mlp), ("qkv", block.attn.to_q))
        ]
        with Halves()(pipe) as method:
            pipe(**call(steps=1))
        for hook in hooks:
            hook.remove()
        assert method.trace[0].merged == {3: (scope, 64)}
        assert lengths == {"qkv": 12 + 64, "mlp": 12 + (64 if scope == "block" else 128)}

    @pytest.mark.parametrize("kind", KINDS)
    def test_unmerging_alone_sees_what_attention_and_mlp_return(self, tiny, kind):
        pipe, call = tiny(kind)
        plain = pipe(**call(steps=1, cfg=False)).images

        class Watch(AllRows):
            def __init__(self, seen, scope):
                self.rows, self.scope, self.seen = None, scope, seen

            def merge(self, states):
                return states

            def unmerge(self, states):
                self.seen.append(("main", *states.shape[1:]))
                return states

            def unmerge_mlp(self, states):
                self.seen.append(("mlp", *states.shape[1:]))
                return states

        @dataclass
        class Watched(SameTokens):
            def merge(self, call, layer, states):
                self.seen = self.__dict__.setdefault("seen", [])
                return Watch(self.seen, self.scope) if layer == 1 else None

        with Watched("both")(pipe) as method:
            assert torch.equal(pipe(**call(steps=1, cfg=False)).images, plain)
        n = method.trace[0].layout.n_image
        assert method.seen == [("main", n, 64), ("mlp", n, 64)]
        assert method.trace[0].merged == {}

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_method_can_weigh_the_text(self, tiny, kind):
        pipe, call = tiny(kind)
        plain = pipe(**call(steps=1)).images

        @dataclass
        class Weigh(Method, WeighsText):
            weight: float = 1.0

            def text_weight(self, call, layer):
                return self.weight

        with Weigh()(pipe):
            assert torch.equal(pipe(**call(steps=1)).images, plain)
        with Weigh(2.0)(pipe):
            assert not torch.allclose(pipe(**call(steps=1)).images, plain)

    def test_a_whole_dual_block_cannot_be_merged(self, qwen):
        pipe, call = qwen

        @dataclass
        class Block(SameTokens):
            def merge(self, call, layer, states):
                return AllRows(states.shape[1], "block")

        with Block()(pipe), pytest.raises(ToPiError, match='scope "block", only in: attention'):
            pipe(**call(steps=1))


class TestRemoval:
    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_stays_behind(self, tiny, kind):
        pipe, call = tiny(kind)
        pipe(**call(steps=1))  # Qwen pipelines leave a hook registry of their own
        registry = getattr(pipe.transformer, "_diffusers_hook", None)
        before, plain = state(pipe), pipe(**call()).images
        for method in (ToPi(**small), SameTokens("block"), Full(), ToPi(**small) + TaylorSeer()):
            if registry is not None:
                registry.invalidate_child_registries_cache()  # the next call lists the hooks anew
            with method(pipe):
                pipe(**call(steps=2))
                assert not same_state(state(pipe), before)
            assert same_state(state(pipe), before)
            assert registry is None or not registry._get_child_registries()
        assert torch.equal(pipe(**call()).images, plain)

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_stays_behind_after_an_exception(self, tiny, kind):
        pipe, call = tiny(kind)
        pipe(**call(steps=1))
        before = state(pipe)

        def stop(pipe, step, timestep, kwargs):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), ToPi(**small)(pipe):
            pipe(**call(callback_on_step_end=stop))
        assert same_state(state(pipe), before)

    def test_a_failed_attach_leaves_nothing(self, flux):
        pipe, _ = flux
        before = state(pipe)
        block = pipe.transformer.single_transformer_blocks[-1]
        stock = block.attn.processor
        block.attn.processor = lambda *args: None
        message = "processor function is not supported"
        with pytest.raises(ToPiError, match=message), ToPi(**small)(pipe):
            pass
        block.attn.processor = stock
        assert same_state(state(pipe), before)

    def test_a_copy_made_afterwards_runs_its_own_weights(self, flux):
        pipe, call = flux
        with ToPi(**small)(pipe):
            plain = pipe(**call(steps=2)).images
        twin = copy.deepcopy(pipe.transformer)
        for parameter in twin.parameters():
            parameter.data.zero_()
        original, pipe.transformer = pipe.transformer, twin
        changed = pipe(**call(steps=2)).images
        pipe.transformer = original
        assert not torch.equal(changed, plain)

    def test_a_compiled_or_replaced_forward_is_given_back(self, flux):
        pipe, call = flux
        block = pipe.transformer.transformer_blocks[0]
        own = block.forward
        block.forward = lambda **kwargs: own(**kwargs)
        replaced = block.forward
        with ToPi(**small)(pipe):
            pipe(**call(steps=1))
        assert vars(block)["forward"] is replaced
        del block.forward

    def test_offloading_that_unwraps_after_every_call_keeps_the_hooks(self, flux):
        pipe, call = flux
        before = state(pipe)
        add_hook_to_module(pipe.transformer, ModelHook())
        with ToPi(ratio=0.5, **small)(pipe) as method:
            for _ in range(2):
                method.trace = []
                pipe(**call(steps=3))
                assert [len(record.kept or ()) for record in method.trace] == [0, 0, 32]
                remove_hook_from_module(pipe.transformer)
                add_hook_to_module(pipe.transformer, ModelHook())
        remove_hook_from_module(pipe.transformer)
        pipe.transformer.__dict__.pop("forward")  # accelerate leaves the bound method
        assert same_state(state(pipe), before)

    def test_offloading_that_begins_inside_stays(self, flux):
        pipe, call = flux
        before, plain = state(pipe), pipe(**call(steps=2)).images
        with ToPi(**small)(pipe):
            add_hook_to_module(pipe.transformer, ModelHook())
        assert hasattr(pipe.transformer, "_hf_hook")
        assert torch.equal(pipe(**call(steps=2)).images, plain)
        remove_hook_from_module(pipe.transformer)
        pipe.transformer.__dict__.pop("forward")
        assert same_state(state(pipe), before)

    def test_one_tapped_class_per_processor_class(self, flux):
        pipe, _ = flux
        with ToPi(**small)(pipe):
            tapped = {type(block.attn.processor) for block in adapter_for(pipe).blocks}
            assert len(tapped) == 1
            assert tapped.pop().__mro__[1].__name__ == "FluxAttnProcessor"

    def test_processor_without_dispatch_is_refused(self):
        class Other:
            def __call__(self):
                return None

        with pytest.raises(ToPiError, match="Other is not supported"), tapped(Other()):
            pass


class TestUse:
    def test_pipeline_or_transformer(self, flux):
        pipe, call = flux
        results = []
        for model in (pipe, pipe.transformer):
            with ToPi(**small)(model):
                results.append(pipe(**call()).images)
        assert torch.equal(*results)

    def test_nested_and_doubled_use(self, flux, qwen):
        method = ToPi(**small)
        with method(flux[0]):
            with pytest.raises(ToPiError, match="in use"), method(flux[0]):
                pass
            with pytest.raises(ToPiError, match="in use"), method(qwen[0]):
                pass
            with pytest.raises(ToPiError, match="Another method"), Full()(flux[0]):
                pass
            assert flux[0](**flux[1](steps=3)).images is not None
            assert method.trace[-1].kept  # the refused ones have not disturbed it
        with method(qwen[0]):
            pass

    def test_no_reference_passes_through(self, flux):
        pipe, call = flux
        plain = pipe(**call(references=[])).images
        with ToPi(**small)(pipe) as method:
            pipe(**call())
            assert torch.equal(pipe(**call(references=[])).images, plain)
            assert method.trace == []


def kept(method):
    return [(record.step, record.branch, record.anchor, record.kept) for record in method.trace]


class TestNoLeaks:
    @pytest.mark.parametrize(
        ("kind", "arguments"), [("flux", {}), ("flux", {"cfg": True}), ("qwen", {})]
    )
    def test_two_calls_in_a_row(self, tiny, kind, arguments):
        pipe, call = tiny(kind)
        with ToPi(**small)(pipe) as method:
            first, trace = pipe(**call(**arguments)).images, kept(method)
            assert torch.equal(pipe(**call(**arguments)).images, first)
            assert kept(method) == trace

    @pytest.mark.parametrize(
        ("kind", "arguments"), [("flux", {}), ("flux", {"cfg": True}), ("qwen", {})]
    )
    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_an_exception_between_steps(self, tiny, kind, arguments, at):
        pipe, call = tiny(kind)

        def stop(pipe, step, timestep, kwargs):
            if step == at:
                raise RuntimeError("stop")
            return {}

        with ToPi(**small)(pipe) as method:
            clean, trace = pipe(**call(**arguments)).images, kept(method)
            with pytest.raises(RuntimeError, match="stop"):
                pipe(**call(seed=5, callback_on_step_end=stop, **arguments))
            assert torch.equal(pipe(**call(**arguments)).images, clean)
            assert kept(method) == trace

    def test_an_exception_inside_the_transformer(self, qwen):
        pipe, call = qwen
        count = 0

        def fail(module, args):
            nonlocal count
            count += 1
            if count == 5:
                raise RuntimeError("inside")

        with ToPi(**small)(pipe) as method:
            clean, trace = pipe(**call()).images, kept(method)
            hook = adapter_for(pipe).blocks[4].register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="inside"):
                pipe(**call())
            hook.remove()
            assert torch.equal(pipe(**call()).images, clean)
            assert kept(method) == trace

    def test_a_bare_transformer_call_that_failed_is_no_step(self, flux):
        pipe, call = flux
        calls = []
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
        )
        pipe(**call(steps=1))
        hook.remove()
        fail = pipe.transformer.proj_out.register_forward_pre_hook(lambda module, args: 1 / 0)
        with Full()(pipe) as method, torch.no_grad():
            with pytest.raises(ZeroDivisionError):
                pipe.transformer(**calls[0])
            fail.remove()
            pipe.transformer(**calls[0])
        assert [(record.step, record.branch) for record in method.trace] == [(0, "cond")]

    def test_another_size_and_batch_in_between(self, flux):
        pipe, call = flux
        with ToPi(**small)(pipe):
            clean = pipe(**call()).images
            pipe(**call(size=(144, 112)))
            pipe(**call(batch=2))
            assert torch.equal(pipe(**call()).images, clean)


def test_branches_without_names_from_the_pipeline(flux):
    """Flux runs true CFG without naming its branches, here with one embedding for both."""
    pipe, call = flux
    arguments = call(steps=2, cfg=True)
    with RandomTokens(front_layers=1)(pipe) as method:
        pipe(**arguments)
        arguments["negative_prompt_embeds"] = arguments["prompt_embeds"]
        pipe(**arguments)
    assert [(record.step, record.branch) for record in method.trace] == [
        (0, "cond"),
        (0, "uncond"),
        (1, "cond"),
        (1, "uncond"),
    ]
