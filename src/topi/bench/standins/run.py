"""A training run: its configuration, its phases, and what it leaves behind."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from diffusers import QwenImageTransformer2DModel
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file, save_file
from torch import nn

from topi.bench.config.schema import ConfigError, check_choice, sentence
from topi.bench.data.mini_edit import TRAIN_SHARES, draw_pair, label
from topi.bench.data.mini_edit_plus import TASKS as PLUS_TASKS
from topi.bench.editors.standin import FAMILIES, LATENTS, load_parts, save_standin, weights_folder
from topi.bench.editors.standin import kontext_standin as kontext
from topi.bench.editors.text import PromptCache
from topi.bench.standins.autoencoder import train_autoencoder
from topi.bench.standins.average import same_latents, same_shapes, weighted_mean
from topi.bench.standins.convert import qwen_from_kontext
from topi.bench.standins.curves import draw_curves
from topi.bench.standins.deepen import deepened
from topi.bench.standins.flow import NOISE_MEAN, NOISE_SPREAD
from topi.bench.standins.module import EditorTraining, Schedule, to_signed
from topi.bench.standins.origin import begin
from topi.bench.standins.precision import faster_precision
from topi.bench.standins.stream import Draw, loader, stacked, validation_batches
from topi.bench.tracking.sync import wandb_mode

log = logging.getLogger(__name__)

SHIPPED = ("kontext_standin", "qwen_standin")
LOGGERS = ("csv", "wandb_offline", "wandb")
PRECISIONS = ("auto", "bf16-mixed", "32-true")


@dataclass
class ModelSpec:
    """What to train: `transformer` are the arguments of the family's builder.

    It gets `deeper` times as many layers as those say.
    """

    name: str
    kind: str
    transformer: dict[str, Any]
    deeper: int = 1
    latents: str = "block"
    prompt_dropout: float = 0.0
    guidance: float = 1.0


@dataclass
class DataSpec:
    """Fields of `topi.bench.standins.stream.Draw`."""

    shift: int = 0
    scale: float = 1.0
    enlarge: int = 1
    focus: float = 0.0
    focus_on: list[str] = field(default_factory=list)
    beside: float = 0.0
    plus: float = 0.0


@dataclass
class AutoencoderSpec:
    """Pairs of images per step, and steps."""

    batch: int
    steps: int


@dataclass
class Phase:
    """Sizes as [height, width] in pixels; `steps` or `minutes`; learning rate linear to lr_end.

    A size may have four numbers: those of the target, then those of the reference. The logits of
    noise levels have `noise_mean` and `noise_spread`: the higher the levels, the more an edit has
    to come from the reference and the instruction in place of the target's own traces.
    References are as large as the pipeline makes them, or as the target with `references=target`:
    small pictures are cheaper then.
    """

    sizes: list[list[int]]
    batch: int
    lr: float
    lr_end: float | None = None
    steps: int | None = None
    minutes: float | None = None
    references: str = "pipeline"
    noise_mean: float = NOISE_MEAN
    noise_spread: float = NOISE_SPREAD

    def longer(self, times: int) -> "Phase":
        """So many times the steps or minutes."""
        given = {"steps": self.steps, "minutes": self.minutes}
        return replace(self, **{n: v * times for n, v in given.items() if v is not None})

    @property
    def schedule(self) -> Schedule:
        end = self.lr if self.lr_end is None else self.lr_end
        return Schedule(self.lr, end, self.steps, self.minutes)


@dataclass
class TrainingConfig:
    """`conf/training/config.yaml`, which explains the fields."""

    model: ModelSpec
    data: DataSpec
    phases: list[Phase]
    start: str
    out: str
    seed: int
    accelerator: str
    precision: str
    compile: bool
    workers: int
    logger: str
    stop_after: float | None
    validate_every: int
    checkpoint_every: int
    ema: float
    autoencoder: AutoencoderSpec
    changed_weight: float
    hardware: str
    ship: bool
    deepen: bool = False
    longer: int = 1
    overrides: list[str] = field(default_factory=list)


def read_training(composed: DictConfig) -> TrainingConfig:
    """Check a composed configuration.

    Raises:
        ConfigError: an unknown key or name, a missing value or an impossible one.
    """
    own = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainingConfig), own))
    except OmegaConfBaseException as error:
        raise ConfigError(sentence(error)) from error
    check_choice("model.kind", config.model.kind, FAMILIES)
    check_choice("model.latents", config.model.latents, LATENTS)
    check_choice("logger", config.logger, LOGGERS)
    check_choice("precision", config.precision, PRECISIONS)
    if not config.phases:
        raise ConfigError("phases is empty; name at least one.")
    for k, phase in enumerate(config.phases):
        if (phase.steps is None) == (phase.minutes is None):
            raise ConfigError(f"phases.{k} needs either steps or minutes.")
        if any(len(size) not in (2, 4) or side % 8 for size in phase.sizes for side in size):
            raise ConfigError(
                f"phases.{k}.sizes must be [height, width], or those of the target and those of "
                "the reference, in multiples of 8."
            )
        check_choice(f"phases.{k}.references", phase.references, ("pipeline", "target"))
    for name in ("focus", "beside", "plus"):
        if not 0 <= getattr(config.data, name) <= 1:
            raise ConfigError(
                f"data.{name}={getattr(config.data, name)} must be a share, from 0 to 1."
            )
    for task in config.data.focus_on:
        check_choice("data.focus_on", task, (*TRAIN_SHARES, *PLUS_TASKS))
    if config.data.focus and not config.data.focus_on:
        raise ConfigError(f"data.focus={config.data.focus} needs tasks in data.focus_on.")
    for folder in before(config):
        if not (folder / "model.safetensors").exists():
            raise ConfigError(
                f"start={config.start}: there are no weights in {folder}. Name scratch, shipped, "
                f"{', '.join(SHIPPED)} or the folder of a finished run, or several of these but "
                "scratch with a plus between them, to start from their mean."
            )
    if config.data.beside and config.model.kind != "kontext":
        raise ConfigError("data.beside is for Kontext, which takes a single picture.")
    if config.longer < 1:
        raise ConfigError(f"longer={config.longer} must be at least 1.")
    config.phases = [phase.longer(config.longer) for phase in config.phases]
    if config.data.plus and config.model.kind == "kontext":
        raise ConfigError("data.plus needs a model that takes two references; use a Qwen one.")
    if HydraConfig.initialized():
        config.overrides = list(HydraConfig.get().overrides.task)
    return config


def train(config: TrainingConfig) -> bool:
    """Train what is left of the phases; returns whether all of them are finished."""
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
    if all(
        (out / f"phase-{k}" / "averaged.safetensors").exists() for k in range(len(config.phases))
    ):
        log.warning("%s is finished; to train its weights further, give another out=", out)
    for index, phase in enumerate(config.phases):
        done = out / f"phase-{index}" / "averaged.safetensors"
        if done.exists():
            log.info("phase %d is done (%s); going on from it", index, done)
            module.load_state_dict(load_file(done))
        elif not train_phase(module, config, index, phase, precision):
            log.info("stopped in phase %d; the same command goes on from here", index)
            return False
    save_standin(module.transformer, module.vae, out)
    told = {"architecture": architecture(module.transformer), "enlarge": config.data.enlarge}
    told["references"] = 1 + (config.data.beside > 0.5)  # of what it is evaluated with
    told |= {"latents": config.model.latents, "prompt_dropout": config.model.prompt_dropout}
    told["runs"] = runs(config, out, begun)
    (out / "recipe.json").write_text(json.dumps(told, indent=1) + "\n")
    learnt = curves(config, out)
    learnt.to_csv(out / "curves.csv", index=False, float_format="%.6g")
    draw_curves(learnt, out / "curves.png")
    if config.ship:
        folder = weights_folder(config.model.name)
        save_standin(module.transformer, module.vae, folder)
        for name in ("recipe.json", "curves.csv", "curves.png"):
            shutil.copy(out / name, folder)
    return True


def starting_point(config: TrainingConfig, out: Path) -> tuple[nn.Module, nn.Module]:
    """(transformer, VAE) to begin with: new ones, or the mean of those that `start` names.

    Raises:
        ConfigError: they are of an architecture that this one cannot start from, or do not average.
    """
    if sources := before(config):
        parts = [load_parts(source) for source in sources]
        models = [_as_configured(config, transformer) for transformer, _ in parts]
        vaes = [vae for _, vae in parts]
        if not (same_shapes(models) and same_latents(vaes)):
            raise ConfigError(
                f"start={config.start} names models of different shapes or latents: only those "
                "of one family can be averaged."
            )
        return weighted_mean(models, [1 / len(models)] * len(models)), vaes[-1]
    transformer = new_transformer(config.model)
    if config.model.latents == "conv":
        own = vars(config.autoencoder)
        return transformer, train_autoencoder(
            out, config.accelerator, config.seed, config.workers, **own
        )
    pairs = [draw_pair("train", k, 64) for k in range(800)]
    images = to_signed(stacked([image for pair in pairs for image in pair[:2]]))
    return transformer, LATENTS["block"]().fit(images)


def _as_configured(config: TrainingConfig, transformer: nn.Module) -> nn.Module:
    """A trained transformer as one of the configured family and, with `deepen`, depth."""
    family = FAMILIES[config.model.kind].transformer
    if not isinstance(transformer, family):
        if family is not QwenImageTransformer2DModel:
            raise ConfigError(
                f"start={config.start} is a {type(transformer).__name__}, and {config.model.name} "
                f"is a {family.__name__}: only a Qwen stand-in can start as a Kontext one."
            )
        pooled = PromptCache()([draw_pair("train", k, 64)[2] for k in range(400)])[1]
        zero = config.model.transformer.get("zero_cond_t", False)
        transformer = qwen_from_kontext(transformer, pooled, zero)
    return deepened(transformer, new_transformer(config.model)) if config.deepen else transformer


def new_transformer(model: ModelSpec) -> nn.Module:
    """Of initial weights, with as many layers as are asked for."""
    counts = ("dual", "single", "layers")
    layers = {name: model.transformer[name] for name in counts if name in model.transformer}
    more = {name: model.deeper * count for name, count in layers.items()}
    return FAMILIES[model.kind].new(**{**model.transformer, **more})


def chosen_precision(config: TrainingConfig) -> str:
    """`config.precision`; with `auto` the one that is faster where the run trains."""
    if config.precision != "auto":
        return config.precision
    cuda = config.accelerator != "cpu" and torch.cuda.is_available()
    return faster_precision("cuda" if cuda else "cpu")


def train_phase(
    module: EditorTraining, config: TrainingConfig, index: int, phase: Phase, precision: str
) -> bool:
    """Train one phase, from its last checkpoint if there is one; returns whether it is finished."""
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
    told = {"steps": trainer.global_step, "minutes": module.elapsed / 60}
    told["waiting"] = module.waited / max(module.elapsed, 1e-9)
    folder.mkdir(exist_ok=True)
    (folder / "done.json").write_text(json.dumps(told) + "\n")
    tensors = {n: t.contiguous() for n, t in module.state_dict().items()}
    save_file(tensors, folder / "averaged.part")
    (folder / "averaged.part").replace(folder / "averaged.safetensors")
    return True


def loggers_of(config: TrainingConfig, index: int, start: int) -> list[Logger]:
    """CSV, one file per attempt named by its first step; and W&B if asked for."""
    found: list[Logger] = [CSVLogger(config.out, name="log", version=f"phase-{index}/{start}")]
    wanted = {"csv": "none", "wandb_offline": "offline", "wandb": "online"}[config.logger]
    if (mode := wandb_mode(wanted)) != "none":
        found.append(
            WandbLogger(
                project="topi",
                name=f"{config.model.name} phase {index}",
                save_dir=config.out,
                offline=mode == "offline",
                config=OmegaConf.to_container(OmegaConf.structured(config)),
            )
        )
    return found


def before(config: TrainingConfig) -> list[Path]:
    """The folders whose weights the run starts from; none if it starts from scratch."""
    if config.start == "scratch":
        return []
    return [_folder(config, name) for name in config.start.split("+")]


def _folder(config: TrainingConfig, start: str) -> Path:
    if start == "shipped":
        return weights_folder(config.model.name)
    return weights_folder(start) if start in SHIPPED else Path(start)


def curves(config: TrainingConfig, out: Path) -> pd.DataFrame:
    """What was logged, in order: run, phase, step, lr, v_mse and the PSNR of each category.

    A killed phase logs some steps twice; the later ones count.
    """
    earlier = out / "start" / "curves.csv"
    parts = [pd.read_csv(earlier)] if earlier.exists() else []
    run = 1 + (int(parts[0]["run"].max()) if parts else 0)
    for phase in range(len(config.phases)):
        logs = (out / "log" / f"phase-{phase}").glob("*/metrics.csv")
        logs = sorted(logs, key=lambda log: int(log.parent.name))
        logged = pd.concat([pd.read_csv(log) for log in logs])
        logged = logged.groupby("step", as_index=False).last()  # of each column, if it is there
        logged.insert(0, "run", run)
        logged.insert(1, "phase", phase)
        parts.append(logged.drop(columns="epoch"))
    return pd.concat(parts, ignore_index=True)


def runs(config: TrainingConfig, out: Path, begun: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the model card tells: this run, after those whose weights it started from.

    Args:
        begun: what `topi.bench.standins.origin.begin` returned.
    """
    earlier = out / "start" / "recipe.json"
    earlier = json.loads(earlier.read_text())["runs"] if earlier.exists() else []
    done = [
        json.loads((out / f"phase-{k}/done.json").read_text()) for k in range(len(config.phases))
    ]
    parts = []
    for phase, told in zip(config.phases, done, strict=True):
        sizes = sorted(
            {label(tuple(size[:2]), tuple(size[2:] or size[:2])) for size in phase.sizes}
        )
        rate = f"learning rate {phase.schedule.lr:g}"
        if phase.lr_end is not None:
            rate += f" to {phase.lr_end:g}"
        noise = (phase.noise_mean, phase.noise_spread)
        if noise != (NOISE_MEAN, NOISE_SPREAD):
            rate += f", noise levels sigmoid(N({noise[0]:g}, {noise[1]:g}))"
        parts.append(f"{told['steps']} steps of {phase.batch} at {', '.join(sizes)} px, {rate}")
    minutes = sum(told["minutes"] for told in done)
    waiting = sum(told["waiting"] * told["minutes"] for told in done) / max(minutes, 1e-9)
    told_of = [o for o in config.overrides if not o.startswith(("out=", "hardware=", "ship="))]
    run = {
        "training": f"from {config.start}, Muon: {'; '.join(parts)}",
        "command": " ".join(["python -m topi.bench.standins", *told_of]),
        "cost": f"{minutes:.0f} minutes on {config.hardware}, {waiting:.1%} of them spent waiting "
        "for data",
        "seed": config.seed,
        "start": begun["start"],
        "precision": begun["precision"],
        "commits": begun["commits"],
        "python": begun["python"],
        "versions": begun["versions"],
    }
    return [*earlier, run]


def architecture(transformer: nn.Module) -> str:
    """The transformer in one line."""
    config = transformer.config
    if "num_single_layers" in config:
        blocks = f"{config.num_layers} dual-stream and {config.num_single_layers} single-stream"
        extra = ", guidance embedding (trained at one value)"
    else:
        blocks, extra = f"{config.num_layers} dual-stream", ""
    return (
        f"{blocks} blocks, {config.num_attention_heads} heads of {config.attention_head_dim}, "
        f"rotary axes {tuple(config.axes_dims_rope)}{extra}"
    )
