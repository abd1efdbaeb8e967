"""The shipped stand-in: the real pipeline class, whole weights, and an editor that edits."""

import json

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from topi.bench.data import MiniEdit
from topi.bench.data.mini_edit import draw_pair
from topi.bench.data.mini_edit_plus import MiniEditPlus
from topi.bench.editors import standin
from topi.bench.editors.editor import load_editor
from topi.bench.editors.standin import BlockTransformVAE, ConvVAE, load_parts
from topi.bench.editors.standin.latents import VideoVAE, unpack
from topi.bench.editors.standin.qwen_standin import new_qwen_transformer, qwen_pipeline
from topi.bench.editors.text import TEXT_DIM, TEXT_TOKENS, PromptCache
from topi.bench.results.calibration_file import read_calibration
from topi.bench.standins.card_measures import TAUS
from topi.bench.standins.card_pictures import recorded_edits, recording
from topi.bench.standins.model_card import bars, rendered
from topi.bench.studies.held_out import held_out_rows
from topi.errors import ToPiError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def editor():
    settings = dict(source="standin", steps=20, height=128, width=128)
    return load_editor(dict(name="kontext_standin", kind="kontext", **settings))


QWEN = dict(source="standin", steps=10, height=128, width=128, true_cfg=1.5, negative_prompt=" ")


@pytest.fixture(scope="module")
def qwen_editor():
    return load_editor(dict(name="qwen_standin", kind="qwen_edit", **QWEN))


@pytest.fixture(scope="module")
def plus_editor():
    named = dict(name="qwen_plus_standin", options={"weights": "qwen_standin"})
    return load_editor(named | dict(kind="qwen_edit_plus", **QWEN))


def test_block_transform_is_an_autoencoder():
    vae = BlockTransformVAE()
    assert torch.allclose(vae.basis @ vae.basis.T, torch.eye(64), atol=1e-5)
    images = torch.stack([torch.from_numpy(draw_pair("train", k, 64)[0]) for k in range(8)])
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    vae.fit(images)
    error = (vae.decode(vae.encode(images).latents).sample - images).square().mean() / 4
    assert -10 * torch.log10(error) > 30
    tokens = vae.to_tokens(images)
    assert torch.allclose(vae.to_tokens(vae.to_images(tokens, (8, 8))), tokens, atol=1e-3)
    assert tokens.square().mean() == pytest.approx(1, abs=0.8)


def test_latents_pack_into_one_token_per_patch():
    vae, images = BlockTransformVAE(), torch.randn(2, 3, 64, 48)
    latents = vae.encode(images).latents
    assert latents.shape == (2, 16, 16, 12)
    packed = FluxKontextPipeline._pack_latents(latents, 2, 16, 16, 12)
    assert torch.equal(packed, vae.to_tokens(images))


def test_prompts_through_the_pipeline_equal_those_of_training(editor):
    prompts = ["make it snow", "replace the red ball with a blue house"]
    hidden, pooled, _ = editor.pipe.encode_prompt(prompts, None, max_sequence_length=512)
    cached_hidden, cached_pooled = PromptCache()(prompts)
    assert hidden.shape == (2, TEXT_TOKENS, TEXT_DIM)
    assert torch.allclose(hidden, cached_hidden, atol=1e-4)
    assert torch.allclose(pooled, cached_pooled, atol=1e-4)


def test_shipped_weights_are_of_the_real_architecture(editor):
    assert type(editor.pipe) is FluxKontextPipeline
    transformer = editor.transformer
    assert 5e6 <= sum(p.numel() for p in transformer.parameters()) <= 8e6
    assert standin.weights_file().stat().st_size <= 20 * 2**20
    assert transformer.config.guidance_embeds
    dual, single = transformer.config.num_layers, transformer.config.num_single_layers
    assert single == 2 * dual  # the proportion of FLUX.1-Kontext, 19 : 38
    layers = transformer.config["representative_layers"]
    assert len(layers) == 3 and set(layers) <= set(range(dual + single))


def test_shipped_model_makes_the_edits_it_is_asked_for(editor):
    rows = held_out_rows(editor, [MiniEdit("evaluation")[i] for i in range(8)])
    gains = {r["category"]: [] for r in rows}
    for row in rows:
        gains[row["category"]].append(row["psnr_changed"] - row["copy_psnr_changed"])
    # Where the true edit changes something, against handing back the reference.
    assert all(np.mean(gain) > 2 for gain in gains.values()), gains


def test_the_second_model_makes_the_edits_it_is_asked_for(qwen_editor):
    assert type(qwen_editor.pipe).__name__ == "QwenImageEditPipeline"
    # the first of each category, but for a new object, which the card says it draws badly
    rows = held_out_rows(qwen_editor, [MiniEdit("evaluation")[i] for i in (0, 1, 2, 7)])
    assert len({row["category"] for row in rows}) == 4
    gains = [row["psnr_changed"] - row["copy_psnr_changed"] for row in rows]
    assert min(gains) > 2, gains


def test_guidance_means_something(qwen_editor):
    """The negative prompt counts: without it, and so without guidance, the edit is another one."""
    sample = MiniEdit("evaluation")[1]
    guided = qwen_editor.arguments(sample, 0)
    images = [
        qwen_editor.pipe(**{**qwen_editor.arguments(sample, 0), "true_cfg_scale": scale}).images[0]
        for scale in (guided["true_cfg_scale"], 1.0)
    ]
    assert guided["true_cfg_scale"] > 1
    assert np.abs(np.subtract(*(np.asarray(image, int) for image in images))).max() > 8


def test_the_second_model_takes_from_a_second_image(plus_editor):
    assert type(plus_editor.pipe).__name__ == "QwenImageEditPlusPipeline"
    rows = held_out_rows(plus_editor, [MiniEditPlus("evaluation")[i] for i in (1, 3)])
    assert [row["task"] for row in rows] == ["visual_material_transfer"] * 2
    gains = [row["psnr_changed"] - row["copy_psnr_changed"] for row in rows]
    assert min(gains) > 5, gains


@pytest.mark.parametrize("fixture", ["editor", "qwen_editor", "plus_editor"])
def test_recorded_edits_are_repeated(fixture, request):
    """In fp32, machines differ by the order of sums: hardly a level of 255, at edges a few."""
    editor = request.getfixturevalue(fixture)
    folder = standin.weights_folder(editor.config.options.get("weights", editor.name))
    recorded = np.asarray(Image.open(recording(editor.name, folder)), int)
    difference = np.abs(np.asarray(recorded_edits(editor), int) - recorded)
    assert difference.mean() < 0.1 and difference.max() <= 8


@pytest.mark.parametrize("name", ["kontext_standin", "qwen_standin"])
def test_shipped_layers_were_calibrated_on_these_weights(name, editor, qwen_editor):
    editor = {"kontext_standin": editor, "qwen_standin": qwen_editor}[name]
    found = read_calibration(standin.weights_folder(name) / "calibration.json")
    assert found.origin["weights"] == editor.fingerprint()
    assert list(found.layers) == list(editor.transformer.config["representative_layers"])


def test_weights_are_light():
    weights = standin.weights_folder("").rglob("*.safetensors")
    assert sum(file.stat().st_size for file in weights) <= 40e6


@pytest.mark.parametrize(("name", "samples"), [("kontext_standin", 512), ("qwen_standin", 96)])
def test_model_card_is_of_these_weights(name, samples, editor, qwen_editor):
    editor = {"kontext_standin": editor, "qwen_standin": qwen_editor}[name]
    folder = standin.weights_folder(name)
    card = json.loads((folder / "card.json").read_text())
    assert card["weights"] == editor.fingerprint()
    assert list(card["pruning"]["tau"]) == [f"tau={tau}" for tau in TAUS]
    assert card["quality"]["samples"] >= samples and card["calibration"]["samples"] >= 48
    assert tuple(card["calibration"]["layers"]) == tuple(
        editor.transformer.config["representative_layers"]
    )
    # Nobody edits the numbers by hand.
    assert (folder / "README.md").read_text() == rendered(folder)


def test_kontext_standin_is_deep_and_edits_well(editor):
    """One dual-stream block to two others, as FLUX has them, and layers enough to choose from."""
    config = editor.transformer.config
    assert (config.num_layers, config.num_single_layers) == (4, 8)
    card = json.loads((standin.weights_folder("kontext_standin") / "card.json").read_text())
    missed = [row["name"] for row in bars(card) if row["measured"] < row["bar"]]
    assert len(bars(card)) == 7 and not missed


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(ToPiError, match=r"python -m topi\.bench\.standins model=qwen_standin"):
        load_parts(tmp_path / "qwen_standin")


@pytest.mark.parametrize("several", [False, True])
def test_qwen_prompts_through_the_pipeline_equal_those_of_training(several):
    pipe = qwen_pipeline(new_qwen_transformer(2, layers=1), BlockTransformVAE(), several)
    prompts = ["make it snow", " "]
    image = Image.new("RGB", (64, 64))
    hidden, mask = pipe.encode_prompt(prompts, [image, image] if several else image)
    assert mask is None  # no padding: every prompt has TEXT_TOKENS states
    assert torch.allclose(hidden, PromptCache()(["make it snow", ""])[0], atol=1e-4)


def test_trained_autoencoder_packs_like_the_block_transform():
    vae, images = ConvVAE(width=8, blocks=1).eval(), torch.rand(4, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        vae.fit(images)
        latents = vae.encode(images).latents
        assert latents.shape == (4, 16, 8, 12)
        assert torch.allclose(latents.std((0, 2, 3)), torch.ones(16), atol=1e-3)
        tokens = vae.to_tokens(images)
        assert torch.equal(unpack(tokens, (4, 6)), latents)
        assert torch.equal(vae.to_images(tokens, (4, 6)), vae.decode(latents).sample)
        touched = images.clone()
        touched[0, :, :8, :8] = 1  # the pixels of the first token
        moved = (vae.to_tokens(touched) - tokens)[0].abs().amax(-1) > 0
    assert moved.sum() > 1  # its neighbours see them


def test_video_vae_adds_a_frame_axis():
    image, images = BlockTransformVAE(), torch.randn(2, 3, 1, 16, 24)
    vae = VideoVAE.around(image)
    latents = vae.encode(images).latents
    assert latents.shape == (2, 16, 1, 4, 6)
    assert torch.equal(latents[:, :, 0], image.encode(images[:, :, 0]).latents)
    assert torch.equal(vae.decode(latents).sample[:, :, 0], image.decode(latents[:, :, 0]).sample)
