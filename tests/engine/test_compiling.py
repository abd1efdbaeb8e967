"""Compiled blocks with methods: the same results, few graphs, and no hook frozen into one."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module, remove_hook_from_module

import topi
from topi import Full, RandomTokens, TeaCache, ToMeSD, ToPi
from topi.engine.compiling import CompiledForward
from topi.errors import ToPiError
from topi.models import adapter_for

pytestmark = pytest.mark.slow

small = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 2}


@pytest.fixture
def compiled():
    """`with compiled(pipe) as graphs`: its blocks compiled, each graph counted and run as it is."""

    @contextmanager
    def compile(pipe, **options):
        graphs = []

        def count(graph, inputs):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        topi.compile(pipe, backend=count, **options)
        try:
            yield graphs
        finally:
            for block in adapter_for(pipe).blocks:
                vars(block).pop("forward", None)

    return compile


def lengths(method):
    return {len(record.kept) for record in method.trace if record.kept is not None}


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_few_graphs_for_any_number_of_tokens(tiny, compiled, kind):
    pipe, call = tiny(kind)
    methods = [ToPi(tau=tau, **small) for tau in (0.4, 0.6, 0.8)]

    def run():
        for method in methods:
            with method(pipe):
                yield pipe(**call(steps=3)).images

    plain = list(run())
    with compiled(pipe) as graphs:
        outputs = list(run())
    assert len(set.union(*map(lengths, methods))) == 3
    assert 1 <= len(graphs) <= 3
    for one, other in zip(plain, outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_rounded_lengths_repeat(flux, compiled):
    """Static graphs serve other masks of the same, rounded, number of tokens."""
    pipe, call = flux
    with compiled(pipe, dynamic=False) as graphs:
        count = []
        for tau in (0.3, 0.5):
            with ToPi(tau=tau, round_to=32, **small)(pipe) as method:
                pipe(**call(steps=3))
            assert lengths(method) == {32}
            count.append(len(graphs))
    assert count[0] == count[1] > 3


@pytest.mark.parametrize(
    "method",
    [
        ToPi(tau=0.7, **small) + TeaCache(coefficients=(1.0, 0.0), ceiling=9.0),
        ToMeSD(),
        RandomTokens(front_layers=3),
    ],
    ids=["topi+teacache", "tomesd", "random"],
)
def test_every_kind_of_method(flux, compiled, method):
    pipe, call = flux
    with method(pipe, trim_last=True):
        plain = pipe(**call(steps=4)).images
    with compiled(pipe), method(pipe, trim_last=True):
        torch.testing.assert_close(pipe(**call(steps=4)).images, plain, rtol=0, atol=1e-6)


class TestOrder:
    def test_not_while_a_method_is_attached(self, flux):
        with Full()(flux[0]), pytest.raises(ToPiError, match="leave its `with` block, compile"):
            topi.compile(flux[0])

    def test_twice_is_once(self, flux, compiled):
        pipe, _ = flux
        with compiled(pipe):
            forwards = [block.forward for block in adapter_for(pipe).blocks]
            assert all(isinstance(forward, CompiledForward) for forward in forwards)
            assert topi.compile(pipe) is pipe
            assert [block.forward for block in adapter_for(pipe).blocks] == forwards


@contextmanager
def around_hooks(modules, backend="eager"):
    for module in modules:
        module.compile(backend=backend)
    try:
        yield
    finally:
        for module in modules:
            module._compiled_call_impl = None


eagerly = partial(torch.compile, backend="eager")


@contextmanager
def compiled_forward(modules, compile=eagerly):
    """`module.forward = compile(module.forward)`."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = compile(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


@contextmanager
def offload(modules, offloaded):
    """accelerate's hooks on the modules, if at all."""
    modules = modules if offloaded else ()
    own = [module for module in modules if "forward" in vars(module)]
    for module in modules:
        add_hook_to_module(module, AccelerateHook())
    try:
        yield
    finally:
        for module in modules:
            remove_hook_from_module(module)
            if module not in own:
                vars(module).pop("forward")  # accelerate leaves the bound method


class TestBlocksOfTheUser:
    """`block.forward = torch.compile(block.forward)` before a method comes."""

    @pytest.mark.parametrize("offloaded", [False, True])
    def test_they_are_as_good(self, flux, offloaded):
        pipe, call = flux
        blocks, method = adapter_for(pipe).blocks, ToPi(tau=0.7, **small)
        with method(pipe):
            plain = pipe(**call(steps=3)).images
        torch._dynamo.reset()
        with compiled_forward(blocks), offload(blocks, offloaded), method(pipe):
            torch.testing.assert_close(pipe(**call(steps=3)).images, plain, rtol=0, atol=1e-6)
        assert method.trace[2].kept

    def test_compile_takes_what_is_inside(self, flux, compiled):
        pipe, _ = flux
        blocks = adapter_for(pipe).blocks
        originals = [block.forward for block in blocks]
        with compiled_forward(blocks), compiled(pipe):
            assert [block.forward.eager for block in blocks] == originals


class TestRefusals:
    """A method that would silently do nothing says so."""

    def test_compiled_as_a_whole_before(self, flux):
        pipe, _ = flux
        original = pipe.transformer
        pipe.transformer = torch.compile(original, backend="eager")
        try:
            for use in (topi.compile, lambda pipe: Full()(pipe).__enter__()):
                with pytest.raises(ToPiError, match=r"compiled as a whole.*topi\.compile\(pipe\)"):
                    use(pipe)
        finally:
            pipe.transformer = original

    def test_compiled_as_a_whole_afterwards(self, flux):
        pipe, call = flux
        original = pipe.transformer
        try:
            with ToPi(tau=0.7, **small)(pipe):
                pipe.transformer = torch.compile(original, backend="eager")
                with pytest.raises(ToPiError, match="compiled as a whole"):
                    pipe(**call(steps=2))
        finally:
            pipe.transformer = original

    @pytest.mark.parametrize(
        ("what", "when"), [("transformer", "before"), ("transformer", "after"), ("blocks", "after")]
    )
    @pytest.mark.parametrize("offloaded", [False, True])
    def test_compiled_forward(self, tiny, what, when, offloaded):
        """A block's own is adopted, as hooks are put around it; see `TestBlocksOfTheUser`."""
        pipe, call = tiny("flux")
        modules = {"transformer": [pipe.transformer], "blocks": adapter_for(pipe).blocks}[what]
        method = ToPi(tau=0.7, **small)
        with pytest.raises(ToPiError, match=r"topi\.compile\(pipe\)"):
            if when == "before":
                with compiled_forward(modules), offload(modules, offloaded), method(pipe):
                    pass
            else:
                with offload(modules, offloaded), method(pipe), compiled_forward(modules):
                    pipe(**call(steps=2))

    def test_what_torch_is_told_to_leave_alone_is_not_compiled(self, flux):
        pipe, call = flux
        method = ToPi(tau=0.7, **small)
        with compiled_forward([pipe.transformer], torch.compiler.disable), method(pipe):
            pipe(**call(steps=3))
        assert method.trace[-1].kept is not None

    def test_an_anchor_that_saw_nothing(self, flux):
        """However it came that no layer could be looked into."""
        pipe, call = flux
        with ToPi(tau=0.7, **small)(pipe) as method:
            method.watches = lambda call, layer: False
            with pytest.raises(
                ToPiError, match=r"Step 1 .* layers \[1, 3\].*topi\.compile\(pipe\)"
            ):
                pipe(**call(steps=3))

    @pytest.mark.parametrize("what", ["transformer", "blocks"])
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_compiled_in_place(self, flux, what, when):
        pipe, call = flux
        modules = {"transformer": [pipe.transformer], "blocks": adapter_for(pipe).blocks}[what]
        method = ToPi(tau=0.7, **small)
        with pytest.raises(ToPiError, match=r"topi\.compile\(pipe\)"):
            if when == "before":
                with around_hooks(modules), method(pipe):
                    pass
            else:
                with method(pipe), around_hooks(modules):
                    pipe(**call(steps=2))
