"""The configuration of one cell: the schema behind `conf/`, and what it refuses."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from topi.errors import ToPiError

AXES = ("tau", "ratio", "layers", "score")
"""What a sweep may vary although only some methods read it."""
STRATEGIES = ("representative", "all", "random", "first", "last")
DATA = ("mini_edit", "mini_edit_plus", "anyedit", "folder")
LOGGERS = ("offline", "online", "none")
RESUME = ("same", "any")


FILES = (("data", "path"), ("layers", "file"), ("cache", "fit"), ("model", "hub_id"))
"""Settings that name a file or a folder, maybe relative to the folder of the process."""


def placed(config: dict[str, Any], folder: Path | str) -> dict[str, Any]:
    """A plain configuration with paths that do for every folder.

    Args:
        config: of which `FILES` are looked at.
        folder: what relative paths are relative to; those that lead nowhere stay as they are.
    """
    for group, name in FILES:
        value = (config.get(group) or {}).get(name)
        if isinstance(value, str) and value and (place := Path(folder, value)).exists():
            config = config | {group: config[group] | {name: str(place)}}
    return config


def conf_folder() -> Path:
    """`conf/` of the checkout this package is installed from, else of the current folder.

    Raises:
        ConfigError: there is none in either place.
    """
    places = [Path(__file__).resolve().parents[4] / "conf", Path.cwd() / "conf"]
    for folder in places:
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(
        f"The configuration is missing: neither {places[0]} nor {places[1]} holds a config.yaml. "
        "It comes with a checkout of the repository, not with the installed package: run this "
        "command in the top folder of a checkout."
    )


class ConfigError(ToPiError):
    """A configuration that is refused before anything runs."""


@dataclass
class LayersConfig:
    """Which layers score the tokens (paper, Table 5)."""

    strategy: str
    count: int = 3  # of random, first and last
    seed: int = 0  # of random
    file: str | None = None  # of representative: a calibration that `topi calibrate` wrote


@dataclass
class ScoreConfig:
    """What scores the tokens (paper, Table 3)."""

    name: str


@dataclass
class DataConfig:
    """The samples: MiniEdit, AnyEdit, or a folder of one's own; see `conf/data/`."""

    name: str
    count: int | None = None
    split: str = "evaluation"
    size: Any = 128  # pixels: a side, [height, width] or "mixed"
    reference_size: Any = None  # of MiniEdit, as the next
    references: int | None = None  # more than the instruction needs
    path: str | None = None
    outside: bool = False  # may a list name pictures outside its folder?
    revision: str | None = None  # of AnyEdit, as all that follow
    per_type: int | None = None
    visual: bool = False
    calibration: int = 48
    cache: str | None = None


@dataclass
class LatencyConfig:
    """How much is timed: `repeats` pairs of runs on each of the first `samples`."""

    samples: int
    repeats: int


@dataclass
class LoggerConfig:
    """Where W&B mirrors the store to."""

    mode: str
    project: str = "topi"
    pictures: int = 8  # samples in the picture grid


@dataclass
class Config:
    """One cell. `method` and `cache` hold their names and parameters, `model` a ModelConfig's."""

    model: dict[str, Any]
    method: dict[str, Any]
    cache: dict[str, Any]
    layers: LayersConfig
    score: ScoreConfig
    data: DataConfig
    logger: LoggerConfig
    latency: LatencyConfig
    tau: float | None
    ratio: float | None
    seed: int
    lpips: bool
    store: str
    resume: str  # what may continue a cell: the same code and versions, or any
    trim_last: bool = False  # the last block computes only what is read, where nothing is merged
    shard: str | None = None  # "i/n": only every nth sample, from the ith on
    devices: int = 1  # GPUs of this node, or processes on its cores, that share the samples

    @property
    def share(self) -> tuple[int, int] | None:
        """`shard` as numbers: which, of how many."""
        if self.shard is None:
            return None
        index, _, number = self.shard.partition("/")
        return int(index), int(number)

    @property
    def params(self) -> dict[str, Any]:
        """The method's parameters that are given; the others are left to their defaults."""
        return {k: v for k, v in self.method.items() if k != "name" and v is not None}


def read_config(composed: DictConfig) -> Config:
    """Check a composed configuration and turn it into plain dataclasses.

    Raises:
        ConfigError: an unknown key or name, a missing value or one of the wrong type.
    """
    own = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), own))
    except OmegaConfBaseException as error:
        raise ConfigError(sentence(error)) from error
    check_choice("layers", config.layers.strategy, STRATEGIES)
    check_choice("data", config.data.name, DATA)
    check_choice("logger.mode", config.logger.mode, LOGGERS)
    check_choice("resume", config.resume, RESUME)
    for name in ("samples", "repeats"):
        if (value := getattr(config.latency, name)) < 0:
            raise ConfigError(f"latency.{name}={value} must not be negative.")
    check_shard(config.shard)
    if config.devices < 1:
        raise ConfigError(f"devices={config.devices} must be at least 1.")
    return config


def check_literal(content: Any, where: str) -> None:
    """Refuse plain data from a file in which OmegaConf would put the value of something else.

    `${oc.env:NAME}` in a manifest that somebody else wrote is one of our secrets.

    Raises:
        ConfigError: a text has an interpolation; `where` begins the message.
    """
    if isinstance(content, dict):
        content = [*content, *content.values()]
    if isinstance(content, list):
        for each in content:
            check_literal(each, where)
    elif isinstance(content, str) and "${" in content:
        raise ConfigError(f"{where} has {content!r}: in files no ${{...}} is replaced.")


def check_shard(shard: str | None) -> None:
    """Raise a ConfigError unless it is None or "i/n" with i below n."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard or "0/1")
    if found is None or int(found.group(1)) >= int(found.group(2)):
        raise ConfigError(f"shard={shard} is invalid; use i/n with i below n, for example 0/4.")


def check_choice(name: str, value: str, valid: Collection[str]) -> None:
    """Raise a ConfigError that lists the choices unless `value` is one."""
    if value not in valid:
        raise ConfigError(f"{name}={value} is unknown; choose one of: {', '.join(valid)}.")


def axes_read(composed: DictConfig) -> list[str]:
    """The axes that the composed method refers to, as `${tau}` or `${layers.strategy}`."""
    values = OmegaConf.to_container(composed.method, resolve=False).values()
    referred = {name for value in values for name in re.findall(r"\$\{(\w+)", str(value))}
    return [axis for axis in AXES if axis in referred]


def check_axes(composed: DictConfig, overrides: Collection[str]) -> None:
    """Refuse an axis that is set for a method that does not read it.

    In a sweep that is allowed: the method has one cell for all values of the axis.

    Raises:
        ConfigError: naming the axes that the method reads.
    """
    named = {re.split(r"[=.]", override.lstrip("+~"))[0] for override in overrides}
    reads = axes_read(composed)
    if unread := [axis for axis in AXES if axis in named and axis not in reads]:
        raise ConfigError(
            f"method={composed.method.name} does not read {', '.join(unread)}; of the sweep axes "
            f"it reads {', '.join(reads) or 'none'}, and its own parameters are "
            f"{', '.join(f'method.{key}' for key in composed.method if key != 'name') or 'none'}."
        )


def sentence(error: OmegaConfBaseException) -> str:
    """An error of OmegaConf in one sentence, with the valid keys if one is unknown."""
    key = error.full_key or error.key
    if isinstance(error, MissingMandatoryValue):
        missing = re.search(r"value: (\w+)", str(error))
        return f"{missing.group(1) if missing else key} has no default here; give it a value."
    if isinstance(error, ConfigKeyError | AttributeError):
        parent = error.parent_node
        keys = [str(k) for k in (parent or {}) if k != "hydra"]
        return f"There is no {key}; choose one of: {', '.join(keys)}."
    if isinstance(error, ValidationError):
        return f"{key}: {str(error).splitlines()[0].rstrip('.')}."
    return " ".join(str(error).split())
