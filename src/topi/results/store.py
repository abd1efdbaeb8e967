"""What a sweep leaves on disk.

    cells/<key>/manifest.json     what the cell is and where it comes from; written first
                rows.jsonl        one line per sample, appended as they come
                latency.jsonl     one line per timed pair of runs
                images/<sample>.png, masks/<sample>.json
                failed.json       why the latest attempt ended, if it did
                complete.json     written last
    full/<key>/manifest.json, images/<sample>.png, references/<sample>_<i>.png
               full-context outputs, shared by all cells of a model, its data and a seed

A picture and a mask are on disk before their row, so a row says that its sample is done.
"""

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

log = logging.getLogger(__name__)

CELL_COLUMNS = ("cell", "model", "method", "label", "params")
ROW_COLUMNS = ("sample", "index", "category", "task", "instruction", "seed")
ROW_COLUMNS += ("psnr", "ssim", "lpips", "keep_ratio", "flop_speedup")
PROVENANCE = ("git", "versions", "device")  # of the manifest
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
        return _read_json(self.path / "manifest.json")

    @property
    def labels(self) -> list[str]:
        """The label of its manifest, and those that `add_label` noted."""
        return self.manifest.get("labels", [self.manifest["label"]])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished samples, in the order in which they came."""
        return files.read_lines(self.path / "rows.jsonl")[0]

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
        """`complete`, `failed: why`, or `running n/N` and `partial n/N` of its samples."""
        if self.complete:
            return "complete"
        running = files.is_locked(self.path / ".lock")
        failed = self.path / "failed.json"
        if failed.is_file() and not running:
            return f"failed: {_read_json(failed)['message']}"
        word = "running" if running else "partial"
        return f"{word} {len(self.rows)}/{self.manifest['count']}"

    def lock(self) -> AbstractContextManager[bool]:
        """Yields whether this process may write to the cell."""
        return files.lock(self.path / ".lock")

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, or on a later attempt note in it under which conditions it resumes.

        The rows of an earlier attempt stay; only a last line that it could not finish is dropped.
        """
        path = self.path / "manifest.json"
        if path.is_file():
            known = _read_json(path)
            first, now = ({name: m[name] for name in PROVENANCE} for m in (known, manifest))
            later = known.get("resumed", [])
            if now not in [first, *later]:
                files.write_json(path, known | {"resumed": [*later, now]})
        else:
            files.write_json(path, dict(manifest))
        self.__dict__.pop("manifest", None)  # not cached from before
        self.add_label(manifest["label"])
        for name in ("rows.jsonl", "latency.jsonl"):
            if files.drop_torn_line(self.path / name):
                log.warning("%s: dropped an unfinished last line of %s", self.key, name)
        (self.path / "failed.json").unlink(missing_ok=True)
        (self.path / "complete.json").unlink(missing_ok=True)

    def add_label(self, label: str) -> None:
        """Note that a configuration of another label comes to this very cell.

        Three random layers may be the first three.
        """
        if label not in self.labels:
            path = self.path / "manifest.json"
            files.write_json(path, _read_json(path) | {"labels": [*self.labels, label]})
            self.__dict__.pop("manifest", None)

    def add_row(
        self, row: Mapping[str, Any], image: Image.Image, mask: Mapping[str, Any] | None
    ) -> None:
        """Record a finished sample. `mask`: the kept tokens at each anchor, if any were dropped."""
        name = row["sample"]
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
        path = self.path / "images" / f"{sample}.png"
        return files.read_image(path) if path.is_file() else None

    def references(self, sample: str) -> list[Image.Image]:
        """The references of a sample that is there."""
        paths = (self.path / "references").glob(f"{sample}_*.png")
        return [files.read_image(path) for path in sorted(paths)]

    def add(self, sample: str, image: Image.Image, references: Iterable[Image.Image]) -> None:
        """Keep an output, its references first."""
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
        return Cell(self.root / "cells" / key)

    def full(self, key: str) -> FullOutputs:
        """The full-context outputs of this key, there or not."""
        return FullOutputs(self.root / "full" / key)

    def load_cells(self) -> list[Cell]:
        """All cells that have a manifest, oldest first."""
        cells = [Cell(path.parent) for path in self.root.glob("cells/*/manifest.json")]
        return sorted(cells, key=lambda cell: (cell.manifest.get("created", ""), cell.key))

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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ToPiError(f"{path} is damaged: delete its folder and run again.") from error
