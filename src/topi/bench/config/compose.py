"""The configuration files of the checkout, composed outside `run.py`."""

import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from topi.bench.config.schema import Config, ConfigError, conf_folder, read_config, sentence


def composed(overrides: Sequence[str] = (), hydra: bool = False) -> DictConfig:
    """What `run.py` would get for these overrides.

    Args:
        hydra: with Hydra's own settings under `hydra`.

    Raises:
        ToPiError: an override is impossible, or there are no configuration files.
    """
    with refusals(), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what Hydra says of an override into one sentence.

    Raises:
        ConfigError: instead of an error of Hydra or OmegaConf.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def compose_study(
    command: str, overrides: Sequence[str], reads: Collection[str], **data: Any
) -> Config:
    """The configuration of a study, from `conf/` and overrides as `run.py` takes them.

    Args:
        command: what the user called.
        overrides: `model=...`, `data.count=12`, ...
        reads: the top-level keys that the study depends on; others are refused.
        data: defaults of `data.*`, for data sets that have such a field.

    Raises:
        ConfigError: what cannot be composed, or would have no effect.
    """
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if unread := {key.partition(".")[0] for key in keys} - set(reads):
        raise ConfigError(
            f"`topi {command}` does not read {', '.join(sorted(unread))}; it reads "
            f"{', '.join(reads)}."
        )
    found = composed(overrides)
    with refusals():
        for name, value in data.items():
            given = f"data.{name}" in keys or (name == "count" and "size" in keys)
            if name in found.data and not given:
                OmegaConf.update(found, f"data.{name}", value)
    return read_config(found)


def explain(error: Exception) -> str:
    """An error in one sentence, with the valid choices if one is unknown."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name} is unknown; choose one of: {', '.join(sorted(error.options))}."
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if several := re.match("Ambiguous value for argument '(.*)'", str(error)):
        return f"{several.group(1)} names several values; add -m to sweep over them."
    for known in (error, error.__cause__):
        if isinstance(known, OmegaConfBaseException):
            return sentence(known)
    return " ".join(str(error).split())


def _unreadable(override: str) -> str:
    """What is wrong with an override that Hydra cannot parse, and how to write it."""
    key, mark, value = override.partition("=")
    told = f"{override!r} cannot be read"
    if not mark:
        return f"{told}: write it as KEY=VALUE."
    value = os.path.expanduser(value)
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", value))
    quoted = f'{key}="{escaped}"'
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return f"{told}: names of settings have ASCII letters, digits, dots and underscores only."
    quoted = shlex.quote(quoted)
    return f"{told}: text with letters beyond ASCII or signs such as =(){{}}#! is quoted: {quoted}."
