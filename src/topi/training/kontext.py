"""Flow-matching training of the Kontext stand-in, with the clean reference in context."""

import time
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from topi.data import CATEGORIES
from topi.data.mini_edit import draw_pair
from topi.models.scheduler import flux_scheduler
from topi.models.standin import (
    GUIDANCE,
    PATCH,
    BlockTransformVAE,
    new_kontext_transformer,
)
from topi.models.text import TEXT_TOKENS, PromptCache

VALIDATION_STEPS = 16  # denoising steps of the samples drawn during training
CHANGED_WEIGHT = 3.0  # weight of tokens that the edit changes, against 1 elsewhere
CHANGED_LATENT = 0.02  # mean square latent difference from which on a token counts as changed


class PairStream(IterableDataset):
    """Endless batches (reference, edited: uint8 [B, H, W, 3]; instructions), never one twice."""

    def __init__(self, size: int, batch: int, start: int):
        self.size, self.batch, self.start = size, batch, start

    def __iter__(self):
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        index, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            first = self.start + index * self.batch
            yield collate([draw_pair("train", first + k, self.size) for k in range(self.batch)])
            index += stride


def collate(pairs: list[tuple]) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Pairs to (references, edited images, instructions, categories)."""
    before, after, prompts, categories, _ = zip(*pairs, strict=True)
    stack = [torch.from_numpy(np.stack(images)) for images in (before, after)]
    return *stack, list(prompts), list(categories)


def to_signed(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def image_ids(grid: tuple[int, int], image: int) -> Tensor:
    """[rows * columns, 3] Flux position ids (image index, row, column)."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    return torch.stack([torch.full_like(rows, image), rows, columns], -1).reshape(-1, 3).float()


class KontextTraining(L.LightningModule):
    """The Lightning module; the transformer and the fixed VAE are its only parts."""

    def __init__(self, vae: BlockTransformVAE, prompts: PromptCache, out: Path, compile: bool):
        super().__init__()
        self.transformer = new_kontext_transformer()
        self.vae = vae.requires_grad_(False)
        # Kept out of the module tree: neither averaged nor saved.
        self.__dict__["prompts"] = prompts
        self.out, self.compile_blocks = out, compile
        self.elapsed = 0.0  # seconds trained in this phase, over all resumes
        self.phase = dict(size=0, seconds=1.0, lr=(0.0, 0.0))

    def begin(self, size: int, minutes: float, lr: tuple[float, float]) -> None:
        """Start a phase: learning rate linear from lr[0] to lr[1] over `minutes` of training."""
        self.phase, self.elapsed = dict(size=size, seconds=60 * minutes, lr=lr), 0.0

    # ------------------------------------------------------------------------------ training
    def velocity(self, noisy: Tensor, reference: Tensor, prompts: list[str], t: Tensor) -> Tensor:
        """v prediction [B, N, 64] for target tokens `noisy` at noise level t [B] in [0, 1]."""
        hidden, pooled = (e.to(noisy.device) for e in self.prompts(prompts))
        side = int(noisy.shape[1] ** 0.5)
        ids = torch.cat([image_ids((side, side), 0), image_ids((side, side), 1)])
        out = self.transformer(
            hidden_states=torch.cat([noisy, reference], 1),
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            timestep=t,
            guidance=torch.full_like(t, GUIDANCE),
            img_ids=ids.to(noisy.device),
            txt_ids=torch.zeros(TEXT_TOKENS, 3, device=noisy.device),
            return_dict=False,
        )[0]
        return out[:, : noisy.shape[1]].float()

    def training_step(self, batch, _) -> Tensor:
        before, after, prompts, _ = batch
        reference, clean = (self.vae.to_tokens(to_signed(x)) for x in (before, after))
        t = torch.sigmoid(torch.randn(len(clean), device=clean.device) * 1.1 + 0.5)
        noise = torch.randn_like(clean)
        mix = t[:, None, None]
        velocity = self.velocity((1 - mix) * clean + mix * noise, reference, prompts, t)
        error = (velocity - (noise - clean)).square()
        changed = (reference - clean).square().mean(-1, keepdim=True) > CHANGED_LATENT
        weight = 1 + (CHANGED_WEIGHT - 1) * changed.float()
        weight = weight / weight.mean((1, 2), keepdim=True)
        self.log("v_mse", error.mean(), prog_bar=True)
        return (error * weight).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(
            self.transformer.parameters(), lr=1e-3, betas=(0.9, 0.97), weight_decay=0.01, fused=True
        )

    def on_before_optimizer_step(self, optimizer) -> None:
        # bf16 has no gradient scaler, so plain clipping is right also with the fused optimizer.
        torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), 1.0)

    def on_fit_start(self) -> None:
        if self.compile_blocks:
            self.transformer.compile(dynamic=False)

    def on_train_start(self) -> None:
        self._tick = time.monotonic()

    def on_train_batch_start(self, batch, batch_idx) -> None:
        now = time.monotonic()
        # A pause (validation, a suspended machine) is not training time.
        self.elapsed += min(now - self._tick, 20.0)
        self._tick = now
        progress = min(self.elapsed / self.phase["seconds"], 1.0)
        first, last = self.phase["lr"]
        warm = min(1.0, (self.global_step + 1) / 80)
        lr = warm * (first + (last - first) * progress)
        for group in self.optimizers().param_groups:
            group["lr"] = lr
        self.log_dict({"lr": lr, "done": progress}, prog_bar=True)
        if progress >= 1.0:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["phase"] = {"elapsed": self.elapsed, **self.phase}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if checkpoint["phase"]["size"] == self.phase["size"]:
            self.elapsed = checkpoint["phase"]["elapsed"]

    # ---------------------------------------------------------------------------- validation
    @torch.no_grad()
    def sample(self, reference: Tensor, prompts: list[str], steps: int, seed: int = 0) -> Tensor:
        """Edited tokens for reference tokens [B, N, 64], by the pipeline's own Euler schedule."""
        scheduler = flux_scheduler()
        mu = 0.5 + (1.15 - 0.5) * (reference.shape[1] - 256) / (4096 - 256)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
        noise = torch.Generator().manual_seed(seed)
        x = torch.randn(reference.shape, generator=noise).to(reference.device)
        for t in scheduler.timesteps:
            level = (t / 1000).expand(len(x)).to(x.device)
            velocity = self.velocity(x, reference, prompts, level)
            x = scheduler.step(velocity, t, x, return_dict=False)[0]
        return x

    def validation_step(self, batch, _) -> None:
        before, after, prompts, categories = batch
        side = before.shape[1] // PATCH
        tokens = self.sample(self.vae.to_tokens(to_signed(before)), prompts, VALIDATION_STEPS)
        images = self.vae.to_images(tokens, (side, side)).clamp(-1, 1)
        error = (images - to_signed(after)).square().mean((1, 2, 3)) / 4
        psnr = -10 * torch.log10(error)
        parts = {}
        for category in CATEGORIES:
            chosen = torch.tensor([c == category for c in categories])
            parts[f"psnr_{category}"] = psnr[chosen].mean().item()
        self.print(
            f"[{self.phase['size']} px, step {self.global_step}, {self.elapsed / 60:.1f} min] "
            + "  ".join(f"{k} {v:.2f}" for k, v in parts.items())
        )
        self.log_dict(parts, batch_size=len(prompts))
        edited = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()
        rows = torch.cat([before.cpu(), edited, after.cpu()], 2)
        rows = rows.reshape(4, -1, *rows.shape[1:]).permute(0, 2, 1, 3, 4)
        grid = rows.reshape(4 * rows.shape[1], -1, 3).numpy()
        name = f"samples-{self.phase['size']}-{self.global_step:06d}.png"
        Image.fromarray(grid).save(self.out / name)


def validation_batch(size: int, count: int = 24) -> DataLoader:
    """Calibration samples, sorted by category, as the one batch that is sampled now and then."""
    pairs = [draw_pair("calibration", k, size) for k in range(count)]
    pairs.sort(key=lambda p: CATEGORIES.index(p[3]))
    return DataLoader([collate(pairs)], batch_size=None)


def train_phase(
    module: KontextTraining,
    size: int,
    minutes: float,
    lr: tuple[float, float],
    batch: int,
    validate_every: int,
    accelerator: str,
    workers: int,
    checkpoint_every: int = 200,
) -> int:
    """Train one phase at one image size; a killed phase goes on from its last checkpoint.

    Returns:
        Optimiser steps of the phase, over all its attempts.
    """
    module.begin(size, minutes, lr)
    folder = module.out / f"phase-{size}"
    last = folder / "last.ckpt"
    checkpoints = L.pytorch.callbacks.ModelCheckpoint(
        folder,
        save_last=True,
        every_n_train_steps=checkpoint_every,
        save_top_k=0,
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision="bf16-mixed",
        max_epochs=-1,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        logger=L.pytorch.loggers.CSVLogger(module.out, name="log", version=f"{size}px"),
        callbacks=[EMAWeightAveraging(decay=0.998), checkpoints],
        enable_model_summary=False,
    )
    # Where a resumed phase starts drawing depends on the clock, so that it sees new samples.
    start = size * 10_000_000 + int(time.time()) % 1_000_000 * 5
    stream = PairStream(size, batch, start)
    loader = DataLoader(
        stream, batch_size=None, num_workers=workers, prefetch_factor=6 if workers else None
    )
    resume = str(last) if last.exists() else None
    trainer.fit(module, loader, validation_batch(size), ckpt_path=resume, weights_only=False)
    steps = trainer.global_step
    trainer.validate(module, validation_batch(size), verbose=False)
    return steps
