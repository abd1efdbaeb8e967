"""Compute a cell, whole or in shards, and continue where an earlier process ended."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from topi.bench.config.schema import Config
from topi.bench.data import EditSample
from topi.bench.io.names import same_file
from topi.bench.results import Cell, FullOutputs, Store
from topi.bench.results.mend import pictured
from topi.bench.runs.assemble import Parts, assemble
from topi.bench.runs.cell import Bench, full_output, run_latency, run_quality
from topi.bench.runs.gpu import share
from topi.bench.runs.identify import identify
from topi.bench.runs.metrics import Metrics
from topi.bench.tracking.mirror import Mirror
from topi.errors import ToPiError

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a cell is tried whose files vanish while it is computed."""


def run(config: Config, experiment: str | None = None) -> None:
    """Compute what a cell lacks; with `shard` or `devices`, as one of several processes.

    A complete cell, or one that another process is computing, is left alone; the log says so.

    Args:
        experiment: the name behind `experiment=`, if there is one.

    Raises:
        ConfigError: the method does not fit the model, or its parameters exclude each other.
        ToPiError: another error that the user can correct; the cell is marked as failed.
    """
    if config.devices > 1:
        share(config.devices, run_rank, config, experiment)
        return
    parts = assemble(config)
    work = Work(parts, identify(parts) | {"experiment": experiment})
    if config.share is None:
        _until_whole(work, lambda: _run_whole(work))
    else:
        _until_whole(work, lambda: _run_shard(work, *config.share))


def run_rank(rank: int, world: int, config: Config, experiment: str | None) -> None:
    """`run`, as one of the processes that `devices` asks for."""
    index, number = config.share or (0, 1)
    shard = f"{index + number * rank}/{number * world}"
    run(replace(config, devices=1, shard=shard), experiment)


def bench_of(parts: Parts, manifest: Mapping[str, Any]) -> Bench:
    """What `run_quality` and `run_latency` need to compute samples of a cell."""
    return Bench(
        parts.editor,
        parts.data,
        _metrics(parts.config.lpips),
        Store(parts.config.store).full(manifest["full_key"]),
        parts.config.seed,
        manifest.get("trim_last", False),
    )


@lru_cache(maxsize=2)
def _metrics(lpips: bool) -> Metrics:
    return Metrics("cuda" if torch.cuda.is_available() else "cpu", lpips)


@dataclass
class Work:
    """A cell to compute: its parts, its manifest and its place in the store."""

    parts: Parts
    manifest: dict[str, Any]

    @property
    def config(self) -> Config:
        """The configuration of the cell."""
        return self.parts.config

    @property
    def data(self) -> Sequence[EditSample]:
        """The samples of the cell."""
        return self.parts.data

    @property
    def samples(self) -> list[str]:
        """The ids of all samples."""
        return self.parts.data.ids

    @property
    def label(self) -> str:
        """The name of the cell in tables."""
        return self.manifest["label"]

    @property
    def mixed(self) -> bool:
        """True if the cell may be continued under other conditions than it was begun."""
        return self.config.resume == "any"

    @cached_property
    def store(self) -> Store:
        """The store that the cell is in."""
        return Store(self.config.store)

    @cached_property
    def cell(self) -> Cell:
        """The record of the cell."""
        return self.store.cell(self.manifest["key"])

    @property
    def full(self) -> FullOutputs:
        """The full-context outputs that the cell is compared with."""
        return self.store.full(self.manifest["full_key"])

    def lacks(self, part: Cell | None = None, indices: Sequence[int] | None = None) -> list[str]:
        """What is missing or damaged, in words; empty if the cell is whole.

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
        computed = [name for name in wanted if name in done]
        missing = {
            "samples": [name for name in wanted if name not in done],
            "pictures": [x for x in computed if not any(pictured(cell.path, x) for cell in cells)],
            "full outputs": [name for name in computed if not self.full.has(name)],
            "timed samples": [x for x in timed if pairs[x] < self.config.latency.repeats],
        }
        return [f"{len(names)} {what}, as {names[0]}" for what, names in missing.items() if names]

    def begin(self, cell: Cell) -> Bench:
        """Write what must be in the store before the first row.

        Raises:
            ToPiError: the file system cannot tell two samples apart.
        """
        cell.start(self.manifest, self.mixed, self.cell.path)
        _check_case(self.store.root, self.samples)
        bench = bench_of(self.parts, self.manifest)
        bench.full.start(self.manifest["full"])
        return bench

    def indices(self, share: tuple[int, int] | None) -> range:
        """The samples of a share (which, of how many), by index; None: all."""
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
            share: of a shard: which, of how many. Samples that the whole cell has are left out.
        """
        quality = timed = None
        done, indices = {row["sample"] for row in self.cell.rows}, self.indices(share)
        if share is not None:
            pairs, repeats = self.cell.timed(), self.config.latency.repeats
            quality = [i for i in indices if self.samples[i] not in done]
            timed = [i for i in indices if pairs[self.samples[i]] < repeats]
        for i in indices:
            if self.samples[i] in done and not self.full.has(self.samples[i]):
                full_output(bench, self.data[i])
        wanted = len(self.data) if quality is None else len(quality)
        log.info("%s: %s, %d of %d samples done", self.label, cell.key, len(cell.rows), wanted)
        samples, repeats = self.config.latency.samples, self.config.latency.repeats
        run_quality(bench, self.parts.method, cell, self.label, report, quality)
        run_latency(bench, self.parts.method, cell, self.label, samples, repeats, timed)

    def already_complete(self) -> bool:
        """True if nothing is left to do; the cell then gets this label, too."""
        if not self.cell.complete or self.lacks():
            return False
        self.cell.add_label(self.label)
        log.info("%s: %s is complete, nothing to do", self.label, self.cell.key)
        return True


def _check_case(store: Path, ids: Sequence[str]) -> None:
    """Refuse ids that differ in case only, if the store's file system ignores case."""
    if (twins := same_file(ids)) and (store / "CELLS").is_dir():  # "cells", if case is ignored
        raise ToPiError(
            f"The samples {twins[0]} and {twins[1]} are one file in {store}: rename one, or name "
            "a folder on a file system that tells upper from lower case with store=PATH."
        )


def _until_whole(work: Work, attempt: Callable[[], list[str]]) -> None:
    """Try until nothing is missing; files may vanish while others are computed.

    Args:
        attempt: computes what is missing; returns what is missing at its end.

    Raises:
        ToPiError: something is missing after each attempt.
    """
    for _ in range(ATTEMPTS):
        if not (lacks := attempt()):
            return
        problem = f"{work.cell.key} lacks at its end what was computed: {'; '.join(lacks)}"
        log.warning("%s: %s; computing it again", work.label, problem)
    with _marked(work.cell):
        raise ToPiError(f"{problem}. Something else removes or damages files in {work.store.root}.")


def _run_whole(work: Work) -> list[str]:
    """One attempt; see `_until_whole`."""
    cell, label = work.cell, work.label
    with cell.lock() as locked:
        if not locked:
            log.info("%s: another process is computing %s; leaving it to that", label, cell.key)
            return []
        if work.already_complete():
            return []
        with _marked(cell):
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
    """One attempt at every `number`th sample; see `_until_whole`."""
    cell, label = work.cell, work.label
    part, share = cell.shard(f"{index}of{number}"), (index, number)
    with ExitStack() as held:
        with cell.merging() as locked:
            if locked and work.already_complete():
                return []
            if not locked or not held.enter_context(part.lock()):
                log.info("%s: another process is computing %s; leaving it to that", label, part.key)
                return []
            if cell.mend() is None or cell.ended:
                cell.start(work.manifest, work.mixed)
            with _marked(cell):
                cell.take_in_shards(work.mixed)  # of earlier attempts
        with _marked(part):
            work.compute(work.begin(part), part, share=share)
            if lacks := work.lacks(part, work.indices(share)):
                return lacks
            part.finish()
    return _join_shards(work, part, share)


def _join_shards(work: Work, part: Cell, share: tuple[int, int]) -> list[str]:
    """Put finished shards together; returns what this shard lacks. The last one ends the cell."""
    cell, label = work.cell, work.label
    with cell.merging() as locked:
        if not locked:
            return []
        with _marked(cell):
            cell.take_in_shards(work.mixed)
            if cell.shards() or work.lacks():
                log.info("%s: shard %s of %s is complete now", label, part.key, cell.key)
                return work.lacks(indices=work.indices(share))
            with work.mirror():
                cell.finish()
    log.info("%s: %s is complete now", label, cell.key)
    return []


@contextmanager
def _marked(cell: Cell) -> Iterator[None]:
    """Mark the cell as failed if an exception passes."""
    try:
        yield
    except Exception as error:
        cell.fail(str(error) if isinstance(error, ToPiError) else repr(error))
        raise
