"""The optimiser of the stand-ins: Muon for the blocks' matrices, AdamW for everything else."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


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
            torch.optim.Muon(
                blocks, lr=1e-3, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(
                rest, lr=1e-3, betas=(0.9, 0.97), weight_decay=weight_decay, fused=True
            ),
        ]
    )
