"""Configuration of a training run: its fields and their checks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from topi.bench.config.schema import ConfigError, check_choice, conf_folder, sentence
from topi.bench.data.mini_edit import TRAIN_SHARES
from topi.bench.data.mini_edit_plus import TASKS as PLUS_TASKS
from topi.bench.editors.standin import FAMILIES, LATENTS, weights_folder
from topi.bench.standins.flow import NOISE_MEAN, NOISE_SPREAD
from topi.bench.standins.module import Schedule

SHIPPED = ("kontext_standin", "qwen_standin")
LOGGERS = ("csv", "wandb_offline", "wandb")
PRECISIONS = ("auto", "bf16-mixed", "32-true")


@dataclass
class ModelSpec:
    """The model to train.

    Args:
        transformer: arguments of the family's builder.
        deeper: multiplies the number of layers.
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
    noise levels have `noise_mean` and `noise_spread`: at high levels an edit has to come from the
    reference and the instruction, as little of the target shows. References have the size that the
    pipeline gives them; with `references=target` they have that of the target, which is cheaper for
    small pictures.
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


def compose_training(overrides: Sequence[str]) -> TrainingConfig:
    """The checked configuration of `conf/training` with some overrides.

    Raises:
        ConfigError: see `read_training`.
    """
    with initialize_config_dir(str(conf_folder() / "training"), version_base="1.3"):
        return read_training(compose("config", overrides=list(overrides)))


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
    if config.longer < 1:
        raise ConfigError(f"longer={config.longer} must be at least 1.")
    for k, phase in enumerate(config.phases):
        _check_phase(f"phases.{k}", phase)
    _check_data(config.data, config.model.kind)
    _check_start(config)
    config.phases = [phase.longer(config.longer) for phase in config.phases]
    if HydraConfig.initialized():
        config.overrides = list(HydraConfig.get().overrides.task)
    return config


def _check_phase(name: str, phase: Phase) -> None:
    if (phase.steps is None) == (phase.minutes is None):
        raise ConfigError(f"{name} needs either steps or minutes.")
    if any(len(size) not in (2, 4) or side % 8 for size in phase.sizes for side in size):
        raise ConfigError(
            f"{name}.sizes must be [height, width], or those of the target and those of the "
            "reference, in multiples of 8."
        )
    check_choice(f"{name}.references", phase.references, ("pipeline", "target"))


def _check_data(data: DataSpec, kind: str) -> None:
    for name in ("focus", "beside", "plus"):
        if not 0 <= getattr(data, name) <= 1:
            raise ConfigError(f"data.{name}={getattr(data, name)} must be between 0 and 1.")
    for task in data.focus_on:
        check_choice("data.focus_on", task, (*TRAIN_SHARES, *PLUS_TASKS))
    if data.focus and not data.focus_on:
        raise ConfigError(f"data.focus={data.focus} needs tasks in data.focus_on.")
    if data.beside and kind != "kontext":
        raise ConfigError("data.beside is for Kontext, which takes a single picture.")
    if data.plus and kind == "kontext":
        raise ConfigError("data.plus needs a model that takes two references; use a Qwen one.")


def _check_start(config: TrainingConfig) -> None:
    for folder in before(config):
        if not (folder / "model.safetensors").exists():
            raise ConfigError(
                f"start={config.start}: there are no weights in {folder}. Use scratch, shipped, "
                f"{', '.join(SHIPPED)} or the folder of a finished run. To start from the mean of "
                "several, put a plus between them; scratch cannot be one of them."
            )


def before(config: TrainingConfig) -> list[Path]:
    """The folders whose weights the run starts from; none if it starts from scratch."""
    if config.start == "scratch":
        return []
    return [_folder(config, name) for name in config.start.split("+")]


def _folder(config: TrainingConfig, start: str) -> Path:
    if start == "shipped":
        return weights_folder(config.model.name)
    return weights_folder(start) if start in SHIPPED else Path(start)
