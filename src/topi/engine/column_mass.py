"""What each reference key receives from all target queries, sum_i exp(s q_i k_j - lse_i), fused.

The log-sum-exp of a row over all keys comes from a stock flash kernel. With it, the sum over rows
is the sum over the keys of an attention whose roles are swapped (`flash_mass`), or a kernel of its
own (`triton_mass`). Neither holds a map. Masks are not supported: `engine.attention` has the
general way.

At real size (24 heads of 128, 4096 targets, 4096 references, 512 text tokens) the rows take 438
GFLOP, the swapped attention 206, the kernel of its own 103.
"""

import torch
from torch import Tensor

EXTRA = 8
"""Head columns added for the log-sum-exp: flash kernels want a multiple of eight."""
PARTS = 3
"""So many of them hold it: a bfloat16 has 8 bits of it, three have 24."""


def flash(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The log-sum-exp over keys of a flash attention, [B, H, n, D] to [B, H, m, D]: [B, H, n]."""
    if query.device.type == "cuda":
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        return operator(query, key, key, 0.0, False, False, scale=scale)[1]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, key, 0.0, False, scale=scale
    )[1]


def split_sum(values: Tensor, parts: int, dtype: torch.dtype) -> Tensor:
    """`parts` numbers of low precision whose sum is `values` [...]: [..., parts]."""
    columns, rest = [], values.double()
    for _ in range(parts):
        columns.append(rest.to(dtype))
        rest = rest - columns[-1].double()
    return torch.stack(columns, dim=-1)


def flash_mass(queries: Tensor, keys: Tensor, references: Tensor, scale: float) -> Tensor:
    """By a stock flash kernel with the roles swapped, the rows' log-sum-exp in extra head columns.

    Args:
        queries: [B, H, |G|, D] of the target tokens.
        keys: [B, H, S, D] of all tokens.
        references: [B, H, |C|, D], those of `keys` that are asked for.
        scale: of the logits, 1 / sqrt d.

    Returns:
        [B, H, |C|] in fp32.
    """
    rows = flash(queries, keys, scale)
    columns = split_sum(-rows / scale, PARTS, queries.dtype)
    padding = EXTRA - PARTS
    asked = torch.nn.functional.pad(references, (0, PARTS), value=1)
    asked = torch.nn.functional.pad(asked, (0, padding))
    given = torch.nn.functional.pad(torch.cat([queries, columns], dim=-1), (0, padding))
    return flash(asked, given, scale).float().exp()


def triton_mass(queries: Tensor, keys: Tensor, references: Tensor, scale: float) -> Tensor:
    """By a Triton kernel; as `flash_mass`."""
    from topi.engine.triton_kernels import sum_of_columns  # needs Triton

    rows = flash(queries, keys, scale).float()
    return sum_of_columns(queries, references, rows, scale)


KERNELS = {"flash": flash_mass, "triton": triton_mass}
