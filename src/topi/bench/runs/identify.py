"""Identify a cell: its key, its label in tables, and its manifest."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from topi.bench.config.schema import Config, LayersConfig, placed
from topi.bench.data import Dataset
from topi.bench.editors.editor import Editor, ModelConfig
from topi.bench.results.keys import digest
from topi.bench.results.provenance import provenance
from topi.bench.runs.assemble import Parts
from topi.engine import MergesTokens
from topi.methods import CACHES, METHODS, Method, make_method

SCHEMA = 1
"""Version of keys and rows. Another version makes new cells."""
NOT_IN_KEY = {"name", "device", "offload", "hub_id", "revision"}
"""Fields of a model that do not change an output, or that the fingerprint of its weights covers."""
NOT_IN_KEY |= {"front_layers", "representative_layers", "temporal_cache"}  # the method has these


def identify(parts: Parts) -> dict[str, Any]:
    """The manifest of a cell. Its keys hash all that the outputs depend on, and nothing else."""
    config, editor, method, data = parts.config, parts.editor, parts.method, parts.data
    full = full_run(config, editor, data)
    full_key = f"{editor.name}-{digest(full)}"
    trimmed = {"trim_last": True} if trims(config, method) else {}
    content = {
        "full": full_key,
        "method": method.name,
        "params": method.params,
        "samples": data.ids,
        "lpips": config.lpips,
        **trimmed,
    }
    plain = asdict(replace(config, shard=None, devices=1))
    relative = placed(plain, Path.cwd()) != plain
    return {
        "key": f"{editor.name}-{method.name}-{digest(content)}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": editor.name,
        "method": method.name,
        "label": label_of(config, method),
        "params": method.params,
        **trimmed,
        "full_key": full_key,
        "seed": config.seed,
        "steps": editor.steps,
        "count": len(data),
        "weights": editor.fingerprint(),
        "data": full["data"],
        **provenance(
            editor.device_name,
            torch.get_num_threads(),
            torch.cuda.device_count(),
            torch.version.cuda,
        ),
        "full": full,
        "config": plain,
        **({"folder": str(Path.cwd())} if relative else {}),
    }


def full_run(config: Config, editor: Editor, data: Dataset) -> dict[str, Any]:
    """All that the full-context outputs depend on."""
    names = [field.name for field in fields(ModelConfig) if field.name not in NOT_IN_KEY]
    return {
        "schema": SCHEMA,
        "model": {name: getattr(editor.config, name) for name in names},
        "weights": editor.fingerprint(),
        "data": data.fingerprint(),
        "seed": config.seed,
        "device": editor.device_name,
    }


def trims(config: Config, method: Method) -> bool:
    """True if the last block computes only what is read. A method that merges excludes it."""
    return config.trim_last and method.part(MergesTokens) is None


def label_of(config: Config, method: Method) -> str:
    """A short name: the method, and the settings that differ from its defaults."""
    own = next((part for part in method.parts if part.name in METHODS), make_method("full"))
    shown = _method_settings(config, own)
    if trims(config, method):
        shown["trim_last"] = True
    if config.cache["name"] != "none":
        shown |= _cache_settings(config.cache)
    return " ".join([own.name, *(f"{key}={_short(value)}" for key, value in shown.items())])


def _method_settings(config: Config, method: Method) -> dict[str, Any]:
    """Parameters that a label shows: always tau, and what differs from the defaults."""
    defaults = METHODS[method.name]().params
    if defaults.get("front_layers"):  # the model's, where a method has any
        defaults["front_layers"] = config.model["front_layers"]
    defaults |= type(method).variants[method.name] | {"tau": None}
    shown = {k: v for k, v in method.params.items() if v is not None and v != defaults[k]}
    strategy = config.method.get("layers")
    if isinstance(strategy, str):
        shown.pop("layers", None)
        count = "" if config.layers.count == LayersConfig.count else f":{config.layers.count}"
        if strategy == "random":
            shown["layers"] = f"random:{config.layers.seed}{count}"
        elif strategy != "representative":
            shown["layers"] = strategy if strategy == "all" else f"{strategy}{count}"
        elif config.layers.file:
            shown["layers"] = method.params["layers"]
    return shown


def _cache_settings(cache: Mapping[str, Any]) -> dict[str, Any]:
    """The cache's name, its given parameters that differ from the defaults, and its fit."""
    defaults = CACHES[cache["name"]]().params
    given = {k: v for k, v in cache.items() if k in defaults and v is not None}
    shown = {"cache": cache["name"]}
    shown |= {f"cache.{k}": v for k, v in given.items() if v != defaults[k]}
    if file := cache.get("fit"):  # files of one name may differ
        content = sha256(Path(file).read_bytes()).hexdigest()
        shown["cache.fit"] = f"{Path(file).stem}@{content[:6]}"
    return shown


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
