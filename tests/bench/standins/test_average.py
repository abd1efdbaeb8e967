"""Weights between two models."""

import json

import pytest
import torch

from topi.bench.editors.standin.kontext_standin import new_kontext_transformer
from topi.bench.editors.standin.latents import BlockTransformVAE
from topi.bench.editors.standin.weights import load_parts, save_standin
from topi.bench.standins.average import average
from topi.errors import ToPiError


def write(folder, seed, **sizes):
    torch.manual_seed(seed)
    transformer = new_kontext_transformer(**{"dual": 1, "single": 1} | sizes)
    vae = BlockTransformVAE()
    save_standin(transformer, vae, folder)
    (folder / "recipe.json").write_text(json.dumps({"runs": [{"training": "of a run"}]}))
    return folder


@pytest.fixture
def pair(tmp_path):
    return write(tmp_path / "before", 0), write(tmp_path / "after", 1)


def weights(folder):
    return load_parts(folder)[0].state_dict()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights_lie_between_the_two(pair, tmp_path, share):
    before, after = pair
    average(before, after, share, tmp_path / "out")
    old, new = weights(before), weights(after)
    assert any(not torch.equal(old[name], new[name]) for name in old)
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(
            tensor, (1 - share) * old[name] + share * new[name], atol=1e-3, rtol=1e-3
        )


def test_the_recipe_says_so(pair, tmp_path):
    average(*pair, 0.25, tmp_path / "out")
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert "averaged: 0.25 of this run" in recipe["runs"][-1]["training"]


def test_what_cannot_be_averaged_is_refused(pair, tmp_path):
    before, after = pair
    deeper = write(tmp_path / "deeper", 0, single=2)
    for arguments in ((before, after, 1.5), (before, deeper, 0.5), (before, tmp_path, 0.5)):
        with pytest.raises(ToPiError):
            average(*arguments, tmp_path / "out")
    assert not (tmp_path / "out").exists()
