"""What GPUs can do at most, by their makers' data sheets: the ceiling of any prediction."""

from __future__ import annotations

from dataclasses import dataclass

from topi.errors import ToPiError


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 arithmetic in FLOP/s, memory traffic in bytes/s, memory in bytes."""

    title: str
    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "a100": Gpu("A100 40GB SXM", 312e12, 1.555e12, 40e9),
    "a100_80": Gpu("A100 80GB SXM", 312e12, 2.039e12, 80e9),
    "h20": Gpu("H20", 148e12, 4.0e12, 96e9),
    "h100": Gpu("H100 SXM", 989e12, 3.35e12, 80e9),
    "h200": Gpu("H200 SXM", 989e12, 4.8e12, 141e9),
}


def gpu_named(name: str) -> Gpu:
    """The data sheet of a GPU.

    Raises:
        ToPiError: it is not known here.
    """
    if name not in GPUS:
        raise ToPiError(f"gpu={name} is unknown; choose one of: {', '.join(GPUS)}.")
    return GPUS[name]
