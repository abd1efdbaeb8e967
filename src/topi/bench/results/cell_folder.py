"""The folder of one cell: what is recorded of it, what state it is in, and how it is written."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from topi.bench.results import files
from topi.bench.results.mend import QUARANTINE, clear_up, mend, missing, new_quarantine
from topi.bench.results.provenance import differences
from topi.bench.results.records import Failure, Manifest, Pair, Row
from topi.bench.results.segments import Summary, summary_of
from topi.errors import ToPiError

log = logging.getLogger(__name__)

PROVENANCE = ("git", "code", "lock", "versions", "device", "job")
"""Fields of a manifest that say where a result comes from."""
TAKEN = ".taken"
"""Ends the name of a shard that its cell has taken in, until it is removed."""


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: a model, a method with its parameters, data and a seed.

    Args:
        path: its folder.
        compacted: its summary, if it is finished and Parquet files hold it as it is.
    """

    path: Path
    compacted: Summary | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """The name of its folder: a readable prefix and a hash."""
        return self.path.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the cell is: config, provenance, `count` of samples, `full_key`, ...

        Raises:
            ToPiError: it is missing, or a field is missing or of another type.
        """
        return files.read_json(self.path / "manifest.json", Manifest)

    @property
    def damage(self) -> str | None:
        """What cannot be read, or is missing from a cell that has ended; None if all is well."""
        return self._check()[1]

    def _check(self) -> tuple[int | None, str | None]:
        """How many samples it has, None if that cannot be read, and its `damage`."""
        if self.compacted:
            return self.compacted.rows, None
        self.__dict__.pop("manifest", None)  # it may be gone by now
        ended = self.ended  # before the rest is read: the end comes last
        try:
            count, rows, pairs = self.manifest["count"], self.rows, self.latency
        except ToPiError as error:
            return None, str(error)
        try:
            samples = [row["sample"] for row in rows]
            return len(rows), missing(self.path, count, samples, len(pairs)) if ended else None
        except ToPiError as error:
            return (None, str(error)) if self.ended else (len(rows), None)

    @property
    def ended(self) -> bool:
        """True if it ended well; see `complete`."""
        return os.path.lexists(self.path / "complete.json")

    @property
    def _about(self) -> Summary:
        return self.compacted or summary_of(self.manifest)

    @property
    def created(self) -> str:
        """When it was begun; empty if its manifest does not say."""
        return self._about.created

    @property
    def model(self) -> str:
        """The name of its model."""
        return self._about.model

    @property
    def method(self) -> str:
        """The name of its method."""
        return self._about.method

    @property
    def labels(self) -> list[str]:
        """The label of its manifest, and those that `add_label` noted."""
        if self.compacted:
            return self.compacted.label.split("\n")
        return self.manifest.get("labels", [self.manifest["label"]])

    @property
    def settings(self) -> str:
        """What cells of one table share, as JSON."""
        return self._about.settings

    @property
    def count(self) -> int:
        """How many samples it is to have."""
        return self._about.count

    @property
    def done(self) -> int:
        """How many samples it has; 0 if that cannot be read."""
        return self._check()[0] or 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished samples, in the order in which they came."""
        return files.read_lines(self.path / "rows.jsonl", Row)

    @property
    def latency(self) -> list[dict[str, Any]]:
        """The timed pairs of runs."""
        return files.read_lines(self.path / "latency.jsonl", Pair)

    @property
    def complete(self) -> bool:
        """True if it ended well and nothing is missing or damaged since."""
        return bool(self.compacted) or (self.ended and self.damage is None)

    @property
    def state(self) -> str:
        """`complete`, `failed: why`, `running n/N` and `partial n/N` of its samples, `damaged`."""
        return self.progress[1]

    @property
    def progress(self) -> tuple[int | None, str]:
        """How many samples it has, None if that cannot be read, and its `state`."""
        done, damage = self._check()
        if done is None or damage is not None:
            return done, f"damaged: {damage}"
        if self.ended or self.compacted:
            return done, "complete"
        parts = self.shards()
        done += sum(part.done for part in parts if part.damage is None)
        running = any(files.is_locked(part.path / ".lock") for part in (self, *parts))
        failed = [why for part in (self, *parts) if (why := part.failure) is not None]
        if failed and not running:
            return done, f"failed: {failed[0]}"
        return done, f"{'running' if running else 'partial'} {done}/{self.count}"

    @property
    def failure(self) -> str | None:
        """Why the latest attempt ended; None if it has not failed."""
        if not os.path.lexists(path := self.path / "failed.json"):
            return None
        try:
            return files.read_json(path, Failure)["message"]
        except ToPiError as error:
            return f"the reason is not known, as {error}"

    def lock(self) -> AbstractContextManager[bool]:
        """Yields whether this process may write to the cell."""
        return files.lock(self.path / ".lock")

    @contextmanager
    def merging(self) -> Iterator[bool]:
        """Hold the cell for a moment, one shard after the other.

        Yields False if another process holds the cell, as it computes all of it.
        """
        with files.lock(self.path / ".merge", wait=True), self.lock() as held:
            self.__dict__.pop("manifest", None)  # others may have noted something
            yield held

    def shard(self, name: str) -> "Cell":
        """What one of several processes computes of it; a cell of its own until it is taken in."""
        return Cell(self._shards / files.checked_name(name))

    def shards(self) -> list["Cell"]:
        """The shards that are not taken in yet."""
        folders = sorted(self._shards.glob("[!.]*"))
        return [Cell(path) for path in folders if path.is_dir() and not path.is_symlink()]

    @property
    def _shards(self) -> Path:
        return self.path.parents[1] / "shards" / self.key

    def mend(self, pictures: Path | None = None) -> dict[str, Any] | None:
        """Set aside what is damaged, see `topi.bench.results.mend.mend`; our lock is held."""
        self.__dict__.pop("manifest", None)  # not cached from before
        return mend(self.path, pictures)

    def start(
        self, manifest: Mapping[str, Any], mixed: bool = False, pictures: Path | None = None
    ) -> None:
        """Write the manifest, or on a later attempt note in it under which conditions it resumes.

        What an earlier attempt recorded stays; `mend` says what does not.

        Args:
            manifest: of this attempt.
            mixed: resume also with other code or versions than before.
            pictures: see `mend`; a shard was killed while its cell took it in.

        Raises:
            ToPiError: the cell has rows of other code or versions, or from the future.
        """
        path = self.path / "manifest.json"
        known = self.mend(pictures)
        done = len(self.rows)
        if known is None or not (done or self.latency):
            labels = {name: known[name] for name in ("label", "labels") if known and name in known}
            files.write_json(path, dict(manifest) | labels)
        else:
            attempts = [known, *(known | attempt for attempt in known.get("resumed", []))]
            if (changed := differences(attempts[-1], manifest)) and not mixed:
                raise ToPiError(
                    f"{self.key} was begun under other conditions ({'; '.join(changed)}): finish "
                    "it under the same, begin anew with store=PATH, or allow the mixture with "
                    "resume=any."
                )
            now = {name: manifest.get(name) for name in PROVENANCE}
            now = {name: value for name, value in now.items() if value != known.get(name)}
            now |= {"created": manifest.get("created"), "rows": done, "changed": changed}
            files.write_json(path, known | {"resumed": [*known.get("resumed", []), now]})
        self.__dict__.pop("manifest", None)
        self.add_label(manifest["label"])
        files.remove(self.path / "failed.json")
        files.remove(self.path / "complete.json")

    def add_label(self, label: str) -> None:
        """Note that a configuration of another label comes to this very cell.

        Three random layers may be the first three.
        """
        if label not in self.labels:
            path = self.path / "manifest.json"
            files.write_json(path, self.manifest | {"labels": [*self.labels, label]})
            self.__dict__.pop("manifest", None)

    def add_row(
        self, row: Mapping[str, Any], image: Image.Image, mask: Mapping[str, Any] | None
    ) -> None:
        """Record a finished sample. `mask`: the kept tokens at each anchor, if any were dropped."""
        name = files.checked_name(row["sample"])
        files.write_image(self.path / "images" / f"{name}.png", image)
        if mask is not None:
            files.write(self.path / "masks" / f"{name}.json", json.dumps(mask).encode())
        files.append(self.path / "rows.jsonl", dict(row))

    def add_latency(self, row: Mapping[str, Any]) -> None:
        """Record a timed pair of runs."""
        files.append(self.path / "latency.jsonl", dict(row))

    def timed(self) -> Counter[str]:
        """How many pairs of runs each sample has."""
        return Counter(row["sample"] for row in self.latency)

    def take_in_shards(self, mixed: bool = False) -> None:
        """Make the rows and timed pairs of its shards its own; our lock is held.

        Those that somebody works on stay. Pictures move first and rows come in one step, in the
        order of the samples, so a killed process leaves nothing that the next one cannot go on
        from.

        Args:
            mixed: also those of other code or versions.

        Raises:
            ToPiError: a shard was computed under other conditions than the cell.
        """
        clear_up(self.path)
        for part in self.shards():
            with part.lock() as held:
                if not held:
                    continue
                if (known := mend(part.path, pictures=self.path)) is not None:
                    self._take_in(part, known, mixed)
                if (damaged := part.path / QUARANTINE).is_dir():
                    damaged.replace(new_quarantine(self.path) / part.key)
                # in one step: without its manifest, what is left would be taken for damage
                part.path.replace(part.path.with_name(f".{part.key}{TAKEN}"))
        for taken in self._shards.glob(f".*{TAKEN}"):
            shutil.rmtree(taken)
        with suppress(OSError):  # some are still there, of this cell or of others
            self._shards.rmdir()
            self._shards.parent.rmdir()

    def _take_in(self, part: "Cell", about: Mapping[str, Any], mixed: bool) -> None:
        known = self.manifest
        if (changed := differences(known | {"created": None}, about)) and not mixed:
            raise ToPiError(
                f"The shard {part.key} of {self.key} was computed under other conditions "
                f"({'; '.join(changed)}): remove {part.path}, or allow it with resume=any."
            )
        for folder in ("images", "masks"):
            for path in (part.path / folder).glob("[!.]*"):
                (self.path / folder).mkdir(exist_ok=True)
                path.replace(self.path / folder / path.name)
            if (self.path / folder).is_dir():
                files.sync(self.path / folder)
        rows = {row["sample"]: row for row in (*part.rows, *self.rows)}
        pairs = {(pair["sample"], pair["repeat"]): pair for pair in (*part.latency, *self.latency)}
        order = {name: _index(row) for name, row in rows.items()}
        noted = {name: about.get(name) for name in (*PROVENANCE, "created")}
        noted |= {"shard": part.key, "rows": len(part.rows), "changed": changed}
        if noted not in (resumed := known.get("resumed", [])):
            files.write_json(self.path / "manifest.json", known | {"resumed": [*resumed, noted]})
            self.__dict__.pop("manifest", None)
        ordered = sorted(pairs.values(), key=lambda p: (order.get(p["sample"], 0), p["repeat"]))
        files.write_lines(self.path / "latency.jsonl", ordered)
        files.write_lines(self.path / "rows.jsonl", sorted(rows.values(), key=_index))

    def finish(self) -> None:
        """Say that the cell is complete; its rows are in the order of the samples now."""
        rows = self.rows
        if (ordered := sorted(rows, key=_index)) != rows:  # shards were taken in before
            files.write_lines(self.path / "rows.jsonl", ordered)
        content = {"samples": len(self.rows), "latency": len(self.latency), "pictures": True}
        files.write_json(self.path / "complete.json", content)

    def fail(self, message: str) -> None:
        """Record why this attempt ended; if the disk is full, only the log says it."""
        try:
            files.write_json(self.path / "failed.json", {"message": message})
        except ToPiError as error:
            log.warning("%s", error)


def _index(row: Mapping[str, Any]) -> int:
    return row.get("index", 0)
