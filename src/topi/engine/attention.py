"""How target tokens attend to reference tokens, without ever holding an attention map.

The softmax runs over all keys the model itself uses, text + target + reference. Over the reference
keys alone every row would sum to one, and Eq. 4 could not tell one layer from another.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from topi.engine.column_mass import KERNELS, attended, fits, log_sum_exp
from topi.models.adapter import Layout

CHUNK = 128  # target queries at a time
PIECE = {"cpu": 2**20}  # map entries that exist at once: 4 MiB, what a core's cache likes ...
PIECE_ON_DEVICE = 2**23  # ... and 32 MiB to keep an accelerator busy
KERNEL = {"cpu": "chunked", "cuda": "flash"}
"""What sums attention weights on a device: "chunked", or one of `column_mass.KERNELS`.

`python -m topi.bench.speed.scoring_speed` measures which is fastest, and how far each is off; on
CUDA nobody has done so yet.
"""


@contextmanager
def scored_by(kernel: str) -> Iterator[None]:
    """Inside, `kernel` sums attention weights on every device."""
    before = dict(KERNEL)
    KERNEL.update(dict.fromkeys(KERNEL, kernel))
    try:
        yield
    finally:
        KERNEL.update(before)


def is_stock(query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """True if `dispatch_attention_fn` just calls `F.scaled_dot_product_attention` without a mask.

    Args:
        options: of `dispatch_attention_fn`, beside the tensors.
    """
    backend = options.get("backend") or _AttentionBackendRegistry.get_active_backend()[0]
    others = any(value for name, value in options.items() if name != "backend")
    wants_gradient = any(states.requires_grad for states in (query, key, value))
    native = backend == AttentionBackendName.NATIVE
    return native and not others and not (wants_gradient and torch.is_grad_enabled())


class OwnAttention:
    """A layer's own attention without a mask, run once its rows' log-sum-exp is asked for.

    Args:
        query, key, value: [B, S, H, D].

    Attributes:
        output: [B, S, H, D], what the layer's attention yields; None until it is run, and where
            torch's kernel for it does not tell the log-sum-exp.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        self._states = query, key, value
        self._rows: Tensor | None = None
        self._ran = False
        self.output: Tensor | None = None

    def rows(self, query: Tensor, key: Tensor) -> Tensor | None:
        """[B, H, S], if it is the attention of just these."""
        if query is not self._states[0] or key is not self._states[1]:
            return None
        if not self._ran:
            self._ran = True
            both = attended(*(states.transpose(1, 2) for states in self._states))
            if both is not None:
                self.output, self._rows = both[0].transpose(1, 2), both[1]
        return self._rows


_own: ContextVar[OwnAttention | None] = ContextVar("attention of the layer looked at", default=None)


@contextmanager
def known(own: OwnAttention | None) -> Iterator[None]:
    """Inside, `own_rows` may run a layer's attention, of which the layer then takes the output."""
    before = _own.set(own)
    try:
        yield
    finally:
        _own.reset(before)


def own_rows(query: Tensor, key: Tensor) -> Tensor | None:
    """The log-sum-exp of a layer's rows over all keys: [B, H, S], None where there is none for it.

    Its own attention tells it, and is run for it, so that scores by a fused kernel cost their sum
    over the columns only.
    """
    own = _own.get()
    return None if own is None or _kernel(query) == "chunked" else own.rows(query, key)


def _kernel(query: Tensor) -> str:
    """What sums the attention weights of queries [B, S, H, D]."""
    kernel = KERNEL.get(query.device.type, "chunked")
    return kernel if fits(query) else "chunked"


@torch.no_grad()
def reference_sums(
    query: Tensor,
    key: Tensor,
    layout: Layout,
    mask: Tensor | None,
    reduce: Callable[[Tensor, slice], Tensor],
    n: int | None = None,
) -> Tensor:
    """Sum over all target tokens of something made of their attention weights, piece by piece.

    Args:
        query, key: [B, S, H, D] after norm and RoPE.
        layout: of the S tokens.
        mask: as the attention got it, boolean (True attends) or additive, broadcastable to
            [B, H, S, S].
        reduce: from the fp32 softmax weights [B, h, r, S] of some target tokens over all keys, and
            which heads these are, to what they contribute: [B, h, n].
        n: of the sums; by default |C|, one for each reference token.

    Returns:
        [B, H, n].
    """
    batch, length, n_heads, _ = query.shape
    n = layout.n_reference if n is None else n
    sums = query.new_zeros(batch, n_heads, n, dtype=torch.float32)
    budget = PIECE.get(query.device.type, PIECE_ON_DEVICE)
    step = max(1, budget // (batch * CHUNK * length))
    for head in range(0, n_heads, step):
        heads = slice(head, min(head + step, n_heads))
        keys = key[:, :, heads].permute(0, 2, 3, 1).float()
        for row in range(layout.targets.start, layout.targets.stop, CHUNK):
            rows = slice(row, min(row + CHUNK, layout.targets.stop))
            queries = query[:, rows, heads].transpose(1, 2).float()
            part = None if mask is None else _mask_piece(mask, heads, rows)
            sums[:, heads] += reduce(_weights(queries, keys, part), heads)
    return sums


def _weights(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """exp(q k / sqrt d - log-sum-exp): [B, h, r, D] and [B, h, D, S] to [B, h, r, S]."""
    logits = (queries * queries.shape[-1] ** -0.5) @ keys
    if mask is not None:
        boolean = mask.dtype == torch.bool
        logits = logits.masked_fill_(~mask, -torch.inf) if boolean else logits.add_(mask)
    return logits.softmax(-1)


def _mask_piece(mask: Tensor, heads: slice, rows: slice) -> Tensor:
    """The part of an attention mask that belongs to some heads and query rows."""
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.shape[1] > 1:
        mask = mask[:, heads]
    return mask[:, :, rows] if mask.shape[2] > 1 else mask


def reference_attention(
    query: Tensor, key: Tensor, layout: Layout, mask: Tensor | None = None
) -> Tensor:
    """The attention a reference token receives from all target tokens, sum_i A_ij: [B, H, |C|].

    By the kernel that `KERNEL` names for the device, if there is no mask.
    """
    kernel = _kernel(query)
    if kernel != "chunked" and mask is None:
        return _fused(KERNELS[kernel], query, key, layout)

    def received(weights: Tensor, heads: slice) -> Tensor:
        return weights[..., layout.references].sum(2)

    return reference_sums(query, key, layout, mask, received)


@torch.no_grad()
def _fused(
    kernel: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    query: Tensor,
    key: Tensor,
    layout: Layout,
) -> Tensor:
    """`reference_attention` by one of `KERNELS`."""
    queries, keys = query[:, layout.targets].transpose(1, 2), key.transpose(1, 2)
    scale = query.shape[-1] ** -0.5
    rows = own_rows(query, key)
    rows = log_sum_exp(queries, keys, scale) if rows is None else rows[..., layout.targets]
    return kernel(queries, keys[:, :, layout.references], rows, scale)


def output_change(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, mask: Tensor | None = None
) -> Tensor:
    """How far all target outputs move if one reference key alone is left out: [B, H, |C|].

    Leaving out key j rescales the other weights, so y_i moves by exactly
    A_ij / (1 - A_ij) * ||v_j - y_i||.
    """

    def change(weights: Tensor, heads: slice) -> Tensor:
        values = value[:, :, heads].transpose(1, 2).float()
        outputs = weights @ values
        references = values[:, :, layout.references]
        distance = (outputs @ references.transpose(-1, -2)).mul_(-2)
        distance += outputs.square().sum(-1, keepdim=True)
        distance += references.square().sum(-1).unsqueeze(-2)
        weights = weights[..., layout.references]
        odds = weights / (1 - weights).clamp_min_(torch.finfo(torch.float32).eps)
        return odds.mul_(distance.clamp_min_(0).sqrt_()).sum(2)

    return reference_sums(query, key, layout, mask, change)


def context_sensitivity(attention: Tensor, layout: Layout) -> Tensor:
    """Eq. 4 as a mean over heads and target tokens: the references' share of attention, [B].

    Args:
        attention: [B, H, |C|] from `reference_attention`.
    """
    return attention.sum(-1).mean(1) / layout.n_target


def image_attention(
    query: Tensor, key: Tensor, layout: Layout, mask: Tensor | None = None
) -> Tensor:
    """The attention each image token receives from all target tokens: [B, H, |G| + |C|]."""

    def received(weights: Tensor, heads: slice) -> Tensor:
        return weights[..., layout.n_text :].sum(2)

    return reference_sums(query, key, layout, mask, received, layout.n_image)


def weigh_text(
    query: Tensor, key: Tensor, mask: Tensor | None, weight: float, n_text: int
) -> Tensor:
    """A mask with which every text key has `weight` times its own weight before normalisation.

    Args:
        query, key: [B, S, H, D], text first.
        mask: what it is added to, boolean (True attends) or additive, broadcastable to
            [B, H, S, S].

    Returns:
        An additive mask: log(weight) at the text keys.
    """
    bias = query.new_zeros(1, 1, 1, key.shape[1])
    bias[..., :n_text] = math.log(weight)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask[(None,) * (4 - mask.ndim)], -torch.inf)
    return bias + mask
