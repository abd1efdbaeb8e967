"""From host to device without waiting for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`.

    A copy from ordinary memory to CUDA waits until all work before it is done; from pinned memory
    it takes its turn in the stream, and torch keeps that memory until then.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def send_all(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """`send` some tensors [n_i] in one copy."""
    return [*send(torch.cat([*tensors]), device).split([len(tensor) for tensor in tensors])]
