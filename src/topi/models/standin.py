"""The stand-in editors: small models of the real architectures in the real pipeline classes.

They exist so that everything here runs without 12 B weights. Their numbers are stand-in numbers,
never those of FLUX or Qwen.
"""

import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from topi.errors import ToPiError
from topi.models.scheduler import flux_scheduler
from topi.models.text import TEXT_DIM, PooledSentenceEncoder, SentenceEncoder, load_minilm

PATCH = 8  # pixels per token side
GUIDANCE = 2.5  # the one guidance value that the stand-in is trained with


class BlockTransformVAE(ModelMixin, ConfigMixin):
    """A fixed 8x8 block transform behind the interface of an image autoencoder.

    Each 8x8 RGB patch becomes 64 numbers: the lowest 40 + 12 + 12 cosine coefficients of a luma and
    two chroma channels. They are laid out as 16 channels x 2x2, so that the pipeline's own packing
    gives one token per patch. About 36 dB PSNR at 128 px; nothing in it is learnt but the scale.

    Images [B, 3, H, W] in [-1, 1] <-> latents [B, 16, H/4, W/4].
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (1, 1, 1),  # its length tells the factor, 2^(3-1)
        coefficients: tuple[int, int, int] = (40, 12, 12),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        self.register_buffer("basis", block_cosine_basis(coefficients))
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("scale", torch.ones(64))

    def fit(self, images: Tensor, power: float = 0.5) -> "BlockTransformVAE":
        """Set mean and scale from images [B, 3, H, W] in [-1, 1].

        Dividing by std^power evens out the coefficients without blowing up the smallest ones; only
        means that matter (|mean| > 0.3) are removed. The result has a mean square of 1.
        """
        self.mean.zero_()
        self.scale.fill_(1)
        tokens = self.to_tokens(images).reshape(-1, 64)
        mean, std = tokens.mean(0), tokens.std(0)
        self.mean.copy_(torch.where(mean.abs() > 0.3, mean, 0.0))
        scale = std**power
        self.scale.copy_(scale * (std / scale).square().mean().sqrt())
        return self

    def to_tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H/8 * W/8, 64]."""
        b, c, h, w = images.shape
        patches = images.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, PATCH * PATCH * 3)
        return (patches @ self.basis.T - self.mean) / self.scale

    def to_images(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, rows * columns, 64] -> [B, 3, 8 rows, 8 columns]."""
        rows, columns = grid
        patches = (tokens * self.scale + self.mean) @ self.basis
        patches = patches.reshape(-1, rows, columns, PATCH, PATCH, 3)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, rows * PATCH, columns * PATCH)

    def encode(self, x: Tensor, return_dict: bool = True):
        b, _, h, w = x.shape
        tokens = self.to_tokens(x).reshape(b, h // PATCH, w // PATCH, 16, 2, 2)
        latents = tokens.permute(0, 3, 1, 4, 2, 5).reshape(b, 16, h // 4, w // 4)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True):
        b, _, h, w = z.shape
        tokens = z.reshape(b, 16, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 64)
        image = self.to_images(tokens, (h // 2, w // 2))
        return DecoderOutput(sample=image) if return_dict else (image,)


def block_cosine_basis(coefficients: tuple[int, int, int]) -> Tensor:
    """[64, 192] orthonormal rows: DCT-II over 8x8, low frequencies first, per luma/chroma axis."""
    n = np.arange(PATCH)
    cosine = np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / (2 * PATCH)) * math.sqrt(2 / PATCH)
    cosine[0] /= math.sqrt(2)
    colours = np.linalg.qr(np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], float).T)[0]
    colours[:, 0] = np.abs(colours[:, 0])
    order = sorted(np.ndindex(PATCH, PATCH), key=lambda f: (sum(f), max(f)))
    rows = [
        np.einsum("i,j,c->ijc", cosine[u], cosine[v], colours[:, axis]).ravel()
        for axis, count in enumerate(coefficients)
        for u, v in order[:count]
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32)


def new_kontext_transformer(
    heads: int = 5,
    head_dim: int = 32,
    dual: int = 3,
    single: int = 6,
    axes: tuple[int, int, int] = (4, 14, 14),
    copy_head: bool = True,
) -> FluxTransformer2DModel:
    """A FluxTransformer2DModel initialised so that it learns to copy within minutes, not days.

    Token embedder and output projection start as each other's transpose (the noisy latent passes
    straight through), modulation starts near zero with open gates, and with `copy_head` head 0 of
    every layer starts out attending from a target token to the reference token at its own place.
    """
    width = heads * head_dim
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
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
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.8 * p.shape[1] ** -0.5)
            elif name.endswith("bias"):
                p.zero_()
            if "norm" in name and "linear.weight" in name:
                p.mul_(0.02)

        def open_gates(modulation: nn.Linear, *chunks: int) -> None:
            for i in chunks:
                modulation.bias[i * width : (i + 1) * width] = 0.5

        for block in model.transformer_blocks:
            open_gates(block.norm1.linear, 2, 5)
            open_gates(block.norm1_context.linear, 2, 5)
            attn = block.attn
            outputs = (attn.to_out[0], attn.to_add_out, block.ff.net[2], block.ff_context.net[2])
            for layer in outputs:
                layer.weight.mul_(depth**-0.5)
        for block in model.single_transformer_blocks:
            open_gates(block.norm.linear, 2)
            block.proj_out.weight.mul_(depth**-0.5)
        through = torch.linalg.qr(torch.randn(width, 64))[0]
        model.x_embedder.weight.copy_(through * (width**0.5 / 8))
        model.proj_out.weight.copy_(0.3 * through.T)
        if copy_head:
            for block in (*model.transformer_blocks, *model.single_transformer_blocks):
                _point_head_0_at_own_place(block.attn, axes)
    return model


def _point_head_0_at_own_place(attn: nn.Module, axes: tuple[int, int, int]) -> None:
    """Query and key biases whose RoPE inner product peaks at the same row and column, image + 1."""
    amplitude, sharpness = 3.0, 2.0
    q, k = attn.to_q.bias, attn.to_k.bias
    row, column = axes[0], axes[0] + axes[1]
    q[0], q[1] = amplitude * math.cos(1.0), amplitude * math.sin(1.0)  # image axis: turned by one
    k[0] = amplitude
    for axis in (row, column):
        for offset, weight in ((0, 1.3), (2, 0.7)):
            q[axis + offset] = k[axis + offset] = amplitude * weight
    for norm in (attn.norm_q, attn.norm_k):
        for axis in (0, row, column):
            norm.weight[axis : axis + 2] = sharpness


def kontext_pipeline(
    transformer: FluxTransformer2DModel, vae: BlockTransformVAE
) -> FluxKontextPipeline:
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


def weights_folder() -> Path:
    """Where the shipped weights of the Kontext stand-in lie: config.json, weights, model card."""
    return Path(str(files("topi.models"))) / "weights" / "kontext_standin"


def weights_file() -> Path:
    """The weights themselves, fp16 safetensors."""
    return weights_folder() / "model.safetensors"


def save_kontext_standin(transformer: FluxTransformer2DModel, vae: BlockTransformVAE) -> None:
    """Write fp16 weights and the transformer's config to the package's weights folder."""
    folder = weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"transformer.{n}": t.half() for n, t in transformer.state_dict().items()}
    tensors |= {f"vae.{n}": t.float() for n, t in vae.state_dict().items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, weights_file())
    transformer.save_config(folder)


def load_kontext_standin() -> FluxKontextPipeline:
    """The shipped Kontext stand-in in fp32, on the CPU.

    Raises:
        ToPiError: the weights file is not in the installed package.
    """
    if not weights_file().exists():
        raise ToPiError(
            f"the stand-in weights {weights_file()} are missing: reinstall the package from a "
            "full checkout, or train them with `python -m topi.training`"
        )
    tensors = {n: t.float() for n, t in load_file(weights_file()).items()}

    def part(name: str) -> dict[str, Tensor]:
        return {n.removeprefix(name): t for n, t in tensors.items() if n.startswith(name)}

    config = FluxTransformer2DModel.load_config(weights_folder())
    layers = config.pop("representative_layers", None)  # none of diffusers' own
    transformer = FluxTransformer2DModel.from_config(config)
    if layers:
        transformer.register_to_config(representative_layers=layers)
    transformer.load_state_dict(part("transformer."))
    vae = BlockTransformVAE()
    vae.load_state_dict(part("vae."))
    return kontext_pipeline(transformer.requires_grad_(False), vae.requires_grad_(False))
