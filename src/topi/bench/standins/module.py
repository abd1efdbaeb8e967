"""The Lightning module that trains a stand-in editor with its references in context."""

import time
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor, nn

from topi.bench.data import CATEGORIES
from topi.bench.editors.standin import Family
from topi.bench.editors.standin.latents import PATCH
from topi.bench.editors.text import PromptCache
from topi.bench.standins.flow import (
    NOISE_MEAN,
    NOISE_SPREAD,
    guided,
    interpolate,
    noise_levels,
    sample,
    token_weights,
)
from topi.bench.standins.optimizer import muon_and_adamw
from topi.bench.standins.stream import Batch

VALIDATION_STEPS = 16
"""Denoising steps of the samples drawn during training."""
WARM_UP = 80
"""Steps over which the learning rate rises at the start of a phase (the optimiser starts anew)."""
PAUSE = 20.0
"""Seconds after which a step counts as interrupted: a suspended machine does not train."""


@dataclass(frozen=True)
class Schedule:
    """One phase: how long, and the learning rate from its start to its end (linear).

    Args:
        steps: optimiser steps; with them a run can be repeated exactly.
        minutes: a budget of training time instead, for a machine of unknown speed.
    """

    lr: float
    lr_end: float
    steps: int | None = None
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """The finished share of the phase, 0 to 1."""
        done = step / self.steps if self.steps else seconds / (60 * self.minutes)
        return min(done, 1.0)

    def learning_rate(self, step: int, seconds: float) -> float:
        """At optimiser step `step`, after `seconds` of training."""
        warm = min(1.0, (step + 1) / WARM_UP)
        return warm * (self.lr + (self.lr_end - self.lr) * self.progress(step, seconds))


class EditorTraining(L.LightningModule):
    """Transformer and frozen VAE of a stand-in; only the transformer learns.

    Args:
        prompt_dropout: share of prompts left empty, for classifier-free guidance.
        guidance: of the samples drawn in validation; 1 is none.
        changed_weight: weight of tokens that the edit changes, against 1 elsewhere.
        seed: of noise levels, noise and dropout, which depend on it and the step alone.
        deadline: of `time.monotonic()`, after which training stops and can be resumed.
    """

    def __init__(
        self,
        family: Family,
        transformer: nn.Module,
        vae: nn.Module,
        prompts: PromptCache,
        out: Path,
        compile_model: bool = False,
        prompt_dropout: float = 0.0,
        guidance: float = 1.0,
        changed_weight: float = 3.0,
        seed: int = 0,
        deadline: float | None = None,
    ):
        super().__init__()
        self.transformer = transformer.train().requires_grad_(True)
        self.vae = vae.eval().requires_grad_(False)
        # Kept out of the module tree: neither averaged nor saved.
        self.__dict__["prompts"] = prompts
        self.family, self.out, self.compile_model = family, out, compile_model
        self.prompt_dropout, self.guidance = prompt_dropout, guidance
        self.changed_weight, self.seed, self.deadline = changed_weight, seed, deadline
        self.elapsed = 0.0  # seconds trained in this phase, over all resumes
        self.waited = 0.0  # of them, seconds spent waiting for data
        self.begin(0, Schedule(0.0, 0.0, steps=1))

    def begin(
        self,
        index: int,
        schedule: Schedule,
        noise: tuple[float, float] = (NOISE_MEAN, NOISE_SPREAD),
    ) -> None:
        """Start the phase of this index; `noise` is mean and spread of `noise_levels`."""
        self.noise = noise
        self.index, self.schedule, self.elapsed, self.waited = index, schedule, 0.0, 0.0

    def finished(self, step: int) -> bool:
        """True if the phase is over after so many optimiser steps."""
        return self.schedule.progress(step, self.elapsed) >= 1

    # ------------------------------------------------------------------------------ training
    def velocity(
        self, noisy: Tensor, references: list[Tensor], grids: list, prompts: list[str], t: Tensor
    ) -> Tensor:
        """v prediction [B, N, 64] for target tokens `noisy` at noise level t [B] in [0, 1]."""
        text = tuple(e.to(noisy.device) for e in self.prompts(prompts))
        return self.family.velocity(self.transformer, [noisy, *references], grids, text, t)

    @torch.no_grad()
    def encode(self, batch: Batch) -> tuple[Tensor, list[Tensor], list[tuple[int, int]]]:
        """(clean target tokens, those of each reference, their grids, target first)."""
        images = [to_signed(x.to(self.device)) for x in (batch.edited, *batch.references)]
        clean, *references = (self.vae.to_tokens(image) for image in images)
        return clean, references, [(x.shape[2] // PATCH, x.shape[3] // PATCH) for x in images]

    def training_step(self, batch: Batch, _) -> Tensor:
        clean, references, grids = self.encode(batch)
        chance = torch.Generator(clean.device)
        chance.manual_seed(self.seed * 1_000_003 + self.index * 100_003_001 + self.global_step)
        t = noise_levels(len(clean), chance, *self.noise)
        noise = torch.randn(clean.shape, generator=chance, device=clean.device)
        dropped = torch.rand(len(clean), generator=chance, device=clean.device)
        dropped = (dropped < self.prompt_dropout).tolist()
        prompts = ["" if d else p for p, d in zip(batch.prompts, dropped, strict=True)]
        velocity = self.velocity(interpolate(clean, noise, t), references, grids, prompts, t)
        error = (velocity - (noise - clean)).square()
        self.log("v_mse", error.mean(), prog_bar=True, batch_size=len(clean))
        return (error * token_weights(clean, references[0], self.changed_weight)).mean()

    def configure_optimizers(self):
        return muon_and_adamw(self.transformer)

    def on_before_optimizer_step(self, optimizer) -> None:
        # bf16 has no gradient scaler, so plain clipping is right also with the fused optimizer.
        torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), 1.0)

    def on_fit_start(self) -> None:
        if self.compile_model:
            # Block by block: the whole takes most of a minute per image size and is no faster.
            self.transformer.compile_repeated_blocks(dynamic=False)

    def on_train_start(self) -> None:
        self._tick = self._ready = time.monotonic()

    def on_train_batch_start(self, batch, batch_idx) -> None:
        now = time.monotonic()
        self.elapsed += min(now - self._tick, PAUSE)
        self.waited += min(now - self._ready, PAUSE)
        self._tick = now
        lr = self.schedule.learning_rate(self.global_step, self.elapsed)
        for group in self.optimizers().param_groups:
            group["lr"] = lr
        progress = self.schedule.progress(self.global_step, self.elapsed)
        waiting = self.waited / max(self.elapsed, 1e-9)
        self.log_dict({"lr": lr, "done": progress, "waiting": waiting}, prog_bar=True)

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self._ready = time.monotonic()
        late = self.deadline is not None and self._ready > self.deadline
        if late:  # before averaging replaces the weights
            self.trainer.save_checkpoint(self.out / f"phase-{self.index}" / "last.ckpt")
        if late or self.finished(self.global_step):
            self.trainer.should_stop = True

    def on_validation_end(self) -> None:
        self._tick = self._ready = time.monotonic()  # validation is not training time

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["phase"] = {"index": self.index, "elapsed": self.elapsed, "waited": self.waited}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        phase = checkpoint["phase"]
        if phase["index"] == self.index:
            self.elapsed, self.waited = phase["elapsed"], phase["waited"]

    # ---------------------------------------------------------------------------- validation
    def edit(self, batch: Batch, steps: int, seed: int = 0) -> Tensor:
        """Edited images [B, 3, H, W] in [-1, 1], as the pipeline would make them."""
        clean, references, grids = self.encode(batch)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            cond = self.velocity(x, references, grids, batch.prompts, t)
            if self.guidance == 1:
                return cond
            empty = [""] * len(batch.prompts)
            return guided(cond, self.velocity(x, references, grids, empty, t), self.guidance)

        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        tokens = sample(velocity, noise.to(clean.device), steps)
        return self.vae.to_images(tokens, grids[0]).clamp(-1, 1)

    def validation_step(self, batch: Batch, _) -> None:
        images = self.edit(batch, VALIDATION_STEPS)
        error = (images - to_signed(batch.edited.to(images.device))).square().mean((1, 2, 3)) / 4
        psnr = -10 * torch.log10(error)
        parts = {f"psnr_{batch.name}": psnr.mean().item()} if batch.name else {}
        for category in () if batch.name else CATEGORIES:
            chosen = [k for k, c in enumerate(batch.categories) if c == category]
            if chosen:
                parts[f"psnr_{category}"] = psnr[chosen].mean().item()
        minutes = self.elapsed / 60
        self.print(
            f"[phase {self.index}, step {self.global_step}, {minutes:.1f} min] "
            + "  ".join(f"{k} {v:.2f}" for k, v in parts.items())
        )
        self.log_dict(parts, batch_size=len(batch.prompts), add_dataloader_idx=False)
        grid = sample_grid(batch, images)
        name = f"-{batch.name}" if batch.name else ""
        grid.save(self.out / f"samples-{self.index}-{self.global_step:06d}{name}.png")
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"samples{name}", [grid], step=self.global_step)


def to_signed(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def sample_grid(batch: Batch, images: Tensor, columns: int = 6) -> Image.Image:
    """References, at the height of the target | edited | true edit; `columns` samples per row."""
    edited = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()
    height = edited.shape[1]
    parts = []
    for shown in batch.references:
        size = (height, round(shown.shape[2] * height / shown.shape[1]))
        resized = nn.functional.interpolate(shown.cpu().permute(0, 3, 1, 2).float(), size)
        parts.append(resized.byte().permute(0, 2, 3, 1))
    cells = torch.cat([*parts, edited, batch.edited.cpu()], 2)
    missing = -len(cells) % columns
    cells = torch.cat([cells, cells.new_full((missing, *cells.shape[1:]), 255)])
    rows = cells.reshape(-1, columns, *cells.shape[1:]).permute(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(-1, columns * cells.shape[2], 3).numpy())
