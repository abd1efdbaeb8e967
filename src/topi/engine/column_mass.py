"""What each reference key receives from all target queries, sum_i exp(s q_i k_j - lse_i), fused.

The log-sum-exp of a row over all keys comes from the layer's own attention (`attended`), or from a
stock flash kernel that runs for nothing else (`log_sum_exp`). With it, the sum over rows is the sum
over the keys of an attention whose roles are swapped (`flash_mass`), or a kernel of its own
(`triton_mass`). Neither holds a map. Masks are not supported: `engine.attention` has the general
way.

At real size (24 heads of 128, 4096 targets, 4096 references, 512 text tokens) rows that the layer
does not give take 438 GFLOP, the swapped attention takes 206, the kernel of its own 103.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

EXTRA = 8
"""Head columns added for the log-sum-exp: flash kernels want a multiple of eight."""
PARTS = 3
"""So many of them hold it: a bfloat16 has 8 bits of it, three have 24."""


def attended(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """`F.scaled_dot_product_attention` of [B, H, n, D], by the kernel that it would choose itself.

    Returns:
        The output, equal to the last bit, and the log-sum-exp of its rows over all keys [B, H, n]
        in fp32; None where that kernel does not tell it.
    """
    aten, device = torch.ops.aten, query.device.type
    choice = (device, torch._fused_sdp_choice(query, key, value))
    if choice == ("cpu", SDPBackend.FLASH_ATTENTION.value):
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    if choice == ("cuda", SDPBackend.FLASH_ATTENTION.value) and query.shape[-1] % 8 == 0:
        return aten._scaled_dot_product_flash_attention(query, key, value)[:2]
    if choice == ("cuda", SDPBackend.CUDNN_ATTENTION.value):
        output, rows = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)[:2]
        return output, rows.squeeze(-1)
    return None


def fits(query: Tensor) -> bool:
    """True if flash kernels take heads as in `query` [..., D], also with the extra columns."""
    if query.device.type != "cuda":
        return True
    wide = query.new_empty(1, 1, 1, query.shape[-1] + EXTRA)
    given = torch.backends.cuda.SDPAParams(wide, wide, wide, None, 0.0, False, False)
    return wide.shape[-1] % 8 == 0 and torch.backends.cuda.can_use_flash_attention(given)


def log_sum_exp(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Of the logits over keys, by a flash attention: [B, H, n, D] and [B, H, m, D] to [B, H, n]."""
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


def flash_mass(queries: Tensor, references: Tensor, rows: Tensor, scale: float) -> Tensor:
    """By a stock flash kernel with the roles swapped, the rows' log-sum-exp in extra head columns.

    Args:
        queries: [B, H, |G|, D] of the target tokens.
        references: [B, H, |C|, D], the keys that are asked for.
        rows: [B, H, |G|], the log-sum-exp of each query's logits over all keys.
        scale: of the logits, 1 / sqrt d.

    Returns:
        [B, H, |C|] in fp32.
    """
    asked = torch.nn.functional.pad(references, (0, EXTRA))
    given = torch.nn.functional.pad(queries, (0, EXTRA))
    columns = slice(-EXTRA, PARTS - EXTRA)
    asked[..., columns] = 1
    given[..., columns] = split_sum(-rows / scale, PARTS, queries.dtype)
    return log_sum_exp(asked, given, scale).float().exp()


def triton_mass(queries: Tensor, references: Tensor, rows: Tensor, scale: float) -> Tensor:
    """By a Triton kernel; as `flash_mass`."""
    from topi.engine.triton_kernels import sum_of_columns  # needs Triton

    return sum_of_columns(queries, references, rows.float(), scale)


KERNELS = {"flash": flash_mass, "triton": triton_mass}
