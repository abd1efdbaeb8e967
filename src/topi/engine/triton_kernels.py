"""Column sums of attention weights in one pass: a block of keys stays, the queries stream by."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@triton.jit
def _column_sums(
    query_ptr,
    key_ptr,
    lse_ptr,
    out_ptr,
    n_rows,
    n_columns,
    width,
    scale,
    stride_qh,
    stride_qn,
    stride_kh,
    stride_kn,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """One program: one head of one sample, one block of keys; it alone writes their sums."""
    head = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channels = tl.arange(0, BLOCK_WIDTH)
    in_width = channels[None, :] < width
    keys = tl.load(
        key_ptr + head * stride_kh + columns[:, None] * stride_kn + channels[None, :],
        mask=(columns[:, None] < n_columns) & in_width,
        other=0.0,
    )
    sums = tl.zeros([BLOCK_COLUMNS], dtype=tl.float32)
    for start in range(0, n_rows, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        queries = tl.load(
            query_ptr + head * stride_qh + rows[:, None] * stride_qn + channels[None, :],
            mask=(rows[:, None] < n_rows) & in_width,
            other=0.0,
        )
        # a row that is not there has an infinite sum, and so weights of zero
        lse = tl.load(lse_ptr + head * n_rows + rows, mask=rows < n_rows, other=float("inf"))
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        sums += tl.sum(tl.exp2(logits - lse[:, None]), axis=0)
    tl.store(out_ptr + head * n_columns + columns, sums, mask=columns < n_columns)


def sum_of_columns(queries: Tensor, references: Tensor, rows: Tensor, scale: float) -> Tensor:
    """sum_i exp(scale q_i k_j - rows_i), accumulated in fp32 without atomics.

    Args:
        queries: [B, H, n, D].
        references: [B, H, m, D], the k_j.
        rows: [B, H, n] fp32, log-sum-exp.

    Returns:
        [B, H, m] fp32.
    """
    batch, heads, n_rows, width = queries.shape
    n_columns = references.shape[2]
    queries, references = (
        states.reshape(batch * heads, -1, width).contiguous() for states in (queries, references)
    )
    sums = queries.new_empty(batch, heads, n_columns, dtype=torch.float32)
    half = queries.element_size() == 2
    block = (64, 128) if half else (32, 64)
    grid = (triton.cdiv(n_columns, block[1]), batch * heads)
    _column_sums[grid](
        queries,
        references,
        (rows * LOG2_E).contiguous(),
        sums,
        n_rows,
        n_columns,
        width,
        scale * LOG2_E,
        queries.stride(0),
        queries.stride(1),
        references.stride(0),
        references.stride(1),
        BLOCK_ROWS=block[0],
        BLOCK_COLUMNS=block[1],
        BLOCK_WIDTH=max(16, triton.next_power_of_2(width)),
    )
    return sums
