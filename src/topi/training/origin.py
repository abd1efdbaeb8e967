"""What a training run is and what it began with, kept in its folder from the first attempt on.

A run may start from shipped weights and replace them in the end, so the recipe and the curves of
its start are copied; and a folder holds one run, so that no run passes for another's weights.
"""

import hashlib
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from topi.config import ConfigError
from topi.results import files
from topi.results.provenance import commit

FREE = ("out", "accelerator", "compile", "workers", "logger", "stop_after", "checkpoint_every")
FREE += ("validate_every", "hardware", "ship", "overrides")
"""Settings that may differ between the attempts of one run."""
TOLD = ("recipe.json", "curves.csv")
PACKAGES = ("torch", "diffusers", "lightning")


def begin(config: Any, out: Path, source: Path | None, precision: str) -> dict[str, Any]:
    """Open the folder of a run, or go on in it; returns what `run.json` tells of it.

    That is `settings`, `start` (SHA-256 of the weights it began with), `commits` and `precision` of
    the attempts, `python` and `versions`.

    Args:
        config: a `TrainingConfig`.
        out: the folder.
        source: the folder of the weights that it starts from, if it does.
        precision: that of this attempt.

    Raises:
        ConfigError: the folder holds another run, or one that began with other weights.
    """
    file, weights = out / "run.json", None if source is None else source / "model.safetensors"
    start = _sha256(weights) if weights else None
    settings = OmegaConf.to_container(OmegaConf.structured(config))
    settings = {name: value for name, value in settings.items() if name not in FREE}
    told = {"settings": settings, "start": start, "commits": [], "precision": []}
    if file.exists():
        told = files.read_json(file)
        _refuse_another(told, settings, start, out)
    elif source:
        (out / "start").mkdir(exist_ok=True)
        for name in TOLD:
            if (source / name).exists():
                shutil.copy(source / name, out / "start")
    at = commit()
    if at and (name := at["commit"] + ("+" if at["dirty"] else "")) not in told["commits"]:
        told["commits"].append(name)
    if precision not in told["precision"]:
        told["precision"].append(precision)
    told["python"] = platform.python_version()
    told["versions"] = {name: version(name) for name in PACKAGES}
    files.write_json(file, told)
    return told


def _refuse_another(told: dict, settings: dict, start: str | None, out: Path) -> None:
    names = sorted(told["settings"].keys() | settings.keys())
    differ = [name for name in names if told["settings"].get(name) != settings.get(name)]
    if differ:
        raise ConfigError(
            f"out={out} holds a run with other settings ({', '.join(differ)}): give another out=, "
            "or remove the folder to begin anew."
        )
    shipped = out / "model.safetensors"
    if start != told["start"] and not (shipped.exists() and _sha256(shipped) == start):
        raise ConfigError(
            f"out={out} holds a run that began with other weights than start={settings['start']} "
            "names now: give another out=, or remove the folder to begin anew."
        )


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
