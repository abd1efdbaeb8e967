"""A Qwen stand-in that starts as a Kontext one: the same function, where it can be."""

import pytest
import torch
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

from topi.bench.editors.standin.kontext_standin import kontext_velocity, new_kontext_transformer
from topi.bench.editors.standin.qwen_standin import qwen_velocity
from topi.bench.standins.convert import (
    constant_condition,
    copy_dual,
    copy_single,
    qwen_from_kontext,
)

HEADS, HEAD_DIM = 2, 32
WIDTH = HEADS * HEAD_DIM
TEXT, IMAGE = 3, 5


def random_block(kind):
    torch.manual_seed(0)
    block = kind(WIDTH, HEADS, HEAD_DIM).eval().requires_grad_(False)
    for parameter in block.parameters():
        parameter.copy_(0.3 * torch.randn_like(parameter))
    return block


def states():
    """(image, text, condition) and one rotary embedding in the forms of both models."""
    torch.manual_seed(1)
    angles = torch.randn(TEXT + IMAGE, HEAD_DIM // 2)
    flux = tuple(f(angles).repeat_interleave(2, 1) for f in (torch.cos, torch.sin))
    turns = torch.polar(torch.ones_like(angles), angles)
    hidden = torch.randn(2, IMAGE, WIDTH), torch.randn(2, TEXT, WIDTH), torch.randn(2, WIDTH)
    return hidden, flux, (turns[TEXT:], turns[:TEXT])


def both(flux, qwen):
    """What two blocks return for the same states: (text, image) each."""
    (image, text, condition), flux_rope, qwen_rope = states()
    a = flux(image, text, condition, image_rotary_emb=flux_rope)
    b = qwen(image, text, None, condition, image_rotary_emb=qwen_rope)
    return a, b


@torch.no_grad()
def test_a_dual_block_is_the_same():
    flux = random_block(FluxTransformerBlock)
    qwen = random_block(QwenImageTransformerBlock)
    copy_dual(flux, qwen)
    for one, other in zip(*both(flux, qwen), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_each_part_of_a_single_block_is_the_same(part):
    """Alone, as the MLP of one comes beside attention and that of the other behind it."""
    flux = random_block(FluxSingleTransformerBlock)
    flux.proj_out.bias.zero_()
    other = slice(WIDTH, None) if part == "attention" else slice(WIDTH)
    flux.proj_out.weight[:, other] = 0
    qwen = random_block(QwenImageTransformerBlock)
    copy_single(flux, qwen)
    for one, two in zip(*both(flux, qwen), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_blocks_the_models_are_the_same():
    """Embeddings, time, guidance and output: with gates closed nothing else is left."""
    torch.manual_seed(0)
    flux = new_kontext_transformer(HEADS, HEAD_DIM, dual=1, single=1)
    for name, parameter in flux.named_parameters():
        if "norm" in name and "linear" in name and "norm_out" not in name:
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    pooled = torch.randn(1, 384)
    qwen = qwen_from_kontext(flux, pooled)
    assert len(qwen.transformer_blocks) == 2
    assert not qwen.config.zero_cond_t
    images = [torch.randn(2, 4, 64), torch.randn(2, 4, 64)]
    text = (torch.randn(2, 16, 384), pooled.expand(2, -1))
    grids, level = [(2, 2), (2, 2)], torch.tensor([0.3, 0.8])
    one = kontext_velocity(flux, images, grids, text, level)
    other = qwen_velocity(qwen, images, grids, text, level)
    assert one.std() > 0.1
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_condition_of_several_prompts_is_their_mean():
    flux = new_kontext_transformer(HEADS, HEAD_DIM, dual=1, single=1)
    pooled = torch.randn(2, 384)
    each = [constant_condition(flux, one[None]) for one in pooled]
    torch.testing.assert_close(constant_condition(flux, pooled), sum(each) / 2)
