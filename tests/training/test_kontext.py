"""Training: a phase runs, is resumed where it was killed, and ends in loadable weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from topi.data.mini_edit import draw_pair
from topi.models import standin
from topi.training import __main__ as training
from topi.training import kontext
from topi.training.kontext import KontextTraining, collate, image_ids, to_signed, validation_batch


@pytest.fixture(scope="module")
def prompts():
    from topi.models.text import PromptCache

    return PromptCache()


@pytest.fixture
def run(monkeypatch, prompts, tmp_path):
    """Train 64 px for a few seconds, without compilation; returns the output folder."""
    monkeypatch.setattr(training, "PromptCache", lambda: prompts)
    monkeypatch.setattr(kontext, "VALIDATION_STEPS", 1)

    def start(minutes: float = 0.06, *more: str):
        quick = ["--batch", "2", "--workers", "0", "--no-compile", "--validate-every", "1000"]
        every = ["--checkpoint-every", "2", "--accelerator", "cpu"]
        training.main(["--out", str(tmp_path), "--phases", f"64:{minutes}", *quick, *every, *more])
        return tmp_path

    return start


def test_training_learns_and_its_weights_load(run, tmp_path, monkeypatch):
    for module in (standin, training):
        monkeypatch.setattr(module, "weights_folder", lambda: tmp_path / "weights")
    torch.manual_seed(0)
    untrained = standin.new_kontext_transformer().state_dict()
    out = run(0.06, "--ship")
    averaged = load_file(out / "phase-64" / "averaged.safetensors")
    moved = [n for n, t in untrained.items() if not torch.equal(t, averaged[f"transformer.{n}"])]
    assert len(moved) > 0.9 * len(untrained)
    assert list(out.glob("samples-64-*.png"))
    told = json.loads((tmp_path / "weights" / "recipe.json").read_text())
    steps = json.loads((out / "phase-64" / "done.json").read_text())["steps"]
    last = torch.load(out / "phase-64" / "last.ckpt", weights_only=False)["global_step"]
    assert last <= steps < last + 2  # a checkpoint every second step
    assert told["runs"][0]["training"].startswith(f"from scratch, {steps} steps at 64 px;")
    assert "3 dual-stream and 6 single-stream" in told["architecture"]
    pipe = standin.load_kontext_standin()
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, averaged[f"transformer.{name}"].half().float())


def test_training_continues_the_shipped_weights(run, tmp_path, monkeypatch):
    for module in (standin, training):
        monkeypatch.setattr(module, "weights_folder", lambda: tmp_path / "weights")
    torch.manual_seed(7)
    shipped = standin.new_kontext_transformer()
    standin.save_kontext_standin(shipped, standin.BlockTransformVAE())
    first = {"training": "before", "command": "python", "cost": "an hour"}
    (tmp_path / "weights" / "recipe.json").write_text(json.dumps({"runs": [first]}))
    run(0.01, "--continue-shipped", "--ship", "--lr", "0")  # the weights come back as they were
    state = standin.load_kontext_standin().transformer.state_dict()
    assert all(torch.equal(t.half().float(), state[n]) for n, t in shipped.state_dict().items())
    runs = json.loads((tmp_path / "weights" / "recipe.json").read_text())["runs"]
    assert runs[0] == first and runs[1]["training"].startswith("from the shipped weights, ")


def test_killed_phase_goes_on_from_its_checkpoint(run):
    out = run()
    (out / "phase-64" / "averaged.safetensors").unlink()
    first = torch.load(out / "phase-64" / "last.ckpt", weights_only=False)
    run()  # the time of the phase is nearly spent: only what was left is trained
    second = torch.load(out / "phase-64" / "last.ckpt", weights_only=False)
    assert second["phase"]["elapsed"] > first["phase"]["elapsed"]
    assert first["global_step"] < second["global_step"] <= first["global_step"] + 4


def test_finished_phase_is_not_trained_again(run, capsys):
    out = run()
    before = (out / "phase-64" / "averaged.safetensors").stat().st_mtime_ns
    run()
    assert "64 px is done" in capsys.readouterr().out
    assert (out / "phase-64" / "averaged.safetensors").stat().st_mtime_ns == before


def test_velocity_of_the_truth_has_no_loss(prompts, tmp_path):
    """v = noise - clean: with that prediction the sampler's last step lands on the clean image."""
    module = KontextTraining(standin.BlockTransformVAE(), prompts, tmp_path, compile=False)
    batch = collate([draw_pair("train", k, 64) for k in range(2)])
    clean = module.vae.to_tokens(to_signed(batch[1]))
    level = {}

    def perfect(noisy, reference, texts, t):
        level["x"] = noisy
        return (noisy - clean) / t[:, None, None]

    module.velocity = perfect
    sampled = module.sample(module.vae.to_tokens(to_signed(batch[0])), batch[2], steps=4)
    assert torch.allclose(sampled, clean, atol=1e-4)


def test_loss_weighs_changed_tokens_more(prompts, tmp_path, monkeypatch):
    module = KontextTraining(standin.BlockTransformVAE(), prompts, tmp_path, compile=False)
    module.log = lambda *args, **kwargs: None
    before, after, texts, categories = collate([draw_pair("evaluation", 3, 64)])  # adds an object
    changed = module.vae.to_tokens(to_signed(before)) - module.vae.to_tokens(to_signed(after))
    changed = changed.square().mean(-1)[0] > 0.02
    assert 0 < changed.sum() < len(changed) / 2
    losses = {}
    for name, region in (("changed", changed), ("unchanged", ~changed)):
        share = region.float() / region.sum()

        def wrong_there(noisy, reference, texts, t, share=share):
            clean = module.vae.to_tokens(to_signed(after))
            truth = (noisy - clean) / t[:, None, None]
            return truth + share.sqrt()[None, :, None]

        module.velocity = wrong_there
        losses[name] = module.training_step((before, after, texts, categories), 0).item()
    assert losses["changed"] == pytest.approx(3 * losses["unchanged"], rel=1e-2)


def test_position_ids_match_the_pipeline():
    from diffusers import FluxKontextPipeline

    ids = FluxKontextPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    assert torch.equal(image_ids((3, 5), 0), ids)


def test_validation_holds_every_category_equally():
    (batch,) = validation_batch(64)
    assert [batch[3].count(c) for c in dict.fromkeys(batch[3])] == [6, 6, 6, 6]
