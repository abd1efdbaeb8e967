"""Tiny pipelines with random weights: the real classes, built in a moment without any download."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from torch import nn

from topi.models.rebind import rebind
from topi.models.scheduler import flux_scheduler

WIDTH = 32  # of the text embeddings
HEADS = {"attention_head_dim": 32, "num_attention_heads": 2, "axes_dims_rope": (4, 12, 16)}
CallArguments = Callable[..., dict[str, Any]]
TINY_KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8,) * 4,
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.0609,
    "scaling_factor": 1.5035,
}
TINY_QWEN_VAE = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}


def random_image(size: tuple[int, int] = (128, 128), seed: int = 0) -> Image.Image:
    """A smooth random picture of (width, height) pixels."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def tiny_flux(
    dual: int = 2, single: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[FluxKontextPipeline, CallArguments]:
    """A FLUX Kontext pipeline of `dual` + `single` blocks, and a maker of its call arguments.

    The maker: `call(steps=4, seed=0, batch=1, cfg=False, size=(128, 128), references=None)`; a
    token covers 16 x 16 pixels. `cfg` turns on true classifier-free guidance; `references=[]`
    leaves the reference out.
    """
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=dual,
        num_single_layers=single,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        **HEADS,
    )
    pipe, call = kontext_pipeline(_sharpen(transformer, seed), AutoencoderKL(**TINY_KL))
    return pipe.to(dtype), call


def kontext_pipeline(
    transformer: FluxTransformer2DModel, vae: AutoencoderKL, n_text: int = 12
) -> tuple[FluxKontextPipeline, CallArguments]:
    """A FLUX Kontext pipeline without text encoders, and a maker of its call arguments.

    The maker is that of `tiny_flux`; texts have `n_text` tokens.
    """
    pipe = FluxKontextPipeline(
        scheduler=flux_scheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    width, pooled = (
        transformer.config[name] for name in ("joint_attention_dim", "pooled_projection_dim")
    )

    def call(
        steps: int = 4,
        seed: int = 0,
        batch: int = 1,
        cfg: bool = False,
        size: tuple[int, int] = (128, 128),
        references: list[Image.Image] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        draw = _drawer(pipe, seed)
        images = [random_image(size, 3)] if references is None else references
        arguments = {
            "image": images[0] if images else None,
            "prompt_embeds": draw(batch, n_text, width),
            "pooled_prompt_embeds": draw(batch, pooled),
            "guidance_scale": 2.5,
            "max_area": size[0] * size[1],
            "_auto_resize": False,
        }
        if cfg:
            arguments |= {
                "negative_prompt_embeds": draw(batch, n_text, width),
                "negative_pooled_prompt_embeds": draw(batch, pooled),
                "true_cfg_scale": 4.0,
            }
        return arguments | _common(size, steps, seed) | more

    return pipe, call


def tiny_flux2(
    dual: int = 2, single: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Flux2KleinPipeline, CallArguments]:
    """A FLUX.2 klein pipeline of `dual` + `single` blocks, and a maker of its call arguments.

    The maker: `call(steps=4, seed=0, batch=1, cfg=False, size=(128, 128), references=None)`, by
    default with a square and a wide reference.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=16, norm_num_groups=4
    )
    transformer = Flux2Transformer2DModel(
        in_channels=64,
        num_layers=dual,
        num_single_layers=single,
        joint_attention_dim=WIDTH,
        guidance_embeds=False,
        **HEADS | {"axes_dims_rope": (8, 8, 8, 8)},
    )
    pipe = Flux2KleinPipeline(
        scheduler=flux_scheduler(),
        vae=vae.eval(),  # batch norm
        text_encoder=None,
        tokenizer=None,
        transformer=_sharpen(transformer, seed),
    )
    pipe.set_progress_bar_config(disable=True)

    def call(
        steps: int = 4,
        seed: int = 0,
        batch: int = 1,
        cfg: bool = False,
        size: tuple[int, int] = (128, 128),
        references: list[Image.Image] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        draw = _drawer(pipe, seed)
        images = [random_image(size, 3), random_image((160, 96), 4)]
        arguments = {
            "image": (images if references is None else references) or None,
            "prompt_embeds": draw(batch, 12, WIDTH),
            "guidance_scale": 4.0 if cfg else 1.0,
        }
        if cfg:
            arguments["negative_prompt_embeds"] = draw(batch, 9, WIDTH)
        return arguments | _common(size, steps, seed) | more

    return pipe.to(dtype), call


def tiny_qwen(
    layers: int = 6,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    zero_cond_t: bool = False,
    area: int = 128 * 128,
) -> tuple[QwenImageEditPipeline, CallArguments]:
    """A Qwen-Image-Edit pipeline of `layers` blocks that resizes references to `area` pixels.

    The maker of call arguments: `call(steps=4, seed=0, batch=1, cfg=True, padded=False, size=(128,
    128), references=None)`; `padded` masks the end of the last sample's text.
    """
    return _tiny_qwen(QwenImageEditPipeline, layers, dtype, seed, zero_cond_t, area)


def tiny_qwen_plus(
    layers: int = 6,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    zero_cond_t: bool = False,
    area: int = 128 * 128,
) -> tuple[QwenImageEditPlusPipeline, CallArguments]:
    """The same with several references, by default a square and a wide one; batch 1 only."""
    return _tiny_qwen(QwenImageEditPlusPipeline, layers, dtype, seed, zero_cond_t, area)


def _tiny_qwen(
    pipeline_class: type[DiffusionPipeline],
    layers: int,
    dtype: torch.dtype,
    seed: int,
    zero_cond_t: bool,
    area: int,
) -> tuple[DiffusionPipeline, CallArguments]:
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=layers,
        joint_attention_dim=WIDTH,
        zero_cond_t=zero_cond_t,
        **HEADS,
    )
    transformer, vae = _sharpen(transformer, seed), AutoencoderKLQwenImage(**TINY_QWEN_VAE)
    pipe, call = qwen_pipeline(pipeline_class, transformer, vae, area)
    return pipe.to(dtype), call


def qwen_pipeline(
    pipeline_class: type[DiffusionPipeline],
    transformer: QwenImageTransformer2DModel,
    vae: AutoencoderKLQwenImage,
    area: int,
    n_text: tuple[int, int] = (12, 9),
) -> tuple[DiffusionPipeline, CallArguments]:
    """A Qwen edit pipeline without text encoder, and a maker of its call arguments.

    The maker is that of `tiny_qwen`; positive and negative texts have `n_text` tokens.
    """
    pipe = with_reference_area(pipeline_class, area)(
        scheduler=flux_scheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        processor=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    several = issubclass(pipeline_class, QwenImageEditPlusPipeline)
    width = transformer.config.joint_attention_dim

    def call(
        steps: int = 4,
        seed: int = 0,
        batch: int = 1,
        cfg: bool = True,
        padded: bool = False,
        size: tuple[int, int] = (128, 128),
        references: list[Image.Image] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        draw, (positive, negative) = _drawer(pipe, seed), n_text
        if references is None:
            references = [random_image(size, 3), random_image((160, 96), 4)][: 1 + several]
        ones = partial(torch.ones, batch, dtype=torch.long, device=pipe._execution_device)
        mask = ones(positive)
        if padded:
            mask[-1, positive * 2 // 3 :] = 0
        arguments = {
            "image": references if several else references[0],
            "prompt_embeds": draw(batch, positive, width),
            "prompt_embeds_mask": mask,
            "true_cfg_scale": 4.0 if cfg else 1.0,
        }
        if cfg:
            arguments |= {
                "negative_prompt_embeds": draw(batch, negative, width),
                "negative_prompt_embeds_mask": ones(negative),
            }
        return arguments | _common(size, steps, seed) | more

    return pipe, call


def with_reference_area(
    pipeline_class: type[DiffusionPipeline], area: int
) -> type[DiffusionPipeline]:
    """A Qwen edit pipeline class that resizes references to `area` pixels, not to a megapixel."""
    stock = inspect.unwrap(pipeline_class.__call__)  # behind torch.no_grad
    dimensions = stock.__globals__["calculate_dimensions"]
    call = torch.no_grad()(
        rebind(stock, calculate_dimensions=lambda _, ratio: dimensions(area, ratio))
    )
    members = {"__call__": call, "__module__": pipeline_class.__module__}
    return type(pipeline_class.__name__, (pipeline_class,), members)


def _sharpen(transformer: nn.Module, seed: int) -> nn.Module:
    """Give random weights a peaked attention, without which every token counts the same."""
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in transformer.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(
            ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")
        ):
            parameter.data = (parameter.data + 0.3 * noise) * 6**0.5
        elif name.startswith("proj_out"):
            parameter.data = 0.1 * noise
    return transformer


def _drawer(pipe: DiffusionPipeline, seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 100)
    where = {"device": pipe._execution_device, "dtype": pipe.transformer.dtype}
    return lambda *shape: torch.randn(*shape, generator=generator).to(**where)


def _common(size: tuple[int, int], steps: int, seed: int) -> dict[str, Any]:
    return {
        "width": size[0],
        "height": size[1],
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }
