"""The Qwen stand-in: a small QwenImageTransformer2DModel in the stock Qwen edit pipelines.

One set of weights serves QwenImageEditPipeline and, with two references, QwenImageEditPlusPipeline.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from diffusers import (
    DiffusionPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions
from torch import Tensor, nn
from transformers import BatchFeature

from topi.bench.editors.standin import initial
from topi.bench.editors.standin.initial import TOKEN
from topi.bench.editors.standin.latents import CHANNELS, VideoVAE
from topi.bench.editors.text import TEXT_DIM, TEXT_TOKENS, SentenceEncoder, load_minilm
from topi.models.scheduler import flux_scheduler
from topi.models.tiny import with_reference_area

REFERENCE_AREA = 128 * 128
"""Pixels to which a Qwen stand-in resizes its references; the real pipelines: 1024 * 1024."""
TEMPLATE_TOKENS = 64
"""Of the system prompt; the pipelines drop that many hidden states."""
Grid = tuple[int, int]


@torch.no_grad()
def new_qwen_transformer(
    heads: int = 5,
    head_dim: int = 32,
    layers: int = 8,
    axes: tuple[int, int, int] = (4, 14, 14),
    copy_head: bool = True,
    copy_pairs: tuple[int, int] = (0, 1),
    zero_cond_t: bool = False,
) -> QwenImageTransformer2DModel:
    """A QwenImageTransformer2DModel with the initial weights of `initial.py`.

    Args:
        copy_head: head 0 of every layer starts out attending from a target token to the first
            reference's token at its own place.
        copy_pairs: see `topi.bench.editors.standin.initial.point_head_0_at_own_place`.
        zero_cond_t: reference tokens are modulated as at time zero (Qwen-Image-Edit-2511).
    """
    axes = tuple(axes)
    model = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=TOKEN,
        out_channels=CHANNELS,
        num_layers=layers,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=axes,
        zero_cond_t=zero_cond_t,
    )
    initial.spread(model)
    for block in model.transformer_blocks:
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            initial.open_gates(modulation, 2, 5)
        attn = block.attn
        outputs = (attn.to_out[0], attn.to_add_out, block.img_mlp.net[2], block.txt_mlp.net[2])
        for layer in outputs:
            layer.weight.mul_(layers**-0.5)
        if copy_head:
            initial.point_head_0_at_own_place(attn, axes, copy_pairs)
    initial.pass_through(model.img_in, model.proj_out)
    return model


class PromptProcessor:
    """Takes the place of Qwen's processor: the prompt inside its template, without the pictures.

    Text -> `input_ids` and `attention_mask` [B, TEMPLATE_TOKENS + TEXT_TOKENS]; the first
    TEMPLATE_TOKENS are what the pipelines drop.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], images=None, **_) -> BatchFeature:
        ids = self.tokenizer(
            [instruction_of(t) for t in text],
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        ids = nn.functional.pad(ids, (TEMPLATE_TOKENS, 0))
        return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def instruction_of(templated: str) -> str:
    """The user's words in a text made by `prompt_template_encode` of a Qwen edit pipeline."""
    user = templated.rsplit("<|im_start|>user\n", 1)[-1].split("<|im_end|>", 1)[0]
    return user.rsplit("<|vision_end|>", 1)[-1]


class PromptEncoder(SentenceEncoder):
    """Takes the place of Qwen2.5-VL: MiniLM states behind as many zeros as the template has."""

    def forward(self, input_ids: Tensor, **_) -> SimpleNamespace:
        hidden = self.encode(input_ids[:, TEMPLATE_TOKENS:])[0]
        return SimpleNamespace(
            hidden_states=[nn.functional.pad(hidden, (0, 0, TEMPLATE_TOKENS, 0))]
        )


def qwen_pipeline(
    transformer: QwenImageTransformer2DModel, vae: nn.Module, several: bool = False
) -> DiffusionPipeline:
    """The stock Qwen edit pipeline around a stand-in transformer, its VAE and MiniLM.

    Args:
        several: QwenImageEditPlusPipeline, which takes several references.
    """
    minilm, tokenizer = load_minilm()
    stock = QwenImageEditPlusPipeline if several else QwenImageEditPipeline
    pipe = with_reference_area(stock, REFERENCE_AREA)(
        scheduler=flux_scheduler(),
        vae=VideoVAE.around(vae).eval(),
        text_encoder=PromptEncoder(minilm),
        tokenizer=tokenizer,
        processor=PromptProcessor(tokenizer),
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_velocity(
    transformer: QwenImageTransformer2DModel,
    images: Sequence[Tensor],
    grids: Sequence[Grid],
    text: tuple[Tensor, Tensor],
    level: Tensor,
) -> Tensor:
    """The predicted velocity of the target; arguments as of `kontext_velocity`."""
    out = transformer(
        hidden_states=torch.cat(list(images), 1),
        encoder_hidden_states=text[0],
        timestep=level,
        img_shapes=[[(1, *grid) for grid in grids]] * len(level),
        return_dict=False,
    )[0]
    return out[:, : images[0].shape[1]].float()


def reference_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size (height, width) in pixels to which the pipelines resize a reference of `size`."""
    width, height, *_ = calculate_dimensions(REFERENCE_AREA, size[1] / size[0])
    return height, width
