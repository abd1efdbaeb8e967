"""Initial weights with which a small editor learns to copy within minutes instead of days."""

import math

import torch
from torch import Tensor, nn

from topi.bench.editors.standin.latents import CHANNELS

TOKEN = 4 * CHANNELS
"""Numbers per token."""


def spread(transformer: nn.Module) -> None:
    """Weights normal by fan-in, biases zero, modulation near zero."""
    for name, p in transformer.named_parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.8 * p.shape[1] ** -0.5)
        elif name.endswith("bias"):
            p.zero_()
        if ("norm" in name and "linear.weight" in name) or "_mod." in name:
            p.mul_(0.02)


def open_gates(modulation: nn.Linear, *chunks: int, value: float = 0.5) -> None:
    """Let gates start at `value`; `chunks` are their places in the modulation's output."""
    width = modulation.in_features
    for i in chunks:
        modulation.bias[i * width : (i + 1) * width] = value


def pass_through(embedder: nn.Linear, projection: nn.Linear) -> None:
    """Token embedder and output projection start as each other's transpose.

    So the noisy latent reaches the output, and the blocks only learn what to change.
    """
    width = embedder.out_features
    through = torch.linalg.qr(torch.randn(width, TOKEN))[0]
    embedder.weight.copy_(through * (width**0.5 / 8))
    projection.weight.copy_(0.3 * through.T)


def point_head_0_at_own_place(
    attn: nn.Module, axes: tuple[int, int, int], pairs: tuple[int, int] = (0, 1)
) -> None:
    """Query and key biases whose RoPE inner product peaks at the same row and column, image + 1.

    Args:
        pairs: of row and column, that the peak is made of. Pair 0 turns by one radian a token, each
            further pair more slowly, so that the peak is wider.
    """
    amplitude, sharpness = 3.0, 2.0
    q, k = attn.to_q.bias, attn.to_k.bias
    row, column = axes[0], axes[0] + axes[1]
    q[0], q[1] = amplitude * math.cos(1.0), amplitude * math.sin(1.0)  # image axis: turned by one
    k[0] = amplitude
    for axis in (row, column):
        for pair, weight in zip(pairs, (1.3, 0.7), strict=True):
            q[axis + 2 * pair] = k[axis + 2 * pair] = amplitude * weight
    for norm in (attn.norm_q, attn.norm_k):
        for axis in (0, row, column):
            norm.weight[axis : axis + 2] = sharpness


def image_ids(grid: tuple[int, int], image: int) -> Tensor:
    """[rows * columns, 3] Flux position ids (image index, row, column)."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    return torch.stack([torch.full_like(rows, image), rows, columns], -1).reshape(-1, 3).float()
