"""Flow matching (rectified flow): the equations of training and sampling, on tokens.

x_t = (1 - t) x + t eps with t in [0, 1]; the model predicts v = eps - x (arXiv 2209.03003,
2403.03206).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from topi.models.scheduler import flux_scheduler

CHANGED_LATENT = 0.02
"""Mean square latent difference from which on a token counts as changed by the edit."""


NOISE_MEAN, NOISE_SPREAD = 0.5, 1.1
"""Of the logit of noise levels in training, unless a phase has its own."""


def noise_levels(
    count: int,
    generator: torch.Generator,
    mean: float = NOISE_MEAN,
    spread: float = NOISE_SPREAD,
) -> Tensor:
    """[count] levels t, logit-normal: sigmoid(N(mean, spread))."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return torch.sigmoid(normal * spread + mean)


def interpolate(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """x_t [B, N, D] at level t [B]."""
    t = level[:, None, None]
    return (1 - t) * clean + t * noise


def token_weights(clean: Tensor, reference: Tensor, changed: float) -> Tensor:
    """[B, N, 1], mean 1 per sample: tokens that the edit changes weigh `changed` times the others.

    Where the reference has another number of tokens there is no telling, and all weigh the same.
    """
    if reference.shape != clean.shape:
        return torch.ones_like(clean[..., :1])
    differs = (reference - clean).square().mean(-1, keepdim=True) > CHANGED_LATENT
    weight = 1 + (changed - 1) * differs.float()
    return weight / weight.mean((1, 2), keepdim=True)


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """True classifier-free guidance with the norm of the conditional prediction, as Qwen's."""
    combined = uncond + scale * (cond - uncond)
    return combined * (cond.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))


@torch.no_grad()
def sample(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Integrate from noise [B, N, D] to clean tokens, by the pipelines' own Euler schedule.

    Args:
        velocity: (x_t, t [B]) -> v.
    """
    scheduler = flux_scheduler()
    mu = 0.5 + (1.15 - 0.5) * (noise.shape[1] - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    x = noise
    for t in scheduler.timesteps:
        level = (t / 1000).expand(len(x)).to(x.device)
        x = scheduler.step(velocity(x, level), t, x, return_dict=False)[0]
    return x
