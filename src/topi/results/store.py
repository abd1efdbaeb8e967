"""What a sweep leaves on disk.

    cells/<key>/manifest.json     what the cell is and where it comes from; written first
                rows.jsonl        one line per sample, appended as they come
                latency.jsonl     one line per timed pair of runs
                images/<sample>.png, masks/<sample>.json
                failed.json       why the latest attempt ended, if it did
                complete.json     written last
                quarantine/<n>/   what was found damaged, and has been computed again
    full/<key>/manifest.json, images/<sample>.png, references/<sample>_<i>.png
               full-context outputs, shared by all cells of a model, its data and a seed

A picture and a mask are on disk before their row, so a row says that its sample is done.
"""

import glob
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from topi.errors import ToPiError
from topi.results import files
from topi.results.mend import mend
from topi.results.provenance import differences

log = logging.getLogger(__name__)

CELL_COLUMNS = ("cell", "model", "method", "label", "params")
ROW_COLUMNS = ("sample", "index", "category", "task", "instruction", "seed")
ROW_COLUMNS += ("psnr", "ssim", "lpips", "keep_ratio", "flop_speedup")
PROVENANCE = ("git", "code", "lock", "versions", "device", "job")  # of the manifest
LATENCY_COLUMNS = ("cell", "sample", "repeat", "seconds_full", "seconds_method")


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: a model, a method with its parameters, data and a seed."""

    path: Path

    @property
    def key(self) -> str:
        """The name of its folder: a readable prefix and a hash."""
        return self.path.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the cell is: config, provenance, `count` of samples, `full_key`, ..."""
        return files.read_json(self.path / "manifest.json")

    @property
    def damage(self) -> str | None:
        """What makes it unreadable, if anything does."""
        try:
            _ = self.manifest, self.rows, self.latency
        except ToPiError as error:
            return str(error)
        return None

    @property
    def labels(self) -> list[str]:
        """The label of its manifest, and those that `add_label` noted."""
        return self.manifest.get("labels", [self.manifest["label"]])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished samples, in the order in which they came."""
        rows = files.read_lines(self.path / "rows.jsonl")[0]
        for row in rows:
            files.checked_name(row.get("sample"))  # it names files
        return rows

    @property
    def latency(self) -> list[dict[str, Any]]:
        """The timed pairs of runs."""
        return files.read_lines(self.path / "latency.jsonl")[0]

    @property
    def complete(self) -> bool:
        """Has it ended well?"""
        return (self.path / "complete.json").is_file()

    @property
    def state(self) -> str:
        """`complete`, `failed: why`, `running n/N` and `partial n/N` of its samples, `damaged`."""
        if self.damage:
            return f"damaged: {self.damage}"
        if self.complete:
            return "complete"
        running = files.is_locked(self.path / ".lock")
        failed = self.path / "failed.json"
        if failed.is_file() and not running:
            return f"failed: {files.read_json(failed).get('message')}"
        word = "running" if running else "partial"
        return f"{word} {len(self.rows)}/{self.manifest['count']}"

    def lock(self) -> AbstractContextManager[bool]:
        """Yields whether this process may write to the cell."""
        return files.lock(self.path / ".lock")

    def start(self, manifest: Mapping[str, Any], mixed: bool = False) -> None:
        """Write the manifest, or on a later attempt note in it under which conditions it resumes.

        What an earlier attempt recorded stays; `mend` says what does not.

        Args:
            manifest: of this attempt.
            mixed: resume also with other code or versions than before.

        Raises:
            ToPiError: the cell has rows of other code or versions, or from the future.
        """
        path = self.path / "manifest.json"
        known = mend(self.path)
        self.__dict__.pop("manifest", None)  # not cached from before
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
        (self.path / "failed.json").unlink(missing_ok=True)
        (self.path / "complete.json").unlink(missing_ok=True)

    def add_label(self, label: str) -> None:
        """Note that a configuration of another label comes to this very cell.

        Three random layers may be the first three.
        """
        if label not in self.labels:
            path = self.path / "manifest.json"
            files.write_json(path, files.read_json(path) | {"labels": [*self.labels, label]})
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

    def finish(self) -> None:
        """Say that the cell is complete."""
        content = {"samples": len(self.rows), "latency": len(self.latency)}
        files.write_json(self.path / "complete.json", content)

    def fail(self, message: str) -> None:
        """Say why this attempt ended. A store that takes no more files cannot be told."""
        try:
            files.write_json(self.path / "failed.json", {"message": message})
        except ToPiError as error:
            log.warning("%s", error)


@dataclass(frozen=True)
class FullOutputs:
    """The full-context outputs of one model on one data set with one seed."""

    path: Path

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.path.name

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, once."""
        if not (self.path / "manifest.json").is_file():
            files.write_json(self.path / "manifest.json", dict(manifest))

    @contextmanager
    def claim(self) -> Iterator[None]:
        """One process computes at a time; others wait and find the output there."""
        with files.lock(self.path / ".lock", wait=True):
            yield

    def image(self, sample: str) -> Image.Image | None:
        """The output, or None if it is not there yet."""
        path = self._image(sample)
        return files.read_image(path) if path.is_file() else None

    def set_aside(self, sample: str) -> None:
        """Take a damaged output out of the way."""
        path = self._image(sample)
        path.replace(path.with_suffix(".damaged"))

    def _image(self, sample: str) -> Path:
        return self.path / "images" / f"{files.checked_name(sample)}.png"

    def references(self, sample: str) -> list[Image.Image]:
        """The references of a sample that is there."""
        name = glob.escape(files.checked_name(sample))
        paths = (self.path / "references").glob(f"{name}_*.png")
        return [files.read_image(path) for path in sorted(paths)]

    def add(self, sample: str, image: Image.Image, references: Iterable[Image.Image]) -> None:
        """Keep an output, its references first."""
        files.checked_name(sample)
        for number, reference in enumerate(references):
            files.write_image(self.path / "references" / f"{sample}_{number}.png", reference)
        files.write_image(self.path / "images" / f"{sample}.png", image)


class Store:
    """The results under one folder; it is made when something is written.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def cell(self, key: str) -> Cell:
        """The cell of this key, there or not."""
        return Cell(self.root / "cells" / files.checked_name(key))

    def full(self, key: str) -> FullOutputs:
        """The full-context outputs of this key, there or not."""
        return FullOutputs(self.root / "full" / files.checked_name(key))

    def load_cells(self) -> list[Cell]:
        """All cells that have a readable manifest, oldest first."""
        cells = []
        for cell in self.find_cells():
            try:
                cells.append((str(cell.manifest.get("created", "")), cell.key, cell))
            except ToPiError as error:
                log.warning("left out: %s", error)
        return [cell for *_, cell in sorted(cells, key=lambda entry: entry[:2])]

    def find_cells(self) -> list[Cell]:
        """All cells that have a manifest, damaged ones too, by key."""
        return [Cell(path.parent) for path in sorted(self.root.glob("cells/*/manifest.json"))]

    def rows(self) -> pd.DataFrame:
        """One line per cell and sample: `CELL_COLUMNS`, `ROW_COLUMNS`, and what else rows hold."""
        lines = []
        for cell in self.load_cells():
            about = {name: cell.manifest[name] for name in CELL_COLUMNS[1:]}
            lines += [{"cell": cell.key, **about, **row} for row in cell.rows]
        return _frame(lines, (*CELL_COLUMNS, *ROW_COLUMNS))

    def latency(self) -> pd.DataFrame:
        """One line per timed pair of runs: `LATENCY_COLUMNS`; seconds."""
        lines = [{"cell": c.key, **row} for c in self.load_cells() for row in c.latency]
        return _frame(lines, LATENCY_COLUMNS)


def _frame(lines: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    frame = pd.DataFrame(lines)
    more = [name for name in frame.columns if name not in columns]
    return frame.reindex(columns=[*columns, *more])
