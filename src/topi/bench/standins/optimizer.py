"""The optimiser of the stand-ins: Muon for the blocks' matrices, AdamW for everything else."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr


class Together(torch.optim.Optimizer):
    """Several optimisers that step as one, for a trainer that knows one only.

    Args:
        parts: optimisers of different parameters.
    """

    def __init__(self, parts: Iterable[torch.optim.Optimizer]):
        self.parts = list(parts)
        self.defaults: dict[str, Any] = {}
        # The very groups and states of the parts, so that a learning rate set here reaches them.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        return {tensor: state for part in self.parts for tensor, state in part.state.items()}

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class StackedMuon(torch.optim.Muon):
    """torch's Muon, orthogonalising all matrices of one shape at once, in their own precision.

    One by one in bf16, as torch has it, the iterations of a stand-in's many small matrices take as
    long as its forward and backward pass on a CPU without fast bf16.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights, gradients, momenta = [], [], []
            self._init_group(group, weights, gradients, momenta)
            rest = 1 - group["momentum"]
            torch._foreach_lerp_(momenta, gradients, rest)
            updates = momenta
            if group["nesterov"]:
                updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for members in same_shape(weights):
                stacked = torch.stack([updates[k] for k in members])
                changes = orthogonalised(
                    stacked, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], stacked.shape[1:])
                for k, change in zip(members, changes, strict=True):
                    weights[k].sub_(change, alpha=rate)
        return loss


def same_shape(tensors: Iterable[Tensor]) -> list[list[int]]:
    """The places of tensors, those of one shape together."""
    found = defaultdict(list)
    for place, tensor in enumerate(tensors):
        found[tensor.shape].append(place)
    return list(found.values())


def orthogonalised(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """[N, A, B] -> the same with singular values near 1: Newton-Schulz iterations of Muon."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_and_adamw(transformer: nn.Module, weight_decay: float = 0.01) -> Together:
    """Muon (https://kellerjordan.github.io/posts/muon) where it is meant for, AdamW elsewhere.

    Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982), so one learning rate,
    which the schedule sets, serves both. Embedders, output projection, biases and norms are
    AdamW's.
    """
    blocks, rest = [], []
    for name, weight in transformer.named_parameters():
        (blocks if "blocks." in name and weight.ndim == 2 else rest).append(weight)
    return Together(
        [
            StackedMuon(blocks, lr=1e-3, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                rest, lr=1e-3, betas=(0.9, 0.97), weight_decay=weight_decay, fused=True
            ),
        ]
    )
