"""Pipelines that paint into a picture: they start later, and the picture keeps its size."""

from dataclasses import dataclass, field

import pytest
import torch
from diffusers import (
    Flux2KleinInpaintPipeline,
    FluxKontextInpaintPipeline,
    QwenImageEditInpaintPipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint
from PIL import Image

from topi import DownscaledRef, FewerSteps
from topi.engine.flops import count_trace
from topi.errors import ToPiError
from topi.methods import Method
from topi.models.tiny import random_image

CLASSES = {"flux": FluxKontextInpaintPipeline, "qwen": QwenImageEditInpaintPipeline}
CLASSES["flux2"] = Flux2KleinInpaintPipeline


@pytest.fixture
def inpaint(tiny, monkeypatch):
    """`inpaint(kind)` -> the pipeline and a maker of its arguments: 8 steps, of which 7 run."""
    monkeypatch.setattr(
        pipeline_qwenimage_edit_inpaint, "calculate_dimensions", lambda *_: (128, 128, None)
    )

    def made(kind):
        stock, call = tiny(kind)
        pipe = CLASSES[kind](**stock.components)
        pipe.set_progress_bar_config(disable=True)
        picture, mask = random_image((128, 128), 3), Image.new("L", (128, 128))
        mask.paste(255, (32, 32, 96, 96))
        own = {"image": picture, "mask_image": mask, "strength": 0.8}

        def arguments(**more):
            return call(steps=8, references=[picture], cfg=False) | own | more

        return pipe, arguments

    return made


@dataclass
class Watch(Method):
    """Notes what a method is told about the steps."""

    seen: list = field(default_factory=list, init=False)

    def begin(self, call):
        self.seen.append((call.step, call.n_steps))


@pytest.mark.parametrize("kind", CLASSES)
def test_methods_are_told_the_steps_that_run(inpaint, kind):
    pipe, call = inpaint(kind)
    with Watch()(pipe) as method:
        pipe(**call())
    assert method.seen == [(step, 7) for step in range(7)]


@pytest.mark.parametrize("kind", CLASSES)
def test_fewer_steps_are_a_share_of_those_that_run(inpaint, kind):
    pipe, call = inpaint(kind)
    plain = pipe(**call()).images
    before = set(vars(pipe)), set(vars(pipe.scheduler))
    with FewerSteps(share=1.0)(pipe) as method:
        assert torch.equal(pipe(**call()).images, plain)
    assert len(method.trace) == 7
    first = float(pipe.scheduler.timesteps[1])  # one step is left out
    with FewerSteps(share=0.5)(pipe) as method:
        few = pipe(**call()).images
    assert (set(vars(pipe)), set(vars(pipe.scheduler))) == before
    assert few.shape == plain.shape and not torch.equal(few, plain)
    assert [record.stands_for for record in method.trace] == [1, 2, 2, 2]
    assert float(pipe.scheduler.timesteps[0]) == pytest.approx(first)
    assert count_trace(pipe.transformer, method.trace).speedup == pytest.approx(7 / 4)


def test_the_shrunken_reference_is_apart_from_the_picture(inpaint):
    pipe, call = inpaint("flux")
    plain, own = pipe(**call()).images, set(vars(pipe))
    wide = random_image((160, 96), 4)
    for more, full, small in (({}, (8, 8), (4, 4)), ({"image_reference": wide}, (6, 10), (3, 5))):
        with DownscaledRef(scale=0.5)(pipe) as method:
            assert pipe(**call(**more)).images.shape == plain.shape
        record = method.trace[0]
        assert record.layout.reference_grids == (small,)
        assert record.full_layout.reference_grids == (full,)
        assert record.layout.target_grid == (8, 8)
        assert set(vars(pipe)) == own
    with DownscaledRef(scale=1.0)(pipe):
        assert torch.equal(pipe(**call()).images, plain)


@pytest.mark.parametrize("kind", ["qwen", "flux2"])
def test_a_reference_that_is_painted_into_is_not_resized(inpaint, kind):
    pipe, _ = inpaint(kind)
    own, name = set(vars(pipe)), CLASSES[kind].__name__
    with pytest.raises(ToPiError, match=f"{name} .*must keep its size"), DownscaledRef()(pipe):
        pass
    assert set(vars(pipe)) == own
