"""Training of the small convolutional autoencoder that stands in for a learnt image VAE."""

import logging
from itertools import islice
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file
from torch import Tensor

from topi.bench.editors.standin import ConvVAE
from topi.bench.standins.module import to_signed
from topi.bench.standins.stream import Batch, Draw, loader

log = logging.getLogger(__name__)

SIZE = 64  # pixels
NOISE = 0.05
"""Standard deviation of noise on standardised latents, so that the decoder forgives an editor."""


class AutoencoderTraining(L.LightningModule):
    """Mean square error in pixels, latents perturbed a little."""

    def __init__(self, vae: ConvVAE, steps: int):
        super().__init__()
        self.vae, self.steps = vae, steps

    def training_step(self, batch: Batch, _) -> Tensor:
        images = to_signed(torch.cat([batch.edited, *batch.references]))
        latents = self.vae.encode(images).latents
        noise = NOISE * latents.detach().std() * torch.randn_like(latents)
        error = (self.vae.decode(latents + noise).sample - images).square().mean()
        self.log("psnr", -10 * torch.log10(error / 4), prog_bar=True, batch_size=len(images))
        return error

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def train_autoencoder(
    out: Path, accelerator: str, seed: int, workers: int, batch: int, steps: int
) -> ConvVAE:
    """A ConvVAE trained on MiniEdit's images and standardised; kept in `out` for a next time.

    Args:
        batch: pairs of images per step.
    """
    kept = out / "autoencoder.safetensors"
    vae = ConvVAE()
    if kept.exists():
        vae.load_state_dict(load_file(kept))
        return vae
    draw = Draw([(SIZE, SIZE)], batch, lambda size: size, seed=seed)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=steps,
        logger=CSVLogger(out, name="log", version="autoencoder"),
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(AutoencoderTraining(vae, steps), loader(draw, 2**31 - 1, 0, workers))
    vae = vae.cpu().eval()
    batches = islice(loader(draw, 2**31, 0, 0), 8)
    images = torch.cat([to_signed(x) for b in batches for x in (b.edited, *b.references)])
    vae.fit(images)
    with torch.no_grad():
        error = (vae.decode(vae.encode(images).latents).sample - images).square().mean()
    log.info("autoencoder: %.1f dB", -10 * torch.log10(error / 4).item())
    save_file({n: t.contiguous() for n, t in vae.state_dict().items()}, kept)
    return vae
