"""From a configuration to a finished cell: where model, data, method, store and logger meet."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from topi.bench.config.schema import Config, ConfigError, DataConfig, LayersConfig, placed
from topi.bench.data import AnyEdit, Dataset, EditFolder, EditSample, MiniEdit, MiniEditPlus, ids_of
from topi.bench.editors.editor import Editor, ModelConfig, load_editor
from topi.bench.io.names import same_file
from topi.bench.results import Cell, FullOutputs, Store
from topi.bench.results.cache_fit_file import read_cache_fit
from topi.bench.results.calibration_file import read_calibration
from topi.bench.results.keys import digest
from topi.bench.results.mend import pictured
from topi.bench.results.provenance import provenance
from topi.bench.runs.cell import Bench, full_output, run_latency, run_quality
from topi.bench.runs.gpu import claim_gpu, share
from topi.bench.runs.layer_choice import choose_layers
from topi.bench.runs.metrics import Metrics
from topi.bench.tracking.mirror import Mirror
from topi.engine import MergesTokens
from topi.errors import ToPiError
from topi.methods import CACHES, METHODS, Method, TemporalCache, make_cache, make_method
from topi.models import ModelFacts, adapter_for

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""At a cell whose files vanish while it is computed."""
SCHEMA = 1
"""Of keys and rows; a new number makes new cells."""
ELSEWHERE = ("name", "device", "offload", "hub_id", "revision", "front_layers")
ELSEWHERE += ("representative_layers", "temporal_cache")
"""Model fields that do not change an output, or that the weights' fingerprint or the method's
parameters hold."""


def run(config: Config, experiment: str | None = None) -> None:
    """Compute a cell, or what it lacks; with `shard` or `devices`, as one of several processes.

    A complete cell, or one that another process is computing, is left alone; the log says so.

    Args:
        experiment: the name behind `experiment=`, if there is one.

    Raises:
        ConfigError: the method does not fit the model or its parameters exclude each other.
        ToPiError: something else that the user can mend; the cell is marked as failed.
    """
    if config.devices > 1:
        share(config.devices, run_rank, config, experiment)
        return
    work = Work(config, *prepare(config))
    work.manifest["experiment"] = experiment
    if config.share is None:
        _until_whole(work, lambda: _run_whole(work))
    else:
        _until_whole(work, lambda: _run_shard(work, *config.share))


def run_rank(rank: int, world: int, config: Config, experiment: str | None) -> None:
    """`run`, as one of the processes that `devices` asks for."""
    index, number = config.share or (0, 1)
    shard = f"{index + number * rank}/{number * world}"
    run(replace(config, devices=1, shard=shard), experiment)


@dataclass
class Work:
    """A cell to compute, with all it takes; see `prepare`."""

    config: Config
    editor: Editor
    method: Method
    data: Sequence[EditSample]
    manifest: dict[str, Any]

    @cached_property
    def store(self) -> Store:
        """Where it is recorded."""
        return Store(self.config.store)

    @cached_property
    def cell(self) -> Cell:
        """Its record."""
        return self.store.cell(self.manifest["key"])

    @property
    def mixed(self) -> bool:
        """May it be continued under other conditions than it was begun?"""
        return self.config.resume == "any"

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.manifest["label"]

    @cached_property
    def samples(self) -> list[str]:
        """The ids of its samples."""
        return ids_of(self.data)

    @property
    def full(self) -> FullOutputs:
        """The full-context outputs that it is compared with."""
        return self.store.full(self.manifest["full_key"])

    def lacks(self, part: Cell | None = None, indices: Sequence[int] | None = None) -> list[str]:
        """What is missing or damaged, in words; nothing: the cell is whole.

        Args:
            part: a shard, whose records count as well.
            indices: of the samples to look for; None: all.
        """
        cells = [self.cell, *([part] if part else [])]
        if damaged := [damage for cell in cells if (damage := cell.damage)]:
            return damaged
        done = {row["sample"] for cell in cells for row in cell.rows}
        pairs = sum((cell.timed() for cell in cells), Counter[str]())
        indices = range(len(self.samples)) if indices is None else indices
        wanted = [self.samples[i] for i in indices]
        timed = [self.samples[i] for i in indices if i < self.config.latency.samples]
        there = [name for name in wanted if name in done]
        found = {
            "samples": [name for name in wanted if name not in done],
            "pictures": [x for x in there if not any(pictured(cell.path, x) for cell in cells)],
            "full outputs": [name for name in there if not self.full.has(name)],
            "timed samples": [x for x in timed if pairs[x] < self.config.latency.repeats],
        }
        return [f"{len(names)} {what}, as {names[0]}" for what, names in found.items() if names]

    def begin(self, cell: Cell) -> Bench:
        """Write what must be there before the first row.

        Raises:
            ToPiError: the file system would take two samples for one.
        """
        cell.start(self.manifest, self.mixed, self.cell.path)
        _check_case(self.store.root, self.samples)
        bench = bench_of(self.config, self.editor, self.data, self.manifest)
        bench.full.start(self.manifest["full"])
        return bench

    def indices(self, share: tuple[int, int] | None) -> range:
        """Of the samples of a share, given as which of how many; None: of all."""
        first, step = share or (0, 1)
        return range(first, len(self.samples), step)

    def mirror(self) -> Mirror:
        """The cell on W&B."""
        return Mirror(self.store, self.cell, **asdict(self.config.logger))

    def compute(
        self,
        bench: Bench,
        cell: Cell,
        report: Callable[[Mapping[str, Any]], None] = lambda row: None,
        share: tuple[int, int] | None = None,
    ) -> None:
        """Run and time the samples that `cell` lacks.

        Args:
            report: see `run_quality`.
            share: of a shard: which, of how many. What the whole cell has already is left out.
        """
        quality = timed = None
        done, mine = {row["sample"] for row in self.cell.rows}, self.indices(share)
        if share is not None:
            pairs, repeats = self.cell.timed(), self.config.latency.repeats
            quality = [i for i in mine if self.samples[i] not in done]
            timed = [i for i in mine if pairs[self.samples[i]] < repeats]
        for i in mine:
            if self.samples[i] in done and not self.full.has(self.samples[i]):
                full_output(bench, self.data[i])
        wanted = len(self.data) if quality is None else len(quality)
        log.info("%s: %s, %d of %d samples done", self.label, cell.key, len(cell.rows), wanted)
        samples, repeats = self.config.latency.samples, self.config.latency.repeats
        run_quality(bench, self.method, cell, self.label, report, quality)
        run_latency(bench, self.method, cell, self.label, samples, repeats, timed)


def _check_case(store: Path, ids: Sequence[str]) -> None:
    """Refuse ids that differ in case only, in a store where case does not tell files apart."""
    if (twins := same_file(ids)) and (store / "CELLS").is_dir():  # which is "cells", then
        raise ToPiError(
            f"The samples {twins[0]} and {twins[1]} are one file in {store}: rename one, or name "
            "a folder on a file system that tells upper from lower case with store=PATH."
        )


def _until_whole(work: Work, attempt: Callable[[], list[str]]) -> None:
    """Try until nothing is lacking; files may vanish while others are computed.

    Args:
        attempt: computes what is not there; returns what is missing at its end.

    Raises:
        ToPiError: something is missing each time.
    """
    for _ in range(ATTEMPTS):
        if not (lacks := attempt()):
            return
        told = f"{work.cell.key} lacks at its end what was computed: {'; '.join(lacks)}"
        log.warning("%s: %s; computing it again", work.label, told)
    with _told(work.cell):
        raise ToPiError(f"{told}. Something else removes or damages files in {work.store.root}.")


def _run_whole(work: Work) -> list[str]:
    """One attempt; see `_until_whole`."""
    cell, label = work.cell, work.label
    with cell.lock() as ours:
        if not ours:
            log.info("%s: another process is computing %s; leaving it to that", label, cell.key)
            return []
        if cell.complete and not work.lacks():
            cell.add_label(label)
            log.info("%s: %s is complete, nothing to do", label, cell.key)
            return []
        with _told(cell):
            bench = work.begin(cell)
            cell.take_in_shards(work.mixed)
            if cell.shards():
                log.info("%s: others compute shards of %s; leaving it to them", label, cell.key)
                return []
            with work.mirror() as mirror:
                work.compute(bench, cell, mirror.row)
                if lacks := work.lacks():
                    return lacks
                cell.finish()
        log.info("%s: %s is complete now", label, cell.key)
        return []


def _run_shard(work: Work, index: int, number: int) -> list[str]:
    """One attempt at every `number`th sample; whoever comes last puts the shards together."""
    cell, label = work.cell, work.label
    part, share = cell.shard(f"{index}of{number}"), (index, number)
    with ExitStack() as held:
        with cell.merging() as ours:
            if ours and cell.complete and not work.lacks():
                cell.add_label(label)
                log.info("%s: %s is complete, nothing to do", label, cell.key)
                return []
            if not ours or not held.enter_context(part.lock()):
                log.info("%s: another process is computing %s; leaving it to that", label, part.key)
                return []
            if cell.mend() is None or cell.ended:
                cell.start(work.manifest, work.mixed)
            with _told(cell):
                cell.take_in_shards(work.mixed)  # of earlier attempts
        with _told(part):
            work.compute(work.begin(part), part, share=share)
            if lacks := work.lacks(part, work.indices(share)):
                return lacks
            part.finish()
    with cell.merging() as ours:
        if not ours:
            return []
        with _told(cell):
            cell.take_in_shards(work.mixed)
            if cell.shards() or work.lacks():
                log.info("%s: shard %s of %s is complete now", label, part.key, cell.key)
                return work.lacks(indices=work.indices(share))
            with work.mirror():
                cell.finish()
    log.info("%s: %s is complete now", label, cell.key)
    return []


@contextmanager
def _told(cell: Cell) -> Iterator[None]:
    """Mark the cell as failed if this fails."""
    try:
        yield
    except Exception as error:
        cell.fail(str(error) if isinstance(error, ToPiError) else repr(error))
        raise


def prepare(
    config: Config,
) -> tuple[Editor, Method, Sequence[EditSample], dict[str, Any]]:
    """Model, method and data of a cell, and its manifest; nothing is written yet.

    Raises:
        ConfigError: see `run`.
        ToPiError: weights or data are not to be had.
    """
    check(config)
    claim_gpu(Path(config.store))
    editor = open_editor(config)
    method = build_method(config, adapter_for(editor.pipe).facts, editor)
    data = load_data(config.data)
    if isinstance(data, EditFolder):  # before hours are spent on the samples before it
        for index, name in enumerate(data.ids):
            editor.check_sizes(name, data.sizes(index))
    return editor, method, data, describe(config, editor, method, data, label_of(config, method))


def bench_of(
    config: Config, editor: Editor, data: Sequence[EditSample], manifest: Mapping[str, Any]
) -> Bench:
    """What a cell shares with others; see `prepare`."""
    full = Store(config.store).full(manifest["full_key"])
    trimmed = manifest.get("trim_last", False)
    return Bench(editor, data, _metrics(config.lpips), full, config.seed, trimmed)


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


def build_method(
    config: Config, facts: ModelFacts | None = None, editor: Editor | None = None
) -> Method:
    """The method with its parameters, the strategy of `layers` turned into layers.

    Args:
        facts: of the model; without it, layers are left out.
        editor: whose weights a calibration has to be of, and which may come with one.
    """
    params = config.params
    if isinstance(params.get("layers"), str):
        strategy = params.pop("layers")
        layers = layers_of(replace(config.layers, strategy=strategy), facts, editor)
        if facts:
            params["layers"] = layers
    if params.get("layers"):
        params["layers"] = tuple(sorted(params["layers"]))  # a set, with one key
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
    """The temporal cache, with what is fitted for the model: from `cache.fit`, else known of it.

    Raises:
        ToPiError: the fit cannot be read, is of other weights, or not of this cache.
    """
    name, file = config.cache["name"], config.cache.get("fit")
    params = {k: v for k, v in config.cache.items() if k not in ("name", "fit") and v is not None}
    fitted = CACHES[name].fitted if name in CACHES else ()
    known = dict(facts.temporal_cache.get(name, {})) if facts else {}
    if file is not None:
        fit = read_cache_fit(file)
        known = (fit.caches_for(editor.fingerprint()) if editor else fit.caches).get(name, {})
    if fitted and fitted[0] in params:  # the others belong to it
        known = {}
    return make_cache(name, **{**known, **params})


def layers_of(
    chosen: LayersConfig, facts: ModelFacts | None = None, editor: Editor | None = None
) -> tuple[int, ...] | None:
    """The layers of a strategy; None if none are representative of this model yet.

    Representative are those of `layers.file`, else those that the configuration of the model names,
    else those calibrated on the weights it ships with, else the published ones.

    Raises:
        ToPiError: the calibration cannot be read, or is of other weights.
    """
    depth = facts.depth if facts else 1
    layers = choose_layers(chosen.strategy, depth, chosen.count, chosen.seed)
    if layers is not None:
        return layers
    file = chosen.file
    if file is None and editor is not None and editor.config.representative_layers is None:
        shipped = editor.calibration_file
        file = shipped if shipped and shipped.is_file() else None
    if file is not None:
        calibration = read_calibration(file)
        return calibration.layers_for(editor.fingerprint()) if editor else calibration.layers
    return facts.representative_layers if facts else None


def load_data(config: DataConfig) -> Dataset:
    """The samples.

    Raises:
        ToPiError: they are missing, or not what their manifest says.
    """
    if config.name in ("anyedit", "folder") and config.path is None:
        what = {"folder": "a folder with images and edits.jsonl or edits.csv"}
        what["anyedit"] = "a folder with AnyEdit-Test or parquet files, or a hub id"
        raise ConfigError(f"data={config.name} needs data.path, {what[config.name]}.")
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
    kind = {"mini_edit": MiniEdit, "mini_edit_plus": MiniEditPlus}[config.name]
    kind.verify()
    return kind(config.split, config.size, config.count, config.reference_size, config.references)


def label_of(config: Config, method: Method) -> str:
    """A short name: the method, tau if it has one, and what else differs from its defaults."""
    own = next((part for part in method.parts if part.name in METHODS), make_method("full"))
    defaults = METHODS[own.name]().params
    if defaults.get("front_layers"):  # the model's, where a method has any
        defaults["front_layers"] = config.model["front_layers"]
    defaults |= type(own).variants[own.name] | {"tau": None}
    shown = {k: v for k, v in own.params.items() if v is not None and v != defaults[k]}
    strategy = config.method.get("layers")
    if isinstance(strategy, str):
        shown.pop("layers", None)
        count = "" if config.layers.count == LayersConfig.count else f":{config.layers.count}"
        if strategy == "random":
            shown["layers"] = f"random:{config.layers.seed}{count}"
        elif strategy != "representative":
            shown["layers"] = strategy if strategy == "all" else f"{strategy}{count}"
        elif config.layers.file:
            shown["layers"] = own.params["layers"]
    if trims(config, method):
        shown["trim_last"] = True
    if (cache := config.cache["name"]) != "none":
        defaults = CACHES[cache]().params
        given = {k: v for k, v in config.cache.items() if k in defaults and v is not None}
        shown["cache"] = cache
        shown |= {f"cache.{k}": v for k, v in given.items() if v != defaults[k]}
        if file := config.cache.get("fit"):
            # files of one name may differ
            shown["cache.fit"] = (
                f"{Path(file).stem}@{sha256(Path(file).read_bytes()).hexdigest()[:6]}"
            )
    return " ".join([own.name, *(f"{key}={_short(value)}" for key, value in shown.items())])


def trims(config: Config, method: Method) -> bool:
    """Does the last block compute only what is read? Not where tokens are merged."""
    return config.trim_last and method.part(MergesTokens) is None


def full_run(config: Config, editor: Editor, data: Dataset) -> dict[str, Any]:
    """All that the full-context outputs depend on."""
    own = {f.name: getattr(editor.config, f.name) for f in fields(ModelConfig)}
    return {
        "schema": SCHEMA,
        "model": {name: value for name, value in own.items() if name not in ELSEWHERE},
        "weights": editor.fingerprint(),
        "data": data.fingerprint(),
        "seed": config.seed,
        "device": editor.device_name,
    }


def describe(
    config: Config, editor: Editor, method: Method, data: Dataset, label: str
) -> dict[str, Any]:
    """The manifest of a cell. Its keys hash what the outputs depend on, and nothing else."""
    full = full_run(config, editor, data)
    full_key = f"{editor.name}-{digest(full)}"
    content = {
        "full": full_key,
        "method": method.name,
        "params": method.params,
        "samples": data.ids,
        "lpips": config.lpips,
    }
    trimmed = {"trim_last": True} if trims(config, method) else {}
    content |= trimmed
    plain = asdict(replace(config, shard=None, devices=1))
    relative = placed(plain, Path.cwd()) != plain
    return {
        "key": f"{editor.name}-{method.name}-{digest(content)}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": editor.name,
        "method": method.name,
        "label": label,
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


def open_editor(config: Config) -> Editor:
    """The model, loaded once for all points of a sweep that run in this process."""
    return _editor(json.dumps(config.model, sort_keys=True))


@lru_cache(maxsize=1)
def _editor(model: str) -> Editor:
    return load_editor(json.loads(model))


@lru_cache(maxsize=2)
def _metrics(lpips: bool) -> Metrics:
    return Metrics("cuda" if torch.cuda.is_available() else "cpu", lpips)


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
