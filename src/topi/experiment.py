"""From a configuration to a finished cell: where model, data, method, store and logger meet."""

import json
import logging
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import torch

from topi.config import Config, ConfigError, DataConfig
from topi.data import EditFolder, MiniEdit
from topi.errors import ToPiError
from topi.evaluation.cell import Bench, latency_missing, run_latency, run_quality
from topi.evaluation.layer_choice import choose_layers
from topi.evaluation.metrics import Metrics
from topi.methods import METHODS, Method, make_method
from topi.models import ModelFacts, adapter_for
from topi.models.editor import Editor, ModelConfig, load_editor
from topi.report.mirror import Mirror
from topi.results import Store
from topi.results.keys import digest
from topi.results.provenance import provenance

log = logging.getLogger(__name__)

SCHEMA = 1
"""Of keys and rows; a new number makes new cells."""
ELSEWHERE = ("name", "device", "offload", "hub_id", "revision", "front_layers")
ELSEWHERE += ("representative_layers",)
"""Model fields that do not change an output, or that the weights' fingerprint or the method's
parameters hold."""


def run(config: Config) -> None:
    """Compute a cell, or what it lacks.

    A complete cell, or one that another process is computing, is left alone; the log says so.

    Raises:
        ConfigError: the method does not fit the model or its parameters exclude each other.
        ToPiError: something else that the user can mend; the cell is marked as failed.
    """
    check(config)
    editor = _editor(json.dumps(config.model, sort_keys=True))
    method = build_method(config, adapter_for(editor.pipe).facts)
    data = load_data(config.data)
    label = label_of(config, method)
    manifest = describe(config, editor, method, data, label)
    store = Store(config.store)
    cell = store.cell(manifest["key"])
    with cell.lock() as ours:
        if not ours:
            log.info("%s: another process is computing %s; leaving it to that", label, cell.key)
            return
        wanted = [data[i].id for i in range(min(config.latency.samples, len(data)))]
        if cell.complete and not latency_missing(cell, wanted, config.latency.repeats):
            cell.add_label(label)
            log.info("%s: %s is complete, nothing to do", label, cell.key)
            return
        bench = Bench(
            editor, data, _metrics(config.lpips), store.full(manifest["full_key"]), config.seed
        )
        cell.start(manifest)
        bench.full.start(manifest["full"])
        log.info("%s: %s, %d of %d samples done", label, cell.key, len(cell.rows), len(data))
        with Mirror(store, cell, **asdict(config.logger)) as mirror:
            try:
                run_quality(bench, method, cell, label, mirror.row)
                run_latency(
                    bench, method, cell, label, config.latency.samples, config.latency.repeats
                )
                cell.finish()
            except Exception as error:
                cell.fail(str(error) if isinstance(error, ToPiError) else repr(error))
                raise
        log.info("%s: %s is complete now", label, cell.key)


def check(config: Config) -> None:
    """Refuse what can be seen to be impossible without loading the model.

    Raises:
        ConfigError: an unknown method or parameter, or a value out of range.
    """
    try:
        ModelConfig(**config.model)
        build_method(config)
        load_data(config.data)
    except (ToPiError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def build_method(config: Config, facts: ModelFacts | None = None) -> Method:
    """The method with its parameters, the strategy of `layers` turned into layers.

    Args:
        facts: of the model; without it, layers are left out.
    """
    params = config.params
    if isinstance(params.get("layers"), str):
        chosen, depth = config.layers, facts.depth if facts else 1
        layers = choose_layers(params.pop("layers"), depth, chosen.count, chosen.seed)
        if facts:
            params["layers"] = layers or facts.representative_layers
    if params.get("layers"):
        params["layers"] = tuple(sorted(params["layers"]))  # a set, with one key
    method = make_method(config.method["name"], **params)
    if facts:
        try:
            method.prepare(facts)
        except ToPiError as error:
            raise ConfigError(str(error)) from error
    return method


def load_data(config: DataConfig) -> MiniEdit | EditFolder:
    """The samples."""
    if config.name == "folder":
        if config.path is None:
            raise ConfigError("data=folder needs data.path, a folder with images and edits.jsonl.")
        return EditFolder(config.path, config.count)
    return MiniEdit(config.split, config.size, config.count)


def label_of(config: Config, method: Method) -> str:
    """A short name: the method, tau if it has one, and what else differs from its defaults."""
    defaults = METHODS[method.name]().params | {"front_layers": config.model["front_layers"]}
    defaults |= type(method).variants[method.name] | {"tau": None}
    shown = {k: v for k, v in method.params.items() if v is not None and v != defaults[k]}
    strategy = config.method.get("layers")
    if isinstance(strategy, str):
        shown.pop("layers", None)
        if strategy == "random":
            shown["layers"] = f"random:{config.layers.seed}"
        elif strategy != "representative":
            shown["layers"] = strategy
    return " ".join([method.name, *(f"{key}={_short(value)}" for key, value in shown.items())])


def describe(
    config: Config, editor: Editor, method: Method, data: MiniEdit | EditFolder, label: str
) -> dict[str, Any]:
    """The manifest of a cell. Its keys hash what the outputs depend on, and nothing else."""
    own = {f.name: getattr(editor.config, f.name) for f in fields(ModelConfig)}
    model = {name: value for name, value in own.items() if name not in ELSEWHERE}
    device = _device(editor)
    full = {
        "schema": SCHEMA,
        "model": model,
        "weights": editor.fingerprint(),
        "data": data.fingerprint(),
        "seed": config.seed,
        "device": device,
    }
    full_key = f"{editor.name}-{digest(full)}"
    content = {
        "full": full_key,
        "method": method.name,
        "params": method.params,
        "samples": [data[i].id for i in range(len(data))],
        "lpips": config.lpips,
    }
    return {
        "key": f"{editor.name}-{method.name}-{digest(content)}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": editor.name,
        "method": method.name,
        "label": label,
        "params": method.params,
        "full_key": full_key,
        "seed": config.seed,
        "steps": editor.steps,
        "count": len(data),
        "weights": editor.fingerprint(),
        "data": data.fingerprint(),
        **provenance(device, torch.get_num_threads()),
        "full": full,
        "config": asdict(config),
    }


@lru_cache(maxsize=1)
def _editor(model: str) -> Editor:
    """Loaded once for all points of a sweep that run in this process."""
    return load_editor(json.loads(model))


@lru_cache(maxsize=2)
def _metrics(lpips: bool) -> Metrics:
    return Metrics("cuda" if torch.cuda.is_available() else "cpu", lpips)


def _device(editor: Editor) -> str:
    """The name of the GPU, or "cpu"; numbers of different devices do not belong in one cell."""
    device = editor.pipe._execution_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
