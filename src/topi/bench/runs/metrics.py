"""Distance to the full-context output of the same model, sample and seed: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from topi.bench.runs.lpips_weights import alexnet_features
from topi.errors import ToPiError


def to_tensor(image: Image.Image) -> torch.Tensor:
    """8-bit RGB as float32 `[1, 3, H, W]` in 0..255."""
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


def psnr(image: torch.Tensor, full: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of two `[1, 3, H, W]` images in 0..255, in dB; equal: `inf`."""
    return peak_signal_noise_ratio(image.double(), full.double(), data_range=255.0).item()


def ssim(image: torch.Tensor, full: torch.Tensor) -> float:
    """Structural similarity of two `[1, 3, H, W]` images in 0..255; equal: 1.

    Gaussian window of 11 x 11 pixels, sigma 1.5, as Wang et al. (2004) define it.
    """
    return structural_similarity_index_measure(
        image.double(), full.double(), data_range=255.0
    ).item()


def lpips_alex(device: str | torch.device = "cpu") -> torch.nn.Module:
    """LPIPS v0.1 with AlexNet; takes two `[B, 3, H, W]` batches in -1..1.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        CVPR 2018. The linear heads come with the `lpips` package, the backbone from
        `topi.bench.runs.lpips_weights`.

    Raises:
        ToPiError: the backbone's weights are not on this machine.
    """
    import lpips

    state = alexnet_features()
    with warnings.catch_warnings():  # lpips calls torchvision by its old argument names
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    names = dict(
        network.net.named_parameters()
    )  # slice1.0.weight, slice2.3.weight, ...: the layer is the last number
    network.net.load_state_dict({name: state[name.split(".", 1)[1]] for name in names})
    return network.to(device).eval().requires_grad_(False)


class Metrics:
    """Scores an image against the full-context output.

    Args:
        device: where LPIPS runs.
        lpips: False leaves LPIPS out, and needs no weights then.

    Raises:
        ToPiError: the LPIPS weights are missing, or the two images differ in size.
    """

    def __init__(self, device: str | torch.device = "cpu", lpips: bool = True) -> None:
        self.device = device
        self.lpips = lpips_alex(device) if lpips else None

    @torch.no_grad()
    def __call__(self, image: Image.Image, full: Image.Image) -> dict[str, float]:
        if image.size != full.size:
            raise ToPiError(
                f"An output of {image.size} pixels cannot be compared with one of {full.size}."
            )
        x, y = to_tensor(image), to_tensor(full)
        scores = {"psnr": psnr(x, y), "ssim": ssim(x, y)}
        if self.lpips is not None:
            x, y = (tensor.to(self.device) / 127.5 - 1 for tensor in (x, y))
            scores["lpips"] = self.lpips(x, y).item()
        return scores
