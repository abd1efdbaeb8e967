"""Pipelines of the real architectures and sizes with random weights: for speed, never for quality.

Weights are drawn on the device they will run on, in the precision they will run in: nothing is
downloaded, and nothing passes through the memory of the host. What a run costs does not depend on
the values of weights, so its speed is that of the published model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
)
from torch import nn

from topi.errors import ToPiError
from topi.models.tiny import TINY_KL, TINY_QWEN_VAE, CallArguments, kontext_pipeline, qwen_pipeline


@dataclass(frozen=True)
class Architecture:
    """What differs from the defaults of the classes, which are the published models.

    Args:
        transformer, vae: keyword arguments of the two classes.
        n_text: text tokens of a call.
    """

    transformer: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    n_text: int = 512


FLUX_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
SMALL = {"num_attention_heads": 4, "attention_head_dim": 64, "joint_attention_dim": 256}
SMALL |= {"axes_dims_rope": (8, 28, 28)}
PUBLISHED = {
    "kontext": Architecture({"guidance_embeds": True}, FLUX_VAE),
    "qwen_edit": Architecture(),
    "qwen_edit_plus": Architecture(),
}
SCALED_DOWN = {
    "kontext": Architecture(
        {
            **SMALL,
            "num_layers": 2,
            "num_single_layers": 4,
            "pooled_projection_dim": 256,
            "guidance_embeds": True,
        },
        TINY_KL,
        n_text=32,
    ),
    "qwen_edit": Architecture({**SMALL, "num_layers": 6}, TINY_QWEN_VAE, n_text=32),
    "qwen_edit_plus": Architecture({**SMALL, "num_layers": 6}, TINY_QWEN_VAE, n_text=32),
}
"""A few narrow layers, for machines without a GPU; tokens are as the picture's size has it."""


def random_pipeline(
    pipeline_class: type[DiffusionPipeline],
    kind: str,
    device: torch.device,
    dtype: torch.dtype,
    area: int,
    scaled_down: bool = False,
    seed: int = 0,
) -> tuple[DiffusionPipeline, CallArguments]:
    """A pipeline with random weights, and a maker of its call arguments as in `models.tiny`.

    Args:
        kind: "kontext", "qwen_edit" or "qwen_edit_plus".
        area: pixels that Qwen resizes its references to.
        scaled_down: a few narrow layers instead of the published size.
    """
    size = (SCALED_DOWN if scaled_down else PUBLISHED)[kind]
    torch.manual_seed(seed)
    if kind == "kontext":
        with made_on(device, dtype):
            transformer = FluxTransformer2DModel(**size.transformer)
            vae = AutoencoderKL(**size.vae)
        return kontext_pipeline(_frozen(transformer), _frozen(vae), size.n_text)
    with made_on(device, dtype):
        transformer = QwenImageTransformer2DModel(**size.transformer)
        vae = AutoencoderKLQwenImage(**size.vae)
    n_text = (size.n_text, size.n_text)
    return qwen_pipeline(pipeline_class, _frozen(transformer), _frozen(vae), area, n_text)


def weightless(kind: str, scaled_down: bool = False) -> nn.Module:
    """The transformer of `random_pipeline` on the meta device.

    Raises:
        ToPiError: its size is not known here.
    """
    if kind not in PUBLISHED:
        raise ToPiError(f"Sizes are known of {', '.join(PUBLISHED)}, not of {kind} yet.")
    size = (SCALED_DOWN if scaled_down else PUBLISHED)[kind]
    cls = FluxTransformer2DModel if kind == "kontext" else QwenImageTransformer2DModel
    with torch.device("meta"):
        return cls(**size.transformer)


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Parameters made inside are drawn on the device, in this precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)
