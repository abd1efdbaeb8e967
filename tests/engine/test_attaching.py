"""Attaching is all or nothing, one at a time, not in copies, and follows what is exchanged."""

import copy
import pickle
import sys
from contextlib import contextmanager
from itertools import count
from threading import Thread

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from topi import Full, RandomTokens, TaylorSeer, ToMA, ToPi
from topi.errors import ToPiError
from topi.methods import METHODS, make_method
from topi.models import adapter_for
from topi.models import held as held_module

small = {"front_layers": 1, "layers": (1,), "first_anchor": 1, "update_every": 3}
USES = {
    "topi": lambda: ToPi(ratio=0.5, **small),
    "topi+taylorseer": lambda: ToPi(ratio=0.5, **small) + TaylorSeer(),
    "ref_kv": lambda: make_method("ref_kv", first_anchor=1),
    "toma": lambda: ToMA(merge_every=1),
    "sdtm": lambda: make_method("sdtm", protect_every=2, multiple=1),
    "fewer_steps": lambda: make_method("fewer_steps"),
    "downscaled_ref": lambda: make_method("downscaled_ref"),
}
"""At least one method for every way to take hold of a pipeline."""


def everything(pipe, method):
    """All that attaching could change: attributes by object, hooks, processors, what is held."""
    holders = [("pipe", pipe), ("scheduler", pipe.scheduler)]
    holders += [(f"part {i}", part) for i, part in enumerate(method.parts)]
    state = {}
    for name, module in [*pipe.transformer.named_modules(), *holders]:
        state[name] = {
            key: (id(value), {*value} if isinstance(value, dict) else None)
            for key, value in vars(module).items()
        }
        if (registry := getattr(module, "_diffusers_hook", None)) is not None:
            state[f"{name} hooks"] = dict(registry.hooks), registry._hook_order, registry._fn_refs
    processors = [type(block.attn.processor) for block in adapter_for(pipe).blocks]
    return state, processors, dict(held_module._held)


class Interrupted(BaseException):
    pass


@contextmanager
def interrupted(at):
    """The `at`-th function called in the package, or among diffusers' hooks, fails."""
    calls, before = count(1), sys.gettrace()

    def trace(frame, event, argument):
        path = frame.f_code.co_filename
        ours = event == "call" and ("/src/topi/" in path or "/diffusers/hooks/" in path)
        if ours and next(calls) == at:
            raise Interrupted

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


class TestAllOrNothing:
    @pytest.mark.parametrize("use", USES)
    def test_every_step_of_attaching_fails_in_turn(self, tiny, use):
        pipe, _ = tiny("flux", dual=1, single=1)
        method = USES[use]()
        before = everything(pipe, method)
        for at in count(1):
            try:
                with interrupted(at):
                    entered = method(pipe)
                    entered.__enter__()
                break
            except Interrupted:
                assert everything(pipe, method) == before
        assert at > 30
        entered.__exit__(None, None, None)
        assert everything(pipe, method)[1:] == before[1:]

    @pytest.mark.parametrize("use", USES)
    def test_every_step_of_detaching_fails_in_turn(self, tiny, use):
        pipe, _ = tiny("flux", dual=1, single=1)
        method = USES[use]()
        before = everything(pipe, Full())
        for at in count(1):
            entered = method(pipe)
            entered.__enter__()
            try:
                with interrupted(at):
                    entered.__exit__(None, None, None)
                break
            except Interrupted:
                assert everything(pipe, Full())[1:] == before[1:]
                now = everything(pipe, Full())[0]
                assert {k: v for k, v in now.items() if k != "part 0"} == {
                    k: v for k, v in before[0].items() if k != "part 0"
                }
        assert at > 15

    def test_a_refused_second_one_leaves_the_first_in_place(self, tiny):
        pipe, call = tiny("flux", dual=1, single=1)
        for name in ("fewer_steps", "downscaled_ref"):
            plain = pipe(**call(steps=4)).images
            with make_method(name)(pipe):
                changed = pipe(**call(steps=4)).images
                with pytest.raises(ToPiError, match="Another method"), make_method(name)(pipe):
                    pass
                assert torch.equal(pipe(**call(steps=4)).images, changed)
            assert not torch.equal(changed, plain)
            assert torch.equal(pipe(**call(steps=4)).images, plain)

    def test_a_version_without_the_list_of_hooks(self, tiny, monkeypatch):
        """diffusers 0.38 to 0.40 have no `invalidate_child_registries_cache`."""
        from diffusers.hooks import HookRegistry

        monkeypatch.delattr(HookRegistry, "invalidate_child_registries_cache")
        pipe, call = tiny("flux", dual=1, single=1)
        with Full()(pipe):
            pipe(**call(steps=1))


def refused(use):
    """The error of `use()` in a thread of its own."""
    errors = []

    def run():
        try:
            use().__enter__()
        except ToPiError as error:
            errors.append(str(error))

    thread = Thread(target=run)
    thread.start()
    thread.join()
    return errors


class TestThreads:
    def test_a_method_between_check_and_attach(self, flux, qwen):
        """And every part of a stack."""

        class Slow(RandomTokens):
            errors = ()

            def prepare(self, model):
                super().prepare(model)
                if not self.errors:
                    self.errors = ["none"]
                    self.errors = refused(lambda: self(qwen[0]))

        for method in (Slow(front_layers=1), Slow(front_layers=1) + TaylorSeer()):
            with method(flux[0]):
                (error,) = method.parts[-2:][0].errors
                assert "object is in use" in error
            with method(qwen[0]):
                pass

    def test_a_transformer_between_check_and_hook(self, flux, monkeypatch):
        errors = []

        def look(*args, **options):
            if not errors:
                errors.append("none")
                errors[:] = refused(lambda: Full()(flux[0]))

        monkeypatch.setattr("topi.engine.session.refuse_what_cannot_work", look)
        with Full()(flux[0]):
            assert len(errors) == 1 and "Another method is attached" in errors[0]


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


class TestCopies:
    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize(
        ("kind", "how"), [("flux", "deepcopy"), ("flux", "pickle"), ("qwen", "deepcopy")]
    )
    def test_a_copy_made_inside_runs_clean_on_its_own_weights(self, tiny, kind, use, how):
        options = {"dual": 1, "single": 1} if kind == "flux" else {"layers": 2}
        pipe, call = tiny(kind, **options)
        pipe(**call(steps=1))  # Qwen pipelines leave a hook registry of their own
        plain = pipe(**call(steps=3, cfg=False)).images
        names = {key: {*vars(module)} for key, module in pipe.transformer.named_modules()}
        with USES[use]()(pipe) as method:
            changed = pipe(**call(steps=3, cfg=False)).images
            trace = list(method.trace)
            twin = COPIES[how](pipe)
            assert torch.equal(twin(**call(steps=3, cfg=False)).images, plain)
            assert method.trace == trace
            assert torch.equal(pipe(**call(steps=3, cfg=False)).images, changed)
            others = {key: {*vars(module)} for key, module in twin.transformer.named_modules()}
            assert others == names
            with USES[use]()(twin):
                assert torch.equal(twin(**call(steps=3, cfg=False)).images, changed)
        assert not torch.equal(changed, plain)
        twin.transformer.proj_out.weight.data.zero_()
        assert not torch.equal(twin(**call(steps=3, cfg=False)).images, plain)
        assert torch.equal(pipe(**call(steps=3, cfg=False)).images, plain)

    @pytest.mark.parametrize("how", [copy.copy, *COPIES.values()])
    def test_a_copied_method_is_not_in_use(self, flux, qwen, how):
        with ToPi(**small)(flux[0]) as method:
            flux[0](**flux[1](steps=3))
            with how(method)(qwen[0]) as twin:
                qwen[0](**qwen[1](steps=3))
            assert twin.trace and method.trace
            with pytest.raises(ToPiError, match="in use"), method(qwen[0]):
                pass

    def test_what_kept_a_hooked_forward_runs_plain_afterwards(self, tiny):
        """As a shallow copy does, whose attributes are the original's."""
        pipe, call = tiny("flux", dual=1, single=1)
        plain = pipe(**call(steps=3)).images
        twin = copy.copy(pipe)
        with USES["topi"]()(pipe) as method:
            pipe(**call(steps=3))
            trace = list(method.trace)
            twin.transformer = copy.copy(pipe.transformer)
            twin.transformer.forward = pipe.transformer.forward
        before = everything(pipe, Full())
        assert torch.equal(twin(**call(steps=3)).images, plain)
        assert everything(pipe, Full())[0].keys() == before[0].keys()
        assert method.trace == trace
        for block in adapter_for(pipe).blocks:
            assert "forward" not in vars(block)

    def test_compiled_blocks(self, tiny):
        """A copy's are of its own weights."""
        import topi

        pipe, _ = tiny("flux", dual=1, single=1)
        twin = copy.deepcopy(pipe)
        topi.compile(twin, backend="eager", dynamic=False)
        for block in adapter_for(copy.deepcopy(twin)).blocks:
            assert block.forward.eager.__self__ is block
            assert block.forward._options == {"dynamic": False, "backend": "eager"}


@pytest.fixture
def own(tiny):
    """A pipeline that a test may change for good."""
    pipe, call = tiny("flux")
    twin = copy.copy(pipe)
    twin.transformer = copy.deepcopy(pipe.transformer)
    return twin, call


def scaled(module):
    """A copy of a module with other weights."""
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.data.mul_(1.5)
    return twin


def exchange(parent, name, new):
    setattr(parent, name, new)


SWAPS = {
    "dual block": lambda t: exchange(t.transformer_blocks, "1", scaled(t.transformer_blocks[1])),
    "all single blocks": lambda t: exchange(
        t, "single_transformer_blocks", scaled(t.single_transformer_blocks)
    ),
    "attention": lambda t: exchange(
        t.transformer_blocks[1], "attn", scaled(t.transformer_blocks[1].attn)
    ),
    "mlp": lambda t: exchange(t.transformer_blocks[0], "ff", scaled(t.transformer_blocks[0].ff)),
    "norm and projection": lambda t: [
        exchange(block, name, scaled(getattr(block, name)))
        for block in t.single_transformer_blocks
        for name in ("norm", "proj_out", "proj_mlp")
    ],
    "processors": lambda t: [
        block.attn.set_processor(FluxAttnProcessor())
        for block in (*t.transformer_blocks, *t.single_transformer_blocks)
    ],
    "LoRA": lambda t: add_lora(t),
}


def add_lora(transformer):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    layers = ["to_q", "to_v", "proj_mlp", "proj_out", "ff.net.0.proj", "norm.linear"]
    config = peft.LoraConfig(r=4, target_modules=layers, init_lora_weights=False)
    transformer.add_adapter(config)


class TestExchange:
    @pytest.mark.parametrize(
        ("use", "swap"),
        [
            *(("sdtm", swap) for swap in SWAPS),
            *(("toma", swap) for swap in ("mlp", "norm and projection", "LoRA")),
            *(("topi", swap) for swap in ("dual block", "processors", "LoRA")),
            *(("ref_kv", swap) for swap in ("all single blocks", "processors")),
        ],
    )
    def test_hooks_follow(self, own, use, swap):
        pipe, call = own
        untouched = {key: {*vars(module)} for key, module in pipe.transformer.named_modules()}
        method = USES[use]()
        with method(pipe):
            first = pipe(**call(steps=4)).images
            before = list(method.trace)
            old = [*pipe.transformer.modules()]
            SWAPS[swap](pipe.transformer)
            inside, trace = pipe(**call(steps=4)).images, list(method.trace)
        assert torch.equal(inside, first) == (swap == "processors")
        assert [record.merged for record in trace] == [record.merged for record in before]
        with method(pipe):
            assert torch.equal(pipe(**call(steps=4)).images, inside)
        assert method.trace == trace
        for module in (*old, *pipe.transformer.modules()):
            assert not {"forward", "__reduce_ex__"} & {*vars(module)}
            assert not getattr(getattr(module, "_diffusers_hook", None), "hooks", None)
        assert swap == "LoRA" or untouched == {
            key: {*vars(module)} for key, module in pipe.transformer.named_modules()
        }

    @pytest.mark.parametrize("use", ["toma", "sdtm"])
    def test_a_lora_is_unloaded_inside(self, own, use):
        pipe, call = own
        method = USES[use]()
        with method(pipe):
            plain = pipe(**call(steps=4)).images
        add_lora(pipe.transformer)
        with method(pipe):
            changed = pipe(**call(steps=4)).images
            pipe.transformer.delete_adapters("default")
            pipe.transformer.unload_lora()
            assert torch.equal(pipe(**call(steps=4)).images, plain)
        assert not torch.equal(changed, plain)

    def test_another_depth_is_refused(self, own):
        pipe, call = own
        with ToPi(**small)(pipe):
            del pipe.transformer.single_transformer_blocks[-1]
            for _ in range(2):
                with pytest.raises(ToPiError, match=r"layers .* have changed .* attach it again"):
                    pipe(**call(steps=1))

    def test_another_kind_of_block_is_named(self, own):
        pipe, call = own
        with ToPi(**small)(pipe):
            pipe.transformer.transformer_blocks[1] = torch.nn.Identity()
            with pytest.raises(ToPiError, match=r"Layer 1 of this Flux.* is a Identity"):
                pipe(**call(steps=1))

    def test_another_transformer_is_refused(self, own):
        pipe, call = own
        with pytest.raises(ToPiError, match="another transformer inside"), Full()(pipe):
            pipe.transformer = copy.deepcopy(pipe.transformer)
            pipe(**call(steps=1))

    def test_parts_shared_with_another_transformer(self, own):
        pipe, _ = own
        other = copy.copy(pipe)
        other.transformer = copy.deepcopy(pipe.transformer)
        other.transformer.transformer_blocks[0] = pipe.transformer.transformer_blocks[0]
        with Full()(pipe):
            assert "shares a FluxTransformerBlock" in refused(lambda: Full()(other))[0]


def test_every_method_detaches_from_what_it_attached_to(own):
    """None is left out of the lists above that takes hold in a way of its own."""
    known = {type(use()).around for use in USES.values()}
    assert {cls.around for cls in METHODS.values()} <= known
