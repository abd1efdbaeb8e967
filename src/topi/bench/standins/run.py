"""A training run: its phases, and the files that it leaves behind."""

import logging
import shutil
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from topi.bench.editors.standin import FAMILIES, save_standin, weights_folder
from topi.bench.editors.standin import kontext_standin as kontext
from topi.bench.editors.text import PromptCache
from topi.bench.results import files
from topi.bench.standins.curves import draw_curves
from topi.bench.standins.module import EditorTraining
from topi.bench.standins.origin import begin
from topi.bench.standins.precision import faster_precision
from topi.bench.standins.recipe import curves, recipe
from topi.bench.standins.start import starting_point
from topi.bench.standins.stream import Draw, loader, validation_batches
from topi.bench.standins.training_config import Phase, TrainingConfig, before
from topi.bench.tracking.sync import wandb_mode

log = logging.getLogger(__name__)


def train(config: TrainingConfig) -> bool:
    """Train the phases that are left. Returns True if all of them are finished."""
    L.seed_everything(config.seed)
    torch.set_float32_matmul_precision("high")
    # One graph per image size and grad mode.
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    deadline = None if config.stop_after is None else time.monotonic() + 60 * config.stop_after
    family = FAMILIES[config.model.kind]
    precision = chosen_precision(config)
    begun = begin(config, out, before(config), precision)
    transformer, vae = starting_point(config, out)
    module = EditorTraining(
        family,
        transformer,
        vae,
        PromptCache(),
        out,
        compile_model=config.compile,
        prompt_dropout=config.model.prompt_dropout,
        guidance=config.model.guidance,
        changed_weight=config.changed_weight,
        seed=config.seed,
        deadline=deadline,
    )
    done = [out / f"phase-{k}" / "averaged.safetensors" for k in range(len(config.phases))]
    if all(file.exists() for file in done):
        log.warning("%s is finished; to train its weights further, give another out=", out)
    for index, phase in enumerate(config.phases):
        if done[index].exists():
            log.info("phase %d is done (%s); continuing from it", index, done[index])
            module.load_state_dict(load_file(done[index]))
        elif not train_phase(module, config, index, phase, precision):
            log.info("stopped in phase %d; the same command continues from here", index)
            return False
    save_standin(module.transformer, module.vae, out)
    files.write_json(out / "recipe.json", recipe(config, module.transformer, begun))
    logged = curves(config, out)
    logged.to_csv(out / "curves.csv", index=False, float_format="%.6g")
    draw_curves(logged, out / "curves.png")
    if config.ship:
        folder = weights_folder(config.model.name)
        save_standin(module.transformer, module.vae, folder)
        for name in ("recipe.json", "curves.csv", "curves.png"):
            shutil.copy(out / name, folder)
    return True


def chosen_precision(config: TrainingConfig) -> str:
    """`config.precision`; with `auto` the one that is faster where the run trains."""
    if config.precision != "auto":
        return config.precision
    cuda = config.accelerator != "cpu" and torch.cuda.is_available()
    return faster_precision("cuda" if cuda else "cpu")


def train_phase(
    module: EditorTraining, config: TrainingConfig, index: int, phase: Phase, precision: str
) -> bool:
    """Train one phase, from its last checkpoint if there is one. Returns True if it is finished."""
    out = Path(config.out)
    folder = out / f"phase-{index}"
    module.begin(index, phase.schedule, (phase.noise_mean, phase.noise_spread))
    last = folder / "last.ckpt"
    start = 0
    if last.exists():
        start = torch.load(last, weights_only=True, mmap=True)["global_step"]
    own = phase.references == "target"
    reference_size = kontext.reference_size if own else module.family.reference_size
    draw = Draw(
        phase.sizes,
        phase.batch,
        reference_size,
        **vars(config.data),
        seed=config.seed,
    )
    checkpoints = ModelCheckpoint(
        folder,
        save_last=True,
        every_n_train_steps=config.checkpoint_every,
        save_top_k=0,
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=1,
        precision=precision,
        max_epochs=-1,
        val_check_interval=config.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        logger=loggers_of(config, index, start),
        callbacks=[EMAWeightAveraging(decay=config.ema), checkpoints],
        enable_model_summary=False,
    )
    held_out = torch.utils.data.DataLoader(validation_batches(draw), batch_size=None)
    batches = loader(draw, index, start, config.workers)
    resume = str(last) if last.exists() else None
    trainer.fit(module, batches, held_out, ckpt_path=resume, weights_only=True)
    if not module.finished(trainer.global_step):
        return False
    # After the fit the module holds the averaged weights.
    trainer.validate(module, held_out, verbose=False)
    files.write_json(
        folder / "done.json",
        {
            "steps": trainer.global_step,
            "minutes": module.elapsed / 60,
            "waiting": module.waited / max(module.elapsed, 1e-9),
        },
    )
    tensors = {n: t.contiguous() for n, t in module.state_dict().items()}
    save_file(tensors, folder / "averaged.part")
    (folder / "averaged.part").replace(folder / "averaged.safetensors")
    return True


def loggers_of(config: TrainingConfig, index: int, start: int) -> list[Logger]:
    """CSV, one file per attempt named by its first step; and W&B if asked for."""
    loggers: list[Logger] = [CSVLogger(config.out, name="log", version=f"phase-{index}/{start}")]
    wanted = {"csv": "none", "wandb_offline": "offline", "wandb": "online"}[config.logger]
    if (mode := wandb_mode(wanted)) != "none":
        loggers.append(
            WandbLogger(
                project="topi",
                name=f"{config.model.name} phase {index}",
                save_dir=config.out,
                offline=mode == "offline",
                config=OmegaConf.to_container(OmegaConf.structured(config)),
            )
        )
    return loggers
