"""Small training runs. Those that are equal are trained once in a session."""

import shutil
from copy import deepcopy

import pytest

from topi.bench.editors import standin
from topi.bench.editors.text import PromptCache
from topi.bench.standins import run, start, training_config

SMALL = {
    "kontext": dict(heads=2, dual=1, single=2),
    "qwen_edit": dict(heads=2, layers=2),
}
QUICK = ["schedule=smoke", "workers=0", "compile=false", "accelerator=cpu", "checkpoint_every=2"]
QUICK += ["precision=32-true", "validate_every=1000"]


@pytest.fixture(scope="session")
def small():
    """Arguments of small models."""
    return SMALL


@pytest.fixture(scope="session")
def prompts():
    return PromptCache()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder for what `finished` keeps."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def finished(train, trained, tmp_path):
    """The folder of a finished run, a copy: each kind of model is trained once."""

    def copy(kind: str = "kontext", out: str = "out"):
        if not (trained / kind).exists():
            shutil.copytree(train(kind, f"trained_{kind}"), trained / kind)
        return shutil.copytree(trained / kind, tmp_path / out)

    return copy


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """Where weights are shipped to, in place of the package."""
    for module in (run, training_config, standin.weights):
        monkeypatch.setattr(module, "weights_folder", lambda name: tmp_path / "shipped" / name)
    return tmp_path / "shipped"


@pytest.fixture(scope="session")
def latents():
    """The VAE of every new run."""
    return start.block_latents()


@pytest.fixture
def train(monkeypatch, prompts, latents, tmp_path):
    """Train a small model for a few steps; returns the output folder."""
    monkeypatch.setattr(start, "block_latents", lambda: deepcopy(latents))
    for module in (run, start):
        monkeypatch.setattr(module, "PromptCache", lambda: prompts)
    monkeypatch.setattr("topi.bench.standins.module.VALIDATION_STEPS", 1)

    def begin(kind: str = "kontext", out: str = "out", *more: str):
        name = {"kontext": "kontext_standin", "qwen_edit": "qwen_standin"}[kind]
        shape = [f"model.transformer.{k}={v}" for k, v in SMALL[kind].items()]
        config = training_config.compose_training(
            [f"model={name}", f"out={tmp_path / out}", *QUICK, *shape, *more]
        )
        run.train(config)
        return tmp_path / out

    return begin
