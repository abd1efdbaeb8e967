"""The settings and the start of a training run, kept in its folder from the first attempt on.

A run may start from shipped weights and replace them in the end, so the recipe and the curves of
its start are copied; and a folder holds one run, so that no run passes for another's weights.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from topi.bench.config.schema import ConfigError
from topi.bench.results import files
from topi.bench.results.provenance import commit

FREE = ("out", "accelerator", "compile", "workers", "logger", "stop_after", "checkpoint_every")
FREE += ("validate_every", "hardware", "ship", "overrides")
"""Settings that may differ between the attempts of one run."""
PACKAGES = ("torch", "diffusers", "lightning")


def begin(config: Any, out: Path, sources: Sequence[Path], precision: str) -> dict[str, Any]:
    """Open the folder of a run, or continue in it. Returns the content of `run.json`.

    That is `settings`, `start` (SHA-256 of the weights it began with, a plus between several),
    `commits` and `precision` of the attempts, `python` and `versions`.

    Args:
        config: a `TrainingConfig`.
        out: the folder.
        sources: the folders of the weights that it starts from: none, one, or some to average.
        precision: that of this attempt.

    Raises:
        ConfigError: the folder holds another run, or one that began with other weights.
    """
    file = out / "run.json"
    start = "+".join(_sha256(source / "model.safetensors") for source in sources) or None
    settings = OmegaConf.to_container(OmegaConf.structured(config))
    settings = {name: value for name, value in settings.items() if name not in FREE}
    told = {"settings": settings, "start": start, "commits": [], "precision": []}
    if file.exists():
        told = files.read_json(file)
        _refuse_another(told, settings, start, out)
    else:
        copy_history(sources, out / "start")
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
            f"out={out} holds a run with other settings ({', '.join(differ)}). Give another out=, "
            "or remove the folder to start anew."
        )
    own = _sha256(out / "model.safetensors")
    shipped = own and own in (start or "").split("+")  # and so took the place of its start
    if start != told["start"] and not shipped:
        raise ConfigError(
            f"out={out} holds a run that began with other weights than start={settings['start']} "
            "names now. Give another out=, or remove the folder to start anew."
        )


def copy_history(sources: Sequence[Path], folder: Path) -> None:
    """Write `recipe.json` and `curves.csv` of what came before a run, as far as it is known.

    Of several starts the runs that they share count once; `run` in the curves is a run's place.
    """
    runs: list[dict[str, Any]] = []
    parts: list[pd.DataFrame] = []
    for source in sources:
        recipe, curves = source / "recipe.json", source / "curves.csv"
        told = json.loads(recipe.read_text())["runs"] if recipe.exists() else []
        runs += [run for run in told if run not in runs]
        if curves.exists():
            places = {k: runs.index(run) + 1 for k, run in enumerate(told, start=1)}
            part = pd.read_csv(curves)
            parts.append(part.assign(run=part["run"].replace(places)))
    files.write_json(folder / "recipe.json", {"runs": runs})
    if parts:
        both = pd.concat(parts, ignore_index=True).drop_duplicates(["run", "phase", "step"])
        both.sort_values("run", kind="stable").to_csv(folder / "curves.csv", index=False)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
