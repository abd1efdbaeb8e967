"""A Qwen stand-in that starts as a trained Kontext stand-in instead of from nothing.

Both are multimodal DiTs with adaptive layer norms, normed queries and keys and rotary positions;
each function names what differs. The result does not edit as well as its source until it is
trained, but it copies, follows instructions and knows the latents.
"""

import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import Tensor, nn

from topi.bench.editors.standin.kontext_standin import GUIDANCE
from topi.bench.editors.standin.qwen_standin import new_qwen_transformer


@torch.no_grad()
def qwen_from_kontext(
    flux: FluxTransformer2DModel, pooled: Tensor, zero_cond_t: bool = False
) -> QwenImageTransformer2DModel:
    """The dual-stream transformer that comes nearest to a Kontext stand-in.

    Not carried over: the pooled text, which Qwen does not have (its mean and the guidance go into
    the time embedding), and the places of the text tokens, which Flux has all at the origin.

    Args:
        pooled: [P, D] pooled states of typical prompts.
        zero_cond_t: see `new_qwen_transformer`.
    """
    config = flux.config
    qwen = new_qwen_transformer(
        config.num_attention_heads,
        config.attention_head_dim,
        config.num_layers + config.num_single_layers,
        config.axes_dims_rope,
        zero_cond_t=zero_cond_t,
    )
    qwen.img_in.load_state_dict(flux.x_embedder.state_dict())
    qwen.txt_in.load_state_dict(flux.context_embedder.state_dict())
    qwen.txt_norm.weight.fill_(1)
    qwen.norm_out.load_state_dict(flux.norm_out.state_dict())
    qwen.proj_out.load_state_dict(flux.proj_out.state_dict())
    time = qwen.time_text_embed.timestep_embedder
    time.load_state_dict(flux.time_text_embed.timestep_embedder.state_dict())
    time.linear_2.bias += constant_condition(flux, pooled)
    blocks = iter(qwen.transformer_blocks)
    for block in flux.transformer_blocks:
        copy_dual(block, next(blocks))
    for block in flux.single_transformer_blocks:
        copy_single(block, next(blocks))
    return qwen


def constant_condition(flux: FluxTransformer2DModel, pooled: Tensor) -> Tensor:
    """[D]: what guidance and the mean prompt add to the time embedding."""
    embed = flux.time_text_embed
    # The transformers multiply guidance by 1000, like the time.
    guidance = embed.time_proj(torch.tensor([1000.0 * GUIDANCE]))
    return embed.guidance_embedder(guidance)[0] + embed.text_embedder(pooled).mean(0)


def copy_dual(flux: FluxTransformerBlock, qwen: QwenImageTransformerBlock) -> None:
    """A dual-stream block is the same in both models."""
    qwen.img_mod[1].load_state_dict(flux.norm1.linear.state_dict())
    qwen.txt_mod[1].load_state_dict(flux.norm1_context.linear.state_dict())
    qwen.attn.load_state_dict(flux.attn.state_dict())
    qwen.img_mlp.load_state_dict(flux.ff.state_dict())
    qwen.txt_mlp.load_state_dict(flux.ff_context.state_dict())


def copy_single(flux: FluxSingleTransformerBlock, qwen: QwenImageTransformerBlock) -> None:
    """One stream becomes two of the same weights; the MLP comes after attention, not beside it."""
    width = flux.norm.norm.normalized_shape[0]
    attention, mlp = flux.proj_out.weight.split([width, flux.mlp_hidden_dim], 1)
    for modulation in (qwen.img_mod[1], qwen.txt_mod[1]):  # shift, scale, gate of each part
        modulation.weight.copy_(flux.norm.linear.weight.repeat(2, 1))
        modulation.bias.copy_(flux.norm.linear.bias.repeat(2))
    attn = qwen.attn
    own = flux.attn
    _copy_both(own.to_q, attn.to_q, attn.add_q_proj)
    _copy_both(own.to_k, attn.to_k, attn.add_k_proj)
    _copy_both(own.to_v, attn.to_v, attn.add_v_proj)
    _copy_both(own.norm_q, attn.norm_q, attn.norm_added_q)
    _copy_both(own.norm_k, attn.norm_k, attn.norm_added_k)
    for layer in (attn.to_out[0], attn.to_add_out):
        layer.weight.copy_(attention)
        layer.bias.copy_(flux.proj_out.bias)
    for feed_forward in (qwen.img_mlp, qwen.txt_mlp):
        feed_forward.net[0].proj.load_state_dict(flux.proj_mlp.state_dict())
        feed_forward.net[2].weight.copy_(mlp)
        feed_forward.net[2].bias.zero_()


def _copy_both(source: nn.Module, *targets: nn.Module) -> None:
    for target in targets:
        target.load_state_dict(source.state_dict())
