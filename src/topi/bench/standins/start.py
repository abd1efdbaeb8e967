"""The weights that a training run starts from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from topi.bench.config.schema import ConfigError
from topi.bench.data.mini_edit import draw_pair
from topi.bench.editors.standin import FAMILIES, LATENTS, load_parts
from topi.bench.editors.text import PromptCache
from topi.bench.standins.autoencoder import train_autoencoder
from topi.bench.standins.convert import qwen_from_kontext
from topi.bench.standins.deepen import deepened
from topi.bench.standins.module import to_signed
from topi.bench.standins.stream import stacked
from topi.bench.standins.training_config import ModelSpec, TrainingConfig, before


def starting_point(config: TrainingConfig, out: Path) -> tuple[nn.Module, nn.Module]:
    """(transformer, VAE): new ones, or the mean of those that `config.start` names.

    Args:
        out: keeps a trained autoencoder.

    Raises:
        ConfigError: this architecture cannot start from theirs, or they cannot be averaged.
    """
    if sources := before(config):
        parts = [load_parts(source) for source in sources]
        models = [_as_configured(config, transformer) for transformer, _ in parts]
        vaes = [vae for _, vae in parts]
        if not (same_shapes(models) and same_latents(vaes)):
            raise ConfigError(
                f"start={config.start} names models of different shapes or latents, which cannot "
                "be averaged; name models of one family."
            )
        return mean_of(models), vaes[-1]
    transformer = new_transformer(config.model)
    if config.model.latents == "conv":
        own = vars(config.autoencoder)
        return transformer, train_autoencoder(
            out, config.accelerator, config.seed, config.workers, **own
        )
    return transformer, block_latents()


def block_latents() -> nn.Module:
    """The fixed block transform, standardised on training images."""
    pairs = [draw_pair("train", k, 64) for k in range(800)]
    images = to_signed(stacked([image for pair in pairs for image in pair[:2]]))
    return LATENTS["block"]().fit(images)


def _as_configured(config: TrainingConfig, transformer: nn.Module) -> nn.Module:
    """A trained transformer, converted to the configured family and, with `deepen`, depth."""
    family = FAMILIES[config.model.kind].transformer
    if not isinstance(transformer, family):
        if family is not QwenImageTransformer2DModel:
            raise ConfigError(
                f"start={config.start} is a {type(transformer).__name__}, but {config.model.name} "
                f"is a {family.__name__}; only a Qwen stand-in can start as a Kontext one."
            )
        pooled = PromptCache()([draw_pair("train", k, 64)[2] for k in range(400)])[1]
        zero = config.model.transformer.get("zero_cond_t", False)
        transformer = qwen_from_kontext(transformer, pooled, zero)
    return deepened(transformer, new_transformer(config.model)) if config.deepen else transformer


def new_transformer(model: ModelSpec) -> nn.Module:
    """A transformer of initial weights, with the configured number of layers."""
    counts = ("dual", "single", "layers")
    layers = {name: model.transformer[name] for name in counts if name in model.transformer}
    more = {name: model.deeper * count for name, count in layers.items()}
    return FAMILIES[model.kind].new(**{**model.transformer, **more})


@torch.no_grad()
def mean_of(models: Sequence[nn.Module]) -> nn.Module:
    """The last of some models of the same shapes, with the mean of all weights."""
    states = [model.state_dict() for model in models]
    for name, tensor in states[-1].items():
        tensor.copy_(torch.stack([state[name] / len(models) for state in states]).sum(0))
    return models[-1]


def same_shapes(models: Sequence[nn.Module]) -> bool:
    """True if all have parameters of the same names and shapes."""
    first, *others = ({n: t.shape for n, t in m.state_dict().items()} for m in models)
    return all(other == first for other in others)


def same_latents(vaes: Sequence[nn.Module]) -> bool:
    """True if all encode alike, up to the rounding of a moving average of equal weights."""
    if not same_shapes(vaes):
        return False
    first, *others = (vae.state_dict() for vae in vaes)
    return all(torch.allclose(other[n], t) for other in others for n, t in first.items())
