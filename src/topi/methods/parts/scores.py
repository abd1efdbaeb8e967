"""Scores of reference tokens beside Eq. 9: the ablations of Table 3, and the exact change."""

from collections.abc import Callable

import torch
from torch import Tensor

from topi.engine.attention import output_change, reference_attention
from topi.models import Layout

Score = Callable[[Tensor, Tensor, Tensor, Layout, Tensor | None], Tensor]
"""Query, key, value [B, S, H, D], layout and mask to the scores [B, |C|] of one layer."""


def value_norms(value: Tensor, layout: Layout) -> Tensor:
    """||v_jh|| of the reference tokens: [B, H, |C|]."""
    references = value[:, layout.references]
    return torch.linalg.vector_norm(references, dim=-1, dtype=torch.float32).transpose(1, 2)


def attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """Attn-Only of Table 3: Eq. 9 without the value norm."""
    return reference_attention(query, key, layout, mask).sum(1)


def similarity(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """Feature Similarity of Table 3: mean cosine to the target tokens, shifted to [0, 1].

    The paper does not say of which features. These are the values, per head: a plain projection of
    the layer's input, where queries and keys carry positions. The shift keeps the order and gives
    Eq. 10 a mass.
    """
    targets, references = (
        torch.nn.functional.normalize(value[:, rows].float(), dim=-1)
        for rows in (layout.targets, layout.references)
    )
    cosine = torch.einsum("bjhd,bhd->bjh", references, targets.mean(1)).mean(-1)
    return (1 + cosine) / 2


def value_norm(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """Eq. 9 without the attention: sum_h ||v_jh||."""
    return value_norms(value, layout).sum(1)


def leave_one_out(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None
) -> Tensor:
    """The exact change of the target outputs, sum_h sum_i A_ij / (1 - A_ij) ||v_j - y_i||.

    Eq. 8 approximates it: it leaves out that the softmax spreads a dropped token's weight over the
    others.
    """
    return output_change(query, key, value, layout, mask).sum(1)


ABLATIONS: dict[str, Score] = {
    score.__name__: score for score in (attention, similarity, value_norm, leave_one_out)
}
