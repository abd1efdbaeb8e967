"""Damaged files of a cell are set aside and logged, and what they held is computed again."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from topi.bench.results import files
from topi.bench.results.links import check_links
from topi.bench.results.records import Completion, Manifest, Masks, Pair, Row
from topi.bench.results.sound_files import is_sound_image
from topi.errors import ToPiError

log = logging.getLogger(__name__)

QUARANTINE = "quarantine"
RECORDS = ("rows.jsonl", "latency.jsonl", "failed.json", "complete.json")
FOLDERS = ("images", "masks")


def mend(cell: Path, pictures: Path | None = None) -> dict[str, Any] | None:
    """Leave only sound records in the folder of a cell, whose lock we hold.

    A torn last line is what a killed process leaves, and dropped. Other damaged lines, repeated
    samples and rows without their picture go into quarantine, and so do links, pipes and devices,
    folders in place of files and files in place of folders. Without a sound manifest nobody knows
    where the rows come from, and all goes there.

    Args:
        cell: its folder.
        pictures: another cell that may have its pictures already.

    Returns:
        The manifest; None if there is none, or none any more.

    Raises:
        ToPiError: the folder cannot be written.
    """
    with files.writing(cell):
        known = mend_manifest(cell, Manifest)
        places = [cell, *([pictures] if pictures else [])]
        for name, kind, identity in (
            ("rows.jsonl", Row, partial(_sample, places)),
            ("latency.jsonl", Pair, _pair),
        ):
            mend_lines(cell, name, kind, identity)
    return known


def clear_up(cell: Path) -> None:
    """Leave only files in the folder of a cell, whose lock we hold, and no half written ones.

    Links, pipes, devices and what is a folder in place of a file, or the reverse, go into
    quarantine as they are; nothing is read through them.
    """
    check_links(cell)
    for part in cell.rglob(".*.part"):
        files.remove(part)
    if strange := list(_strange(cell)):
        aside = new_quarantine(cell)
        for path in strange:
            to = aside / path.relative_to(cell)
            to.parent.mkdir(parents=True, exist_ok=True)
            path.replace(to)
        log.warning(
            "%s: %d entries of the wrong kind, such as links, are in %s now: %s",
            cell.name,
            len(strange),
            aside,
            ", ".join(path.name for path in strange[:3]),
        )


def _strange(folder: Path) -> Iterator[Path]:
    """What is not of the kind that it has to be, at any depth; the quarantine is left alone."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and entry.name not in RECORDS and folder.name not in FOLDERS:
                if entry.name != QUARANTINE:
                    yield from _strange(Path(entry.path))
            elif is_folder or entry.name in FOLDERS or not entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def contents(cell: Path) -> list[Path]:
    """What a cell holds, but for locks and what was set aside."""
    return [p for p in cell.glob("*") if p.name != QUARANTINE and not p.name.startswith(".")]


def mend_manifest(cell: Path, kind: Any) -> dict[str, Any] | None:
    """The manifest of a cell, a probe or a benchmark; without one, all it holds is set aside.

    What killed processes were writing is removed before, see `clear_up`.
    """
    clear_up(cell)
    try:
        return files.read_json(cell / "manifest.json", kind)
    except ToPiError as error:
        if held := contents(cell):
            aside = new_quarantine(cell)
            for path in held:
                path.replace(aside / path.name)
            log.warning("%s: %s All is in %s now.", cell.name, error, aside)
    return None


def mend_lines(
    cell: Path, name: str, kind: Any, identity: Callable[[Mapping[str, Any]], Any]
) -> None:
    """Leave only sound lines in a file.

    Args:
        kind: of the lines.
        identity: of a record, which counts once; None: it is not sound.
    """
    if files.drop_torn_line(cell / name):
        log.warning("%s: dropped an unfinished last line of %s", cell.name, name)
    records = files.scan_lines(cell / name, kind)
    sound: dict[Any, dict[str, Any]] = {}
    for record in filter(None, records):
        if (known := identity(record)) is not None:
            sound.setdefault(known, record)
    if len(sound) == len(records):
        return
    aside = new_quarantine(cell) / name
    files.write(aside, files.read_bytes(cell / name))
    files.write_lines(cell / name, sound.values())
    log.warning(
        "%s: %d of %d lines of %s are damaged and will be computed again; the file is in %s",
        cell.name,
        len(records) - len(sound),
        len(records),
        name,
        aside,
    )


def _sample(places: Sequence[Path], row: Mapping[str, Any]) -> str | None:
    """The sample of a row; None if its picture is missing or damaged, or its mask is damaged."""
    return row["sample"] if any(pictured(place, row["sample"]) for place in places) else None


def pictured(cell: Path, sample: str) -> bool:
    """Whether the picture of a sample is there, and it and its mask, if it has one, are sound."""
    mask = cell / "masks" / f"{sample}.json"
    if not is_sound_image(cell / "images" / f"{sample}.png"):
        return False
    try:
        return not mask.exists() or bool(files.read_json(mask, Masks))
    except ToPiError:
        return False


def missing(cell: Path, count: int, samples: Sequence[str], timed: int) -> str | None:
    """What a cell that has ended lacks of what it had then, or has twice; None: nothing.

    Args:
        count: of the samples that it is to have.
        samples: those that have rows.
        timed: how many timed pairs it has.

    Raises:
        ToPiError: `complete.json` is damaged.
    """
    said = files.read_json(cell / "complete.json", Completion)
    wanted, pairs = max(count, said.get("samples", 0)), said.get("latency", 0)
    there = set(samples)
    lacks = [f"{wanted - len(there)} of {wanted} samples"] if len(there) < wanted else []
    lacks += [f"{pairs - timed} of {pairs} timed pairs"] if timed < pairs else []
    if said.get("pictures", False):
        pictures = os.listdir(cell / "images") if (cell / "images").is_dir() else []
        if bare := sorted(there - {name.removesuffix(".png") for name in pictures}):
            lacks.append(f"{len(bare)} of {len(there)} pictures, as that of {bare[0]}")
    if twice := len(samples) - len(there):
        return f"it has {twice} samples twice: run it again."
    return f"it lacks {' and '.join(lacks)}: run it again." if lacks else None


def _pair(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["sample"], row["repeat"]


def new_quarantine(cell: Path) -> Path:
    """A new folder in the quarantine of a cell."""
    folder = cell / QUARANTINE
    check_links(folder)
    folder.mkdir(exist_ok=True)
    aside = folder / str(len(list(folder.iterdir())))
    aside.mkdir()
    return aside
