"""From a configuration to the parts of a cell: model, method with its cache, and data."""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from topi.bench.config.schema import Config, ConfigError, DataConfig
from topi.bench.data import AnyEdit, Dataset, EditFolder, MiniEdit, MiniEditPlus
from topi.bench.editors.editor import Editor, ModelConfig, load_editor
from topi.bench.results.cache_fit_file import read_cache_fit
from topi.bench.runs.gpu import claim_gpu
from topi.bench.runs.layer_choice import layers_of
from topi.errors import ToPiError
from topi.methods import CACHES, Method, TemporalCache, make_cache, make_method
from topi.models import ModelFacts, adapter_for

NEEDS_PATH = {
    "folder": "a folder with images and edits.jsonl or edits.csv",
    "anyedit": "a folder with AnyEdit-Test or parquet files, or a hub id",
}
"""Data set -> what `data.path` has to name."""


@dataclass(frozen=True)
class Parts:
    """What a cell is computed from."""

    config: Config
    editor: Editor
    method: Method
    data: Dataset


def assemble(config: Config) -> Parts:
    """Load the model and the data, and build the method. Nothing is written but a GPU's lock.

    Raises:
        ConfigError: the method does not fit the model, or its parameters exclude each other.
        ToPiError: weights or data are missing, or the model cannot take a picture.
    """
    check(config)
    claim_gpu(Path(config.store))
    editor = open_editor(config)
    method = build_method(config, adapter_for(editor.pipe).facts, editor)
    data = load_data(config.data)
    if isinstance(data, EditFolder):  # all sizes are checked before any sample is computed
        for index, name in enumerate(data.ids):
            editor.check_sizes(name, data.sizes(index))
    return Parts(config, editor, method, data)


def check(config: Config) -> None:
    """Check everything that can be checked without loading the model.

    Raises:
        ConfigError: an unknown method or parameter, or a value out of range.
    """
    try:
        ModelConfig(**config.model)
        build_method(config)
        load_data(config.data)
    except (ToPiError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def build_method(
    config: Config, facts: ModelFacts | None = None, editor: Editor | None = None
) -> Method:
    """The method with its parameters and its cache; `layers` names layers, not a strategy.

    Args:
        facts: of the model. Without them, a strategy is checked but no layers are set.
        editor: the loaded model. Calibrations and fits must be of its weights.

    Raises:
        ConfigError: the method does not fit the model.
        ToPiError: a parameter is invalid, or a calibration or fit cannot be used.
    """
    params = config.params
    if isinstance(params.get("layers"), str):
        strategy = params.pop("layers")
        layers = layers_of(replace(config.layers, strategy=strategy), facts, editor)
        if facts:
            params["layers"] = layers
    if params.get("layers"):
        params["layers"] = tuple(sorted(params["layers"]))  # equal sets have equal keys
    method = make_method(config.method["name"], **params)
    if config.cache["name"] != "none":
        method = method + build_cache(config, facts, editor)
    if facts:
        try:
            method.prepare(facts)
        except ToPiError as error:
            raise ConfigError(str(error)) from error
    return method


def build_cache(
    config: Config, facts: ModelFacts | None = None, editor: Editor | None = None
) -> TemporalCache:
    """The temporal cache. Its fitted parameters come from `cache.fit`, else from the model.

    Raises:
        ToPiError: the fit cannot be read, or is of other weights or of another cache.
    """
    name, file = config.cache["name"], config.cache.get("fit")
    params = {k: v for k, v in config.cache.items() if k not in ("name", "fit") and v is not None}
    fitted = CACHES[name].fitted if name in CACHES else ()
    fit = dict(facts.temporal_cache.get(name, {})) if facts else {}
    if file is not None:
        read = read_cache_fit(file)
        fit = (read.caches_for(editor.fingerprint()) if editor else read.caches).get(name, {})
    if fitted and fitted[0] in params:  # the other fitted parameters belong to the first one
        fit = {}
    return make_cache(name, **{**fit, **params})


def load_data(config: DataConfig) -> Dataset:
    """The samples.

    Raises:
        ConfigError: `data.path` is missing.
        ToPiError: samples are missing, or differ from their manifest.
    """
    if config.name in NEEDS_PATH and config.path is None:
        raise ConfigError(f"data={config.name} needs data.path, {NEEDS_PATH[config.name]}.")
    if config.name == "folder":
        return EditFolder(config.path, config.count, config.outside)
    if config.name == "anyedit":
        return AnyEdit(
            config.path,
            config.cache or "results/data",
            config.split,
            config.per_type,
            config.visual,
            config.calibration,
            config.count,
            config.revision,
            config.outside,
        )
    drawn = {"mini_edit": MiniEdit, "mini_edit_plus": MiniEditPlus}[config.name]
    drawn.verify()
    return drawn(config.split, config.size, config.count, config.reference_size, config.references)


def open_editor(config: Config) -> Editor:
    """The model. It is loaded once for all cells that a process computes in a row."""
    return _editor(json.dumps(config.model, sort_keys=True))


@lru_cache(maxsize=1)
def _editor(model: str) -> Editor:
    return load_editor(json.loads(model))
