"""Image latents of the stand-ins: a fixed block transform, or a small trained autoencoder.

Both have a scale factor of 4 and 16 channels, so that the pipelines' own 2x2 packing makes one
token of 64 numbers per 8x8 pixels.
"""

import math

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

PATCH = 8
"""Pixels per token side."""
CHANNELS = 16
"""Of a latent; a token packs 2x2 of them."""


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
        latent_channels: int = CHANNELS,
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
        latents = unpack(self.to_tokens(x), (x.shape[2] // PATCH, x.shape[3] // PATCH))
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True):
        image = self.to_images(pack(z), (z.shape[2] // 2, z.shape[3] // 2))
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


class ConvVAE(AutoencoderTiny):
    """A small convolutional autoencoder: its tokens see their neighbours' pixels.

    diffusers' `AutoencoderTiny` with two halvings, and the per-channel mean and scale of its
    latents kept with the weights. Images [B, 3, H, W] in [-1, 1] <-> latents [B, 16, H/4, W/4].
    """

    @register_to_config
    def __init__(
        self,
        width: int = 32,
        blocks: int = 2,
        latent_channels: int = CHANNELS,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__(
            encoder_block_out_channels=(width,) * 3,
            decoder_block_out_channels=(width,) * 3,
            num_encoder_blocks=(1, blocks, blocks),
            num_decoder_blocks=(blocks, blocks, 1),
            latent_channels=latent_channels,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
        )
        self.register_to_config(block_out_channels=(width,) * 3)
        self.register_buffer("mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("scale", torch.ones(latent_channels, 1, 1))

    @torch.no_grad()
    def fit(self, images: Tensor) -> "ConvVAE":
        """Set mean and scale so that latents of images [B, 3, H, W] are standardised."""
        self.mean.zero_()
        self.scale.fill_(1)
        latents = self.encode(images).latents
        self.mean.copy_(latents.mean((0, 2, 3))[:, None, None])
        self.scale.copy_(latents.std((0, 2, 3))[:, None, None])
        return self

    def encode(self, x: Tensor, return_dict: bool = True):
        latents = (super().encode(x).latents - self.mean) / self.scale
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True):
        return super().decode(z * self.scale + self.mean, return_dict=return_dict)

    def to_tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H/8 * W/8, 64]."""
        return pack(self.encode(images).latents)

    def to_images(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, rows * columns, 64] -> [B, 3, 8 rows, 8 columns]."""
        return self.decode(unpack(tokens, grid)).sample


class VideoVAE(ModelMixin, ConfigMixin):
    """An image autoencoder behind the interface of Qwen's video one: a frame axis of one.

    Images [B, 3, 1, H, W] in [-1, 1] <-> latents [B, 16, 1, H/4, W/4].
    """

    @register_to_config
    def __init__(
        self,
        z_dim: int = CHANNELS,
        latents_mean: tuple[float, ...] = (0.0,) * CHANNELS,
        latents_std: tuple[float, ...] = (1.0,) * CHANNELS,
    ):
        super().__init__()
        self.temperal_downsample = (False, False)  # its length tells the factor, 2^2
        self.image: BlockTransformVAE | ConvVAE | None = None

    @classmethod
    def around(cls, image: BlockTransformVAE | ConvVAE) -> "VideoVAE":
        """Wrap an image autoencoder."""
        vae = cls()
        vae.image = image
        return vae

    def encode(self, x: Tensor, return_dict: bool = True):
        latents = self.image.encode(x[:, :, 0]).latents[:, :, None]
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True):
        image = self.image.decode(z[:, :, 0]).sample[:, :, None]
        return DecoderOutput(sample=image) if return_dict else (image,)


def pack(latents: Tensor) -> Tensor:
    """The pipelines' packing: [B, C, 2 rows, 2 columns] -> tokens [B, rows * columns, 4 C]."""
    b, c, h, w = latents.shape
    latents = latents.reshape(b, c, h // 2, 2, w // 2, 2)
    return latents.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `pack`: tokens [B, rows * columns, 4 C] -> [B, C, 2 rows, 2 columns]."""
    rows, columns = grid
    latents = tokens.reshape(len(tokens), rows, columns, -1, 2, 2)
    return latents.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * rows, 2 * columns)
