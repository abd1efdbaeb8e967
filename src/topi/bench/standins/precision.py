"""The precision that trains a stand-in faster on this machine."""

import torch
from torch.utils.benchmark import Timer

#: Tokens of a batch, width, width of the MLP: what a stand-in multiplies most.
SHAPE = (6144, 160, 640)


def faster_precision(device: str) -> str:
    """`bf16-mixed` or `32-true` (Lightning's names), by the time that a product of matrices takes.

    Processors with matrix units for bf16 are faster with it, and so are some without; on others,
    as on Intel's with AVX-512 but without AMX, float32 is twice as fast.

    Args:
        device: `cpu` or `cuda`.
    """
    low, full = (product_seconds(dtype, device) for dtype in (torch.bfloat16, torch.float32))
    return "bf16-mixed" if low < full else "32-true"


def product_seconds(dtype: torch.dtype, device: str) -> float:
    """Seconds of a product of matrices with the threads that torch has."""
    tokens, width, hidden = SHAPE
    operands = {
        "a": torch.ones(tokens, width, dtype=dtype, device=device),
        "b": torch.ones(width, hidden, dtype=dtype, device=device),
    }
    timer = Timer("a @ b", globals=operands, num_threads=torch.get_num_threads())
    return min(timer.timeit(3).mean for _ in range(5))  # the least disturbed
