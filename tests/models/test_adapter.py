"""The contract every registered adapter fulfils, and what each reads from its pipeline."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from diffusers import Flux2KleinKVPipeline

from topi import Full, ToPi
from topi.engine import Plan
from topi.errors import ToPiError
from topi.methods import Method
from topi.models import ADAPTERS, Layout, adapter_for
from topi.models.flux import image_grids
from topi.models.rebind import rebind
from topi.models.tiny import random_image

PIPELINES = {
    "FluxTransformer2DModel": ["flux"],
    "Flux2Transformer2DModel": ["flux2"],
    "QwenImageTransformer2DModel": ["qwen", "qwen_plus"],
}


def transformer_calls(pipe, arguments):
    """The keyword arguments of every transformer call of one pipeline call."""
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    pipe(**arguments)
    hook.remove()
    return calls


def block_calls(pipe, kwargs):
    """The keyword arguments of every block in one transformer call."""
    calls = []
    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
        )
        for block in adapter_for(pipe).blocks
    ]
    with torch.no_grad():
        pipe.transformer(**kwargs)
    for hook in hooks:
        hook.remove()
    return calls


def test_every_adapter_has_a_pipeline_to_be_tested_on():
    assert set(PIPELINES) == set(ADAPTERS)


@pytest.fixture(params=[kind for kinds in PIPELINES.values() for kind in kinds])
def model(request, tiny):
    return tiny(request.param)


class TestContract:
    def test_blocks_are_all_layers_in_order(self, model):
        pipe, _ = model
        adapter = adapter_for(pipe)
        assert adapter.facts.depth == len(adapter.blocks) == 6
        assert adapter.blocks[0] is pipe.transformer.transformer_blocks[0]

    def test_layout_covers_the_image_stream(self, model):
        pipe, call = model
        for kwargs in transformer_calls(pipe, call(steps=1)):
            layout = adapter_for(pipe).layout(kwargs)
            assert layout.n_image == kwargs["hidden_states"].shape[1]
            assert layout.n_text == kwargs["encoder_hidden_states"].shape[1]
            assert layout.target_grid == (8, 8)
            assert layout.references.stop == layout.n_text + layout.n_image
            assert layout.reference_slices[-1].stop == layout.n_reference

    def test_positions_are_one_object_per_pipeline_call(self, model):
        pipe, call = model
        adapter = adapter_for(pipe)
        one, two = (transformer_calls(pipe, call(steps=2)) for _ in range(2))
        assert len({id(adapter.positions(kwargs)) for kwargs in one}) == 1
        assert adapter.positions(one[0]) is not adapter.positions(two[0])

    def test_rope_rows_are_gathered_behind_the_text(self, model):
        pipe, call = model
        adapter = adapter_for(pipe)
        kwargs = transformer_calls(pipe, call(steps=1))[0]
        layout = adapter.layout(kwargs)
        rope = block_calls(pipe, kwargs)[0]["image_rotary_emb"]
        everything = adapter.gather_rope(rope, torch.arange(layout.n_image), layout.n_text)
        assert all(torch.equal(a, b) for a, b in zip(everything, rope, strict=True))
        rows = torch.tensor([0, 5, layout.n_image - 1])
        some = adapter.gather_rope(rope, rows, layout.n_text)
        full, kept = (sum(len(part) for part in parts) for parts in (rope, some))
        dropped = (layout.n_image - 3) * (2 if len(rope[0]) == len(rope[1]) else 1)
        assert kept == full - dropped
        assert torch.equal(some[0][-1], rope[0][-1])

    def test_merge_points_lie_in_their_block(self, model):
        adapter = adapter_for(model[0])
        for layer, block in enumerate(adapter.blocks):
            points = adapter.merge_points(layer)
            modules = {id(module) for module in block.modules()}
            for module in (points.attention, points.norm, points.projection):
                assert module is None or id(module) in modules

    def test_full_and_keep_all_change_nothing(self, model):
        pipe, call = model
        plain = pipe(**call()).images
        for method in (Full(), ToPi(tau=1.0, front_layers=1, layers=(1, 3), first_anchor=1)):
            with method(pipe):
                assert torch.equal(pipe(**call()).images, plain)

    def test_pruned_run_computes_fewer_tokens_from_the_front_layers_on(self, model):
        pipe, call = model

        class Third(Method):
            def plan(self, call, layer=0):
                return Plan(torch.arange(0, call.layout.n_reference, 3), from_layer=2)

        kwargs = transformer_calls(pipe, call(steps=1))[0]
        layout = adapter_for(pipe).layout(kwargs)
        lengths = []

        def look(module, args, out):  # a single block of FLUX.2 returns the text, too
            joint = not isinstance(out, tuple)
            lengths.append(out.shape[1] - layout.n_text if joint else out[1].shape[1])

        hooks = [block.register_forward_hook(look) for block in adapter_for(pipe).blocks]
        with Third()(pipe), torch.no_grad():
            output = pipe.transformer(**kwargs)[0]
        for hook in hooks:
            hook.remove()
        kept = layout.n_target + len(range(0, layout.n_reference, 3))
        assert lengths == [layout.n_image] * 2 + [kept] * 4
        assert output.shape[1] == layout.n_image and not output[:, layout.n_target :].any()

    def test_arguments_may_be_positional(self, model):
        pipe, call = model
        kwargs = transformer_calls(pipe, call(steps=1))[0]
        names = list(inspect.signature(type(pipe.transformer).forward).parameters)[1:]
        arguments = [kwargs.get(name) for name in names[: names.index("return_dict")]]
        topi = ToPi(tau=0.5, front_layers=1, layers=(1,), first_anchor=0)
        with topi(pipe) as method, torch.no_grad():
            for _ in range(2):  # an anchor, then a pruned step
                kwargs["timestep"] = arguments[names.index("timestep")] = kwargs["timestep"] - 0.1
                arguments[0] = arguments[0].clone()  # the same ones would be the next branch's
                pipe.transformer(*arguments)
        assert [record.kept is None for record in method.trace] == [True, False]


class TestLayout:
    layout = Layout(n_text=3, target_grid=(2, 2), reference_grids=((2, 3), (1, 4)))

    def test_counts_and_slices(self):
        assert (self.layout.n_target, self.layout.n_reference, self.layout.n_image) == (4, 10, 14)
        assert (self.layout.targets, self.layout.references) == (slice(3, 7), slice(7, 17))
        assert self.layout.reference_slices == (slice(0, 6), slice(6, 10))

    def test_flux_reads_non_square_grids(self, flux):
        pipe, call = flux
        arguments = call(steps=1, size=(144, 112))
        layout = adapter_for(pipe).layout(transformer_calls(pipe, arguments)[0])
        assert (layout.target_grid, layout.reference_grids) == ((7, 9), ((7, 9),))

    def test_qwen_plus_reads_every_reference(self, qwen_plus):
        pipe, call = qwen_plus
        images = [random_image(), random_image((160, 96)), random_image((64, 256))]
        layout = adapter_for(pipe).layout(
            transformer_calls(pipe, call(steps=1, references=images))[0]
        )
        assert layout.reference_grids == ((8, 8), (6, 10), (16, 4))

    def test_flux_reads_several_references_and_batched_ids(self):
        def ids(image, rows, columns):
            cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
            return torch.cat([torch.full((len(cells), 1), image), cells], 1).bfloat16()

        sequence = torch.cat([ids(0, 4, 5), ids(1, 2, 3), ids(2, 3, 2)])
        assert image_grids(sequence) == ((4, 5), (2, 3), (3, 2))
        assert image_grids(sequence[None]) == ((4, 5), (2, 3), (3, 2))
        assert image_grids(ids(0, 4, 5)) == ((4, 5),)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.parametrize("grid", [(1, 1), (1, 300), (300, 1), (2, 260), (260, 2), (300, 270)])
    def test_grids_are_counted_as_low_precision_rounds_positions(self, grid, dtype):
        cells = torch.cartesian_prod(*map(torch.arange, grid))
        ids = torch.cat([F.pad(cells, (1, 0), value=image) for image in (0, 1)]).to(dtype)
        assert image_grids(ids) == (grid, grid)

    def test_kontext_edits_long_banners_in_bf16(self, tiny):
        pipe, call = tiny("flux", dtype=torch.bfloat16)
        arguments = call(steps=1, size=(4160, 32))
        layout = adapter_for(pipe).layout(transformer_calls(pipe, arguments)[0])
        assert (layout.target_grid, layout.reference_grids) == ((2, 260), ((2, 260),))

    def test_flux2_reads_every_reference_once_for_a_pipeline_call(self, tiny, monkeypatch):
        pipe, call = tiny("flux2")
        read = []
        monkeypatch.setattr(
            "topi.models.flux.image_grids", lambda ids: read.append(1) or image_grids(ids)
        )
        images = [random_image((160, 96)), random_image((64, 256))]
        with Full()(pipe) as method:
            for _ in range(2):
                pipe(**call(steps=3, references=images))
                for record in method.trace:
                    assert record.layout.target_grid == (8, 8)
                    assert record.layout.reference_grids == ((6, 10), (16, 4))
        assert len(read) == 2

    @pytest.mark.parametrize("kind", ["flux", "flux2"])
    def test_another_grid_of_as_many_tokens_is_seen_in_a_loop_of_ones_own(self, tiny, kind):
        """Also if the loop keeps its `txt_ids`, or writes new positions to the old tensor."""
        pipe, call = tiny(kind)
        wide, high = (
            transformer_calls(
                pipe, call(steps=1, size=size, references=[random_image((128, 128))])
            )[0]
            for size in ((256, 64), (64, 256))
        )
        adapter = adapter_for(pipe)
        assert adapter.layout(wide).target_grid == (4, 16)
        assert adapter.layout({**wide, "img_ids": high["img_ids"]}).target_grid == (16, 4)
        assert adapter.layout(wide).target_grid == (4, 16)
        wide["img_ids"].copy_(high["img_ids"])
        assert adapter.layout(wide).target_grid == (16, 4)

    @pytest.mark.parametrize("kind", ["flux", "flux2"])
    def test_positions_that_a_loop_keeps_are_read_once(self, tiny, kind, monkeypatch):
        pipe, call = tiny(kind)
        read, kwargs = [], transformer_calls(pipe, call(steps=1))[0]
        monkeypatch.setattr(
            "topi.models.flux.image_grids", lambda ids: read.append(1) or image_grids(ids)
        )
        adapter = adapter_for(pipe)
        assert adapter.layout(kwargs) == adapter.layout(dict(kwargs)) and len(read) == 1

    def test_the_pipeline_of_flux2_with_a_store_of_its_own_is_refused(self, tiny):
        pipe, call = tiny("flux2", seed=1)  # which puts processors of its own into the model
        parts = {k: v for k, v in pipe.components.items() if k != "is_distilled"}
        theirs = Flux2KleinKVPipeline(**parts)
        theirs.set_progress_bar_config(disable=True)
        arguments = call(steps=2)
        del arguments["guidance_scale"]
        refused = pytest.raises(ToPiError, match="Flux2KleinKVPipeline keeps")
        with refused, ToPi(tau=0.5, layers=(1,), front_layers=1)(theirs):
            theirs(**arguments)

    def test_flux_refuses_what_it_cannot_place(self):
        ids = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
        with pytest.raises(ToPiError, match="target tokens must come first"):
            image_grids(ids)
        rows, columns = torch.cartesian_prod(torch.arange(2), torch.arange(3)).T
        for cells in (
            [(0, 0), (1, 1)],
            [(0, 0), (0, 1), (1, 0)],
            [(0, 0), (0, 1), (1, 0), (1, 0)],
            zip(columns, rows, strict=True),  # column by column
            [(0, 0), (1, 0), (0, 0), (1, 0)],  # twice the same picture
            [(0, 0), (0, 0)],
            [(0, 0), (0, 2)],
        ):
            with pytest.raises(ToPiError, match="rectangle"):
                image_grids(torch.tensor([(0.0, *cell) for cell in cells]))


class TestRepresentativeLayers:
    @pytest.mark.parametrize(
        ("kind", "options", "layers"),
        [
            ("flux", {"dual": 19, "single": 38}, (13, 18, 31)),
            ("qwen", {"layers": 60}, (35, 37, 42)),
            ("flux", {}, None),
        ],
    )
    def test_published_for_the_real_depths_only(self, tiny, kind, options, layers):
        assert adapter_for(tiny(kind, **options)[0]).facts.representative_layers == layers

    def test_a_config_can_name_them(self, tiny):
        for depth in (3, 60):  # also where others are published
            pipe, _ = tiny("qwen", layers=depth)
            pipe.transformer.register_to_config(representative_layers=[0, 2])
            assert adapter_for(pipe).facts.representative_layers == (0, 2)
            pipe.transformer.register_to_config(representative_layers=None)


def test_unsupported_model_is_named_with_the_supported_ones():
    with pytest.raises(ToPiError, match=r"Linear is not supported.*FluxTransformer2DModel, Qwen"):
        adapter_for(torch.nn.Linear(1, 1))


def test_rebind_leaves_the_original_alone_and_refuses_unknown_names():
    def area():
        return math_pi() * 4

    area = rebind(rebind(area, math_pi=lambda: 3), math_pi=lambda: 2)
    assert area() == 8
    with pytest.raises(LookupError, match="nowhere"):
        rebind(random_image, nowhere=1)
    assert rebind(random_image, Image=None) is not random_image
    assert random_image().size == (128, 128)


def math_pi():
    raise AssertionError("only the rebound one is called")
