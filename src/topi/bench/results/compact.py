"""Finished cells are written as Parquet, so that a store of many cells is read by columns.

The files are described in `topi.bench.results.segments`. The append logs are written first and
stay: they are the record, and small beside the pictures of their rows. So nothing that happens here
can lose a row. A segment appears whole, by a rename, or not at all. A cell that changes later is
read from its log, until a further segment takes it in.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topi.bench.results import files
from topi.bench.results.mend import missing
from topi.bench.results.records import Manifest
from topi.bench.results.segments import (
    CELL_TYPES,
    FOLDER,
    RECORDS,
    Segments,
    changed_at,
    is_segment,
    summary_of,
    table_of_log,
    with_cell,
)
from topi.errors import ToPiError

log = logging.getLogger(__name__)

LOCK, SUPERSEDED = ".lock", "superseded"
TOGETHER = 2000
"""Cells of a segment, at most: as many rows as these have are in memory at a time."""
SETTLED = 2 * 10**9
"""Nanoseconds after which a further change of a folder surely has another time: file systems count
time in steps."""
HOUR = 3600 * 10**9
"""Nanoseconds for which somebody may still be reading a segment that another one replaced."""


def compact(root: Path, at_least: int = 1, seen: Segments | None = None) -> int:
    """Put finished cells that no segment holds yet into new ones, those of small segments again.

    One process does it at a time, others leave it to that. Cells that are worked on, damaged ones,
    and those that changed a moment ago wait for the next time.

    Args:
        root: of the store.
        at_least: how many cells make it worth while.
        seen: the segments as they were a moment ago, if somebody has read them.

    Returns:
        How many cells are in new segments.

    Raises:
        ToPiError: the store cannot be written.
    """
    if len(_finished(seen or Segments(root))) < max(at_least, 1):
        return 0
    with files.lock(root / FOLDER / LOCK) as held, files.writing(root / FOLDER):
        return _compact(root, max(at_least, 1)) if held else 0


def _finished(segments: Segments, now: int | None = None) -> list[str]:
    """The cells that no segment holds and that have ended well; some time before `now`."""
    cells = segments.root / "cells"
    keys = (k for k in segments.others if now is None or now - segments.changed[k] >= SETTLED)
    return [key for key in keys if (cells / key / "complete.json").is_file()]


def _compact(root: Path, at_least: int) -> int:
    folder = root / FOLDER
    now = _now(folder)
    for part in folder.glob(".*.part"):
        shutil.rmtree(part)  # of a process that was killed
    segments = Segments(root)
    if len(new := _finished(segments, now)) < at_least:
        return 0  # whoever had the lock before did it
    small = [keys for keys in segments.cells.values() if len(keys) < TOGETHER // 2]
    keys = sorted({*new, *(key for held in small for key in held)})
    used = [int(path.name) for path in folder.glob("*") if is_segment(path)]
    number = max(used, default=-1)
    taken = 0
    for start in range(0, len(keys), TOGETHER):
        lines = [_read(root / "cells" / key, now) for key in keys[start : start + TOGETHER]]
        if cells := [line for line in lines if line is not None]:
            number += 1
            part = folder / f".{number}.part"
            part.mkdir()
            _write(part, cells)
            part.rename(folder / str(number))  # from here on it is there
            files.sync(folder)
            taken += len(cells)
    _retire(Segments(root), now)
    return taken


def _now(folder: Path) -> int:
    """The time by the clock of the file system, in ns."""
    (folder / LOCK).touch()
    return (folder / LOCK).stat().st_mtime_ns


def _read(cell: Path, now: int) -> tuple[dict[str, Any], dict[str, pa.Table]] | None:
    """The line of a finished cell in `cells.parquet`, and its records; None if it has to wait.

    No lock is needed: whoever works on a finished cell changes its folder first.
    """
    before = changed_at(cell)
    if now - before < SETTLED or not (cell / "complete.json").is_file():
        return None
    try:
        manifest = files.read_json(cell / "manifest.json", Manifest)
        records = {name: table_of_log(cell / f"{name}.jsonl", name) for name in RECORDS}
        rows, pairs = records["rows"], records["latency"]
        if lack := missing(cell, manifest["count"], rows["sample"].to_pylist(), len(pairs)):
            raise ToPiError(lack)
        about = summary_of(manifest, len(rows), len(pairs))
    except (pa.ArrowException, ToPiError, OSError) as error:
        log.warning("%s stays out of the Parquet files: %s", cell.name, error)
        return None
    if changed_at(cell) != before:
        return None
    line = {
        "cell": cell.name,
        "changed": before,
        **about._asdict(),
        "manifest": json.dumps(manifest),
    }
    return line, {name: with_cell(table, cell.name) for name, table in records.items()}


def _write(part: Path, cells: Sequence[tuple[dict[str, Any], dict[str, pa.Table]]]) -> None:
    """Write a segment, its cells in the order of their keys."""
    tables = {"cells": pa.Table.from_pylist([line for line, _ in cells], CELL_TYPES)}
    for name, types in RECORDS.items():
        tables[name] = _concat([records[name] for _, records in cells], types)
    for name, table in tables.items():
        path = part / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        files.sync(path)
    files.sync(part)


def _concat(tables: Sequence[pa.Table], types: pa.Schema) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        log.warning("columns that only some cells have are left out of Parquet: %s", error)
        return pa.concat_tables([table.select(["cell", *types.names]) for table in tables])


def _retire(segments: Segments, now: int) -> None:
    """Remove segments of which no cell is in use any more, an hour after that is seen."""
    for folder in segments.folders:
        mark = folder / SUPERSEDED
        if segments.cells[folder]:
            continue
        if not mark.exists():
            files.write(mark, b"")
        elif now - mark.stat().st_mtime_ns > HOUR:
            (folder / "cells.parquet").unlink()  # nobody finds it any more
            shutil.rmtree(folder)
