"""The Kontext stand-in: a small FluxTransformer2DModel in the stock FluxKontextPipeline."""

from collections.abc import Sequence

import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from topi.bench.editors.standin import initial
from topi.bench.editors.standin.initial import TOKEN, image_ids
from topi.bench.editors.text import TEXT_DIM, PooledSentenceEncoder, SentenceEncoder, load_minilm
from topi.models.scheduler import flux_scheduler

GUIDANCE = 2.5
"""The one guidance value that the stand-in is trained with."""
Grid = tuple[int, int]


@torch.no_grad()
def new_kontext_transformer(
    heads: int = 5,
    head_dim: int = 32,
    dual: int = 3,
    single: int = 6,
    axes: tuple[int, int, int] = (4, 14, 14),
    copy_head: bool = True,
    copy_pairs: tuple[int, int] = (0, 1),
) -> FluxTransformer2DModel:
    """A FluxTransformer2DModel with the initial weights of `topi.bench.editors.standin.initial`.

    Args:
        copy_head: head 0 of every layer starts out attending from a target token to the reference
            token at its own place.
        copy_pairs: see `topi.bench.editors.standin.initial.point_head_0_at_own_place`.
    """
    axes = tuple(axes)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=TOKEN,
        num_layers=dual,
        num_single_layers=single,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        guidance_embeds=True,
        axes_dims_rope=axes,
    )
    depth = dual + single
    initial.spread(model)
    for block in model.transformer_blocks:
        initial.open_gates(block.norm1.linear, 2, 5)
        initial.open_gates(block.norm1_context.linear, 2, 5)
        attn = block.attn
        outputs = (attn.to_out[0], attn.to_add_out, block.ff.net[2], block.ff_context.net[2])
        for layer in outputs:
            layer.weight.mul_(depth**-0.5)
    for block in model.single_transformer_blocks:
        initial.open_gates(block.norm.linear, 2)
        block.proj_out.weight.mul_(depth**-0.5)
    initial.pass_through(model.x_embedder, model.proj_out)
    if copy_head:
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            initial.point_head_0_at_own_place(block.attn, axes, copy_pairs)
    return model


def kontext_pipeline(transformer: FluxTransformer2DModel, vae: nn.Module) -> FluxKontextPipeline:
    """The stock FluxKontextPipeline around a stand-in transformer, its VAE and MiniLM."""
    minilm, tokenizer = load_minilm()
    pipe = FluxKontextPipeline(
        scheduler=flux_scheduler(),
        vae=vae.eval(),
        text_encoder=PooledSentenceEncoder(minilm),
        tokenizer=tokenizer,
        text_encoder_2=SentenceEncoder(minilm),
        tokenizer_2=tokenizer,
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def kontext_velocity(
    transformer: FluxTransformer2DModel,
    images: Sequence[Tensor],
    grids: Sequence[Grid],
    text: tuple[Tensor, Tensor],
    level: Tensor,
) -> Tensor:
    """The predicted velocity of the target, called as the pipeline calls the transformer.

    Args:
        images: target and references, each [B, N_i, 64] tokens.
        grids: rows and columns of each.
        text: hidden states [B, T, D] and pooled states [B, D].
        level: noise level [B] in [0, 1].

    Returns:
        [B, N_0, 64].
    """
    hidden, pooled = text
    ids = torch.cat([image_ids(grid, min(i, 1)) for i, grid in enumerate(grids)])
    out = transformer(
        hidden_states=torch.cat(list(images), 1),
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
        timestep=level,
        guidance=torch.full_like(level, GUIDANCE),
        img_ids=ids.to(level.device),
        txt_ids=torch.zeros(hidden.shape[1], 3, device=level.device),
        return_dict=False,
    )[0]
    return out[:, : images[0].shape[1]].float()


def reference_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size (height, width) in pixels at which the pipeline sees a reference: its own."""
    return size
