"""A training run learns, resumes exactly and ships loadable weights; it samples as the pipeline."""

import hashlib
import json
from dataclasses import replace

import lightning as L
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from topi.bench.config.schema import ConfigError
from topi.bench.editors.standin import FAMILIES, load_parts, load_standin
from topi.bench.standins import precision, run, training_config
from topi.bench.standins.module import EditorTraining
from topi.bench.standins.stream import Draw, draw_batch
from topi.bench.standins.training_config import PRECISIONS, compose_training

pytestmark = pytest.mark.slow

KINDS = ("kontext", "qwen_edit")


@pytest.fixture(autouse=True)
def one_thread():
    """Several may sum products in an order of the moment; one repeats bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def composed(*overrides: str) -> training_config.TrainingConfig:
    return compose_training(overrides)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(train, finished, monkeypatch, kind):
    whole = load_file(finished(kind, "whole") / "model.safetensors")
    step = EditorTraining.training_step

    def dies(self, batch, index):
        if self.index == 1 and self.global_step == 3:
            raise RuntimeError("killed")
        return step(self, batch, index)

    monkeypatch.setattr(EditorTraining, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        train(kind, "halves")
    monkeypatch.setattr(EditorTraining, "training_step", step)
    halves = load_file(train(kind, "halves") / "model.safetensors")
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[n], halves[n]) for n in whole)


def test_run_out_of_time_is_resumed_to_the_same_weights(train, finished):
    whole = load_file(finished("kontext", "whole") / "model.safetensors")
    out = train("kontext", "halves", "stop_after=0")  # one step
    assert not (out / "model.safetensors").exists() and (out / "phase-0/last.ckpt").exists()
    halves = load_file(train("kontext", "halves") / "model.safetensors")
    assert all(torch.equal(whole[n], halves[n]) for n in whole)


def test_finished_phase_is_not_trained_again(train, finished):
    averaged = finished() / "phase-0" / "averaged.safetensors"
    before = averaged.stat().st_mtime_ns
    train()
    assert averaged.stat().st_mtime_ns == before


def test_a_folder_holds_one_run(train, finished):
    finished()
    with pytest.raises(ConfigError, match=r"other settings \(phases, seed\)\. Give another out="):
        train("kontext", "out", "phases.0.lr=1e-5", "seed=1")
    train("kontext", "out", "validate_every=500", "hardware=other")  # says nothing about the run


def test_weights_shipped_again_tell_their_runs_once(train, finished, shipped):
    """A run may replace the weights that it started from."""
    shipped = shipped / "kontext_standin"
    finished("kontext", "first")
    train("kontext", "first", "ship=true")
    first = hashlib.sha256((shipped / "model.safetensors").read_bytes()).hexdigest()
    for _ in range(2):
        train("kontext", "second", "start=shipped", "ship=true")
        told = json.loads((shipped / "recipe.json").read_text())["runs"]
        assert [each["start"] for each in told] == [None, first]
        assert pd.read_csv(shipped / "curves.csv")["run"].unique().tolist() == [1, 2]
    assert told[1]["seed"] == 0 and set(told[1]["versions"]) >= {"torch", "diffusers"}
    train("kontext", "third", "start=shipped", "ship=true")
    with pytest.raises(ConfigError, match="began with other weights than start=shipped"):
        train("kontext", "second", "start=shipped", "ship=true")


def test_the_faster_precision_is_taken_and_told(train, monkeypatch):
    took = {torch.bfloat16: 2.0, torch.float32: 1.0}
    monkeypatch.setattr(precision, "product_seconds", lambda dtype, device: took[dtype])
    seen = []
    fit = L.Trainer.fit
    monkeypatch.setattr(
        L.Trainer, "fit", lambda self, *a, **k: (seen.append(self.precision), fit(self, *a, **k))[1]
    )
    train("kontext", "out", "precision=auto", "stop_after=0")
    took[torch.bfloat16] = 0.5  # the same run goes on on another machine
    out = train("kontext", "out", "precision=auto")
    assert list(dict.fromkeys(seen)) == ["32-true", "bf16-mixed"]
    told = json.loads((out / "recipe.json").read_text())["runs"][-1]
    assert told["precision"] == ["32-true", "bf16-mixed"]


def test_precisions_are_timed_on_products_of_their_own():
    seconds = [precision.product_seconds(t, "cpu") for t in (torch.bfloat16, torch.float32)]
    assert all(0 < s < 10 for s in seconds)
    assert precision.faster_precision("cpu") in PRECISIONS


def test_what_was_measured_of_the_former_weights_is_not_shipped(train, finished, shipped):
    shipped = shipped / "kontext_standin"
    finished("kontext", "first")
    train("kontext", "first", "ship=true")
    config = json.loads((shipped / "config.json").read_text())
    measured = {"representative_layers": [0, 1], "temporal_cache": {"teacache": [1.0]}}
    (shipped / "config.json").write_text(json.dumps(config | measured))
    train("kontext", "second", "start=shipped", "ship=true")
    assert json.loads((shipped / "config.json").read_text()) == config


def test_curves_are_kept_beside_a_wandb_run(tmp_path, monkeypatch):
    config = composed("logger=wandb_offline", f"out={tmp_path}")
    names = [type(logger).__name__ for logger in run.loggers_of(config, 0, 0)]
    assert names == ["CSVLogger", "WandbLogger"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert len(run.loggers_of(config, 0, 0)) == 1


def test_an_editor_of_conv_latents_brings_its_own_autoencoder(train):
    small = ["autoencoder.batch=1", "autoencoder.steps=2"]
    out = train("kontext", "out", "factor=conv_latents", *small)
    kept = out / "autoencoder.safetensors"
    assert kept.exists() and type(load_parts(out)[1]).__name__ == "ConvVAE"
    before = kept.stat().st_mtime_ns
    train("kontext", "out", "factor=conv_latents", *small)
    assert kept.stat().st_mtime_ns == before


def test_other_shapes_and_two_references_are_validated_too(train):
    phase = "{sizes: [[48, 48], [48, 64]], batch: 1, steps: 1, lr: 1e-4, references: target}"
    out = train("qwen_edit", "out", f"phases=[{phase}]", "data=mini_edit_plus")
    logged = pd.read_csv(out / "curves.csv")
    assert {"psnr_local_edit", "psnr_other_shape", "psnr_two_references"} <= set(logged.columns)
    names = {file.stem for file in out.glob("samples-0-*.png")}
    assert names == {f"samples-0-000001{k}" for k in ("", "-other_shape", "-two_references")}
    wide = Image.open(out / "samples-0-000001-two_references.png")
    assert wide.width == 6 * (2 * 48 + 2 * 48)  # two references, the edit and the true one


def test_noise_levels_are_those_of_the_phase(train, monkeypatch):
    drawn = []

    def levels(count, chance, *law):
        drawn.append(law)
        return torch.full((count,), 0.5)

    monkeypatch.setattr("topi.bench.standins.module.noise_levels", levels)
    phase = "{sizes: [[48, 48, 56, 48]], batch: 1, steps: 1, lr: 1e-4, noise_mean: 2}"
    out = train("kontext", "out", f"phases=[{phase}]")
    assert drawn == [(2.0, 1.1)]
    (told,) = json.loads((out / "recipe.json").read_text())["runs"]
    assert "1 steps of 1 at 48from56x48 px, learning rate 0.0001, noise levels" in told["training"]


def test_a_reference_with_an_unrelated_scene_is_told_in_the_recipe(train, finished):
    """The comparison of runs gives them such references too."""
    wide, plain = (
        train("kontext", "wide", "factor=irrelevant_content"),
        finished("kontext", "plain"),
    )
    train("kontext", "plain", "factor=none")  # is that run
    for out, references in ((wide, 2), (plain, 1)):
        recipe = json.loads((out / "recipe.json").read_text())
        assert recipe["references"] == references


def test_training_lowers_the_loss(train, finished, prompts, tmp_path):
    more = "phases=[{sizes: [[48, 48]], batch: 4, steps: 20, lr: 0.01, lr_end: 0.0}]"
    out = train("kontext", "out", "start=" + str(finished("kontext", "first")), more, "ema=0.5")
    batch = draw_batch(Draw([(48, 48)], 32, FAMILIES["kontext"].reference_size), 0, 99)
    losses = []
    for folder in ("first", "out"):
        transformer, vae = load_parts(out.parent / folder)
        module = EditorTraining(FAMILIES["kontext"], transformer, vae, prompts, tmp_path)
        module.log = lambda *args, **kwargs: None
        losses.append(float(module.training_step(batch, 0)))
    assert losses[1] < losses[0]
    told = json.loads((out / "recipe.json").read_text())
    logged = pd.read_csv(out / "curves.csv")
    assert logged.groupby(["run", "phase"]).ngroups == 3 and logged["run"].is_monotonic_increasing
    assert Image.open(out / "curves.png").size == (1050, 360)
    assert (logged.groupby(["run", "phase"])["psnr_local_edit"].count() > 0).all()
    assert len(told["runs"]) == 2 and "20 steps of 4 at 48 px" in told["runs"][1]["training"]


def test_a_qwen_stand_in_starts_as_a_kontext_one(train, finished, monkeypatch):
    """And sees references of the target's size, if it is told so."""
    first = finished("kontext", "first")
    sizes = []
    encode = EditorTraining.encode

    def looks(self, batch):
        sizes.append((batch.edited.shape[1:3], batch.references[0].shape[1:3]))
        return encode(self, batch)

    monkeypatch.setattr(EditorTraining, "encode", looks)
    phase = "{sizes: [[48, 48]], batch: 2, steps: 1, lr: 0.0, references: %s}"
    phases = ", ".join(phase % name for name in ("target", "pipeline"))
    out = train("qwen_edit", "out", f"start={first}", f"phases=[{phases}]")
    assert {((48, 48), (48, 48)), ((48, 48), (128, 128))} == set(sizes)
    old, new = (load_file(folder / "model.safetensors") for folder in (first, out))
    assert torch.equal(
        new["transformer.transformer_blocks.2.img_mlp.net.0.proj.weight"],
        old["transformer.single_transformer_blocks.1.proj_mlp.weight"],
    )
    assert all(torch.equal(new[n], old[n]) for n in old if n.startswith("vae."))
    told = json.loads((out / "recipe.json").read_text())
    assert told["architecture"].startswith("3 dual-stream blocks, 2 heads of 32")
    assert len(told["runs"]) == 2
    with pytest.raises(ConfigError, match="only a Qwen stand-in can start as a Kontext one"):
        train("kontext", "other", f"start={out}")


def test_a_start_may_be_the_mean_of_several(train, finished):
    """Which tells what led to each, and what led to both only once."""
    still = "phases=[{sizes: [[48, 48]], batch: 2, steps: 1, lr: 0.0}]"
    first = finished("kontext", "first")
    second = train("qwen_edit", "second", f"start={first}", "phases.0.lr=0.3", "ema=0.1")
    out = train("qwen_edit", "out", f"start={first}+{second}", still)
    old, new, mean = (load_file(folder / "model.safetensors") for folder in (first, second, out))
    name = "transformer_blocks.2.img_mlp.net.0.proj.weight"
    converted = old["transformer.single_transformer_blocks.1.proj_mlp.weight"].float()
    both = (converted + new[f"transformer.{name}"].float()) / 2
    torch.testing.assert_close(mean[f"transformer.{name}"].float(), both, atol=2e-4, rtol=1e-3)
    assert (both - converted).abs().mean() > 0.001
    told = json.loads((out / "recipe.json").read_text())["runs"]
    before = json.loads((second / "recipe.json").read_text())["runs"]
    assert len(told) == 3 and told[:2] == before
    hashes = [hashlib.sha256((f / "model.safetensors").read_bytes()) for f in (first, second)]
    assert told[2]["start"] == "+".join(h.hexdigest() for h in hashes)
    logged = pd.read_csv(out / "curves.csv")
    assert logged["run"].unique().tolist() == [1, 2, 3]
    assert not logged.duplicated(["run", "phase", "step"]).any()
    shallower = finished("qwen_edit", "shallower")
    with pytest.raises(ConfigError, match="different shapes or latents"):
        train("qwen_edit", "refused", f"start={second}+{shallower}")


@pytest.mark.parametrize("kind", ["kontext", "qwen_edit", "qwen_edit_plus"])
def test_shipped_weights_edit_in_the_stock_pipeline_as_in_training(
    train, finished, shipped, prompts, tmp_path, kind
):
    """Odd grids, references of another size, guidance: the samples are the same."""
    family_kind = "kontext" if kind == "kontext" else "qwen_edit"
    finished(family_kind, "out")
    train(family_kind, "out", "ship=true")
    name = {"kontext": "kontext_standin", "qwen_edit": "qwen_standin"}[family_kind]
    transformer, vae = load_parts(tmp_path / "shipped" / name)
    pipe = load_standin(name, kind)
    family = FAMILIES[family_kind]
    guidance = 1.0 if kind == "kontext" else 2.0
    module = EditorTraining(family, transformer, vae, prompts, tmp_path, guidance=guidance)
    batch = draw_batch(Draw([(104, 152)], 1, family.reference_size), 0)
    if kind == "qwen_edit_plus":
        second = draw_batch(Draw([(128, 128)], 1, family.reference_size), 1)
        references = (*batch.references, *second.references)
        batch = replace(batch, references=references)
    with torch.no_grad():
        ours = module.eval().edit(batch, steps=3, seed=5)
    noise = torch.randn(1, 13 * 19, 64, generator=torch.Generator().manual_seed(5))
    pictures = [Image.fromarray(r[0].numpy()) for r in batch.references]
    arguments = dict(prompt=batch.prompts[0], height=104, width=152, num_inference_steps=3)
    if kind == "kontext":
        arguments |= dict(max_area=104 * 152, _auto_resize=False, guidance_scale=2.5)
    else:
        arguments |= dict(true_cfg_scale=guidance, negative_prompt=" ")
    image = pictures if kind == "qwen_edit_plus" else pictures[0]
    theirs = pipe(image=image, latents=noise, output_type="pt", **arguments).images
    assert torch.allclose((ours + 1) / 2, theirs, atol=2e-3)
