"""Editors run the real pipeline classes; missing weights are one sentence."""

from bisect import bisect_left
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from topi.bench.data import EditSample, MiniEdit
from topi.bench.editors.editor import PIPELINES, ModelConfig, load_editor
from topi.errors import ToPiError

TINY = dict(source="tiny", steps=2, height=128, width=128)


def tiny(kind: str, **more):
    return load_editor(dict(name=f"tiny_{kind}", kind=kind, **TINY) | more)


@pytest.mark.parametrize("kind", PIPELINES)
def test_tiny_editor_runs_the_real_pipeline_class(kind):
    editor = tiny(kind, true_cfg=4.0 if "qwen" in kind else 1.0)
    assert issubclass(type(editor.pipe), PIPELINES[kind])
    sample = MiniEdit(size=128)[0]
    image = editor.edit(sample, seed=3)
    assert image.size == (128, 128)
    assert np.array_equal(image, editor.edit(sample, seed=3))
    assert not np.array_equal(image, editor.edit(sample, seed=4))


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_sample_decides_the_size_of_its_output(kind):
    sample = MiniEdit(size=[96, 128], reference_size=[64, 96])[0]
    editor = tiny(kind)
    assert editor.edit(sample).size == (128, 96)
    free = EditSample("x", sample.category, sample.task, sample.instruction, sample.references)
    assert editor.edit(free).size == (128, 128)  # that of the model


def test_instruction_matters_to_a_tiny_editor():
    editor = tiny("kontext")
    samples = [MiniEdit(size=128)[i] for i in (0, 1)]
    same_picture = [
        EditSample("x", s.category, s.task, s.instruction, samples[0].references) for s in samples
    ]
    first, second = (np.asarray(editor.edit(s)) for s in same_picture)
    assert not np.array_equal(first, second)


def test_registered_layers_reach_the_transformer():
    editor = tiny("kontext", representative_layers=[1, 3])
    assert list(editor.transformer.config["representative_layers"]) == [1, 3]


def test_several_references_need_the_plus_pipeline():
    red, blue = (Image.new("RGB", (128, 128), c) for c in ("red", "blue"))
    sample = EditSample("two", "local_edit", "add", "use both", (red, blue))
    for kind in ("qwen_edit_plus", "flux2"):
        assert tiny(kind).edit(sample).size == (128, 128)
    with pytest.raises(ToPiError, match=r"has 2 references.*flux2 or qwen_edit_plus"):
        tiny("qwen_edit").edit(sample)


def test_kontext_gets_several_references_side_by_side():
    red, blue = (Image.new("RGB", (128, 128), c) for c in ("red", "blue"))
    sample = EditSample("two", "local_edit", "add", "use both", (red, blue), size=(128, 128))
    (wide,) = tiny("kontext").references(sample)
    assert wide.size == (256, 128)
    assert wide.getpixel((127, 0)) == (255, 0, 0) and wide.getpixel((128, 0)) == (0, 0, 255)
    assert tiny("kontext").edit(sample).size == (128, 128)


def test_a_photograph_is_brought_to_what_the_model_knows():
    """As FluxKontextPipeline brings it to about a megapixel."""
    photo = Image.effect_noise((1024, 768), 80)
    sample = EditSample("photo", "local_edit", "add", "add a cat", (photo,))
    (reference,) = tiny("kontext").references(sample)
    assert reference.size == (144, 112)  # of 128 x 128 pixels, nearly 4:3, in multiples of eight
    assert tiny("kontext").edit(sample).size == (128, 128)
    drawn = MiniEdit("evaluation", "mixed")[1]  # knows its size
    assert tiny("kontext").references(drawn)[0].size == drawn.references[0].size != (128, 128)


def test_truncated_reference_is_named(tmp_path):
    file = tmp_path / "a.png"
    Image.effect_noise((128, 128), 80).save(file)
    file.write_bytes(file.read_bytes()[:3000])
    lazy = Image.open(file)  # PIL notices the damage when the pixels are read
    sample = EditSample("broken-one", "local_edit", "add", "x", (lazy,))
    with pytest.raises(ToPiError, match="broken-one cannot be read"):
        tiny("kontext").edit(sample)


@pytest.mark.parametrize(
    "kind, size, words",
    [
        ("flux2", (48, 48), "48 x 48 pixels: each side needs at least 64"),
        ("flux2", (1000, 100), "1000 x 100 pixels: the longer side may be at most 8 times"),
        ("kontext", (4000, 30), "4000 x 30 pixels, scaled to 1480 x 8: each side needs at least"),
        ("qwen_edit", (6500, 64), "6500 x 64 pixels: it is too narrow once it is resized"),
        ("qwen_edit_plus", (64, 6500), "64 x 6500 pixels: it is too narrow once it is resized"),
    ],
)
def test_a_picture_that_the_pipeline_refuses_is_named(kind, size, words):
    sample = EditSample("thin", "local_edit", "add", "x", (Image.new("RGB", size),))
    editor = tiny(kind)
    with pytest.raises(
        ToPiError, match=f"sample thin has a reference that {editor.name} .*{words}"
    ):
        editor.edit(sample)


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_limits_are_those_of_the_pipeline(kind, monkeypatch):
    editor = tiny(kind)

    def refused(width):
        with suppress(ToPiError):
            return editor.check_sizes("x", [(width, 64)])
        return True

    widths = range(64, 20_000)
    limit = widths[bisect_left(widths, True, key=lambda width: bool(refused(width)))]
    thin, thinner = (
        EditSample("x", "local_edit", "add", "x", (Image.new("RGB", (width, 64)),))
        for width in (limit - 1, limit + 64)
    )
    assert editor.edit(thin).size == (128, 128)
    monkeypatch.setattr(editor, "check_sizes", lambda *given: None)
    with pytest.raises((ValueError, ZeroDivisionError, RuntimeError)):
        editor.edit(thinner)


def test_a_reference_of_any_mode_is_on_white():
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    deep = Image.new("I;16", (64, 64), 128 * 257)
    sample = EditSample("x", "local_edit", "add", "x", (clear, deep))
    shown = [image.getpixel((0, 0)) for image in tiny("flux2").references(sample)]
    assert shown == [(255, 255, 255), (128, 128, 128)]


def test_missing_weights_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = dict(name="flux_kontext", kind="kontext", source="hub", steps=40, height=64, width=64)
    with pytest.raises(ToPiError) as caught:
        load_editor(config | {"hub_id": str(tmp_path / "nowhere"), "dtype": "bfloat16"})
    message = str(caught.value)
    assert "flux_kontext" in message and "hf download" in message and "model.hub_id" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "sdxl"}, "choose from kontext, flux2, qwen_edit, qwen_edit_plus"),
        ({"source": "disk"}, "choose from hub, standin, tiny"),
        ({"offload": "all"}, "choose from none, model, sequential"),
        ({"dtype": "float33"}, "no torch dtype"),
        ({"steps": 0}, "at least 1"),
        ({"kind": "flux2", "source": "random"}, "not for flux2 yet"),
        ({"stepz": 4}, "unknown model fields.*stepz"),
    ],
)
def test_bad_configuration_is_refused(change, words):
    with pytest.raises(ToPiError, match=words):
        load_editor(dict(name="t", kind="kontext", **TINY) | change)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to offload from")
def test_offload_without_gpu_is_refused():
    with pytest.raises(ToPiError, match="needs a GPU"):
        tiny("kontext", offload="model")


def test_config_defaults_are_the_papers():
    config = ModelConfig("m", "kontext", "tiny", steps=1, height=64, width=64)
    assert config.front_layers == 10


def test_two_models_of_the_same_weights_have_a_calibration_each():
    files = {
        name: load_editor(
            dict(name=name, kind=kind, options={"weights": "qwen_standin"}, **TINY)
            | {"source": "standin"}
        ).calibration_file
        for name, kind in (("qwen_standin", "qwen_edit"), ("plus", "qwen_edit_plus"))
    }
    assert [file.name for file in files.values()] == ["calibration.json", "calibration_plus.json"]
    assert len({file.parent for file in files.values()}) == 1
