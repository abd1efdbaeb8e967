"""Damage in a cell is set aside, told and computed again; never guessed at, never averaged over."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from topi.errors import ToPiError
from topi.results import files
from topi.results.links import check_links

log = logging.getLogger(__name__)

LOCK, QUARANTINE = ".lock", "quarantine"


def mend(cell: Path, pictures: Path | None = None) -> dict[str, Any] | None:
    """Leave only sound records in the folder of a cell, whose lock we hold.

    A torn last line is what a killed process leaves, and dropped. Other damaged lines, repeated
    samples and rows without their picture go into quarantine, and so do links, pipes and devices.
    Without a sound manifest nobody knows where the rows come from, and all goes there.

    Args:
        cell: its folder.
        pictures: another cell that may have its pictures already.

    Returns:
        The manifest; None if there is none, or none any more.
    """
    clear_up(cell)
    manifest = cell / "manifest.json"
    known = None
    if manifest.is_file():
        try:
            known = files.read_json(manifest)
        except ToPiError:
            aside = new_quarantine(cell)
            for path in [path for path in cell.iterdir() if path.name not in (LOCK, QUARANTINE)]:
                path.replace(aside / path.name)
            log.warning("%s: the manifest is damaged; all is in %s now", cell.name, aside)
    places = [cell / "images", *([pictures / "images"] if pictures else [])]
    for name, identity in (("rows.jsonl", partial(_sample, places)), ("latency.jsonl", _pair)):
        if files.drop_torn_line(cell / name):
            log.warning("%s: dropped an unfinished last line of %s", cell.name, name)
        _mend_lines(cell, name, identity)
    return known


def clear_up(cell: Path) -> None:
    """Leave only files in the folder of a cell, whose lock we hold, and no half written ones.

    Links, pipes and devices go into quarantine as they are; nothing is read through them.
    """
    check_links(cell)
    for part in cell.rglob(".*.part"):
        part.unlink()
    if strange := list(_strange(cell)):
        aside = new_quarantine(cell)
        for path in strange:
            to = aside / path.relative_to(cell)
            to.parent.mkdir(parents=True, exist_ok=True)
            path.replace(to)
        log.warning(
            "%s: %d links, pipes or devices are in %s now: %s",
            cell.name,
            len(strange),
            aside,
            ", ".join(path.name for path in strange[:3]),
        )


def _strange(folder: Path) -> Iterator[Path]:
    """What is neither a file nor a folder, at any depth; the quarantine is left alone."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != QUARANTINE:
                    yield from _strange(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def _mend_lines(cell: Path, name: str, identity: Callable[[Mapping[str, Any]], Any]) -> None:
    records = files.scan_lines(cell / name)[0]
    sound: dict[Any, dict[str, Any]] = {}
    for record in filter(None, records):
        try:
            sound.setdefault(identity(record), record)
        except (KeyError, TypeError, ToPiError):
            continue
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


def _sample(places: Sequence[Path], row: Mapping[str, Any]) -> str:
    """The sample of a row, which has its picture.

    Raises:
        KeyError: it has not.
    """
    sample = files.checked_name(row["sample"])
    if not any((place / f"{sample}.png").is_file() for place in places):
        raise KeyError(sample)
    return sample


def _pair(row: Mapping[str, Any]) -> tuple[str, int]:
    if not (row["seconds_full"] > 0 and row["seconds_method"] > 0):
        raise KeyError("seconds")
    return files.checked_name(row["sample"]), row["repeat"]


def new_quarantine(cell: Path) -> Path:
    """A new folder in the quarantine of a cell."""
    folder = cell / QUARANTINE
    check_links(folder)
    folder.mkdir(exist_ok=True)
    aside = folder / str(len(list(folder.iterdir())))
    aside.mkdir()
    return aside
