"""Finished cells in Parquet, so that a store of many cells is read by columns.

    parquet/<n>/cells.parquet     one line per cell: what lists and tables say of it, its manifest
                rows.parquet      the rows of these cells, with the key of their cell
                latency.parquet   their timed pairs

The append logs are written first and stay: they are the record, and small beside the pictures of
their rows. So nothing that happens here can lose a row. A segment (`parquet/<n>`) appears whole, by
a rename, or not at all, and holds a cell as of the last change of the cell's folder; a cell that
changes later is read from its log, until a further segment takes it in.
"""

import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from topi.bench.results import files
from topi.bench.results.keys import canonical
from topi.bench.results.links import check_links, linked
from topi.bench.results.mend import missing
from topi.bench.results.records import Manifest, Pair, Row
from topi.errors import ToPiError

log = logging.getLogger(__name__)

FOLDER, LOCK, SUPERSEDED = "parquet", ".lock", "superseded"
TOGETHER = 2000
"""Cells of a segment, at most: as many rows as these have are in memory at a time."""
SETTLED = 2 * 10**9
"""Nanoseconds after which a further change of a folder surely has another time: file systems count
time in steps."""
HOUR = 3600 * 10**9
"""Nanoseconds for which somebody may still be reading a segment that another one replaced."""
ROW_TYPES = pa.schema(
    [(name, pa.string()) for name in ("sample", "category", "task", "instruction")]
    + [(name, pa.int64()) for name in ("index", "seed")]
    + [(name, pa.float64()) for name in ("psnr", "ssim", "lpips", "keep_ratio", "flop_speedup")]
)
LATENCY_TYPES = pa.schema(
    [("sample", pa.string()), ("repeat", pa.int64())]
    + [(name, pa.float64()) for name in ("seconds_full", "seconds_method")]
)
RECORDS = {"rows": ROW_TYPES, "latency": LATENCY_TYPES}
"""What is compacted, and the types of the columns that reports read."""
REQUIRED = {"rows": Row.__required_keys__, "latency": Pair.__required_keys__}


class Summary(NamedTuple):
    """What lists and tables say of a cell.

    Args:
        label: its labels, a line for each.
        settings: what cells of one table share, as JSON.
        count: of samples.
        rows: how many it has.
        latency: how many timed pairs it has.
    """

    created: str
    model: str
    method: str
    label: str
    settings: str
    count: int
    rows: int
    latency: int


def settings_of(manifest: Mapping[str, Any]) -> str:
    """What cells of one table share, as JSON: what full-context outputs depend on, and `count`."""
    return canonical({**manifest["full"], "count": manifest["count"]})


CELL_TYPES = pa.schema(
    [("cell", pa.string()), ("changed", pa.int64())]
    + [(name, pa.string()) for name in ("created", "model", "method", "label", "settings")]
    + [(name, pa.int64()) for name in ("count", "rows", "latency")]
    + [("manifest", pa.string())]
)
"""`cells.parquet`: its key, when its folder changed (ns), its `Summary`, its manifest as JSON."""


class Segments:
    """The compacted cells of a store that are still as they were when they were compacted.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        names = [f"{name}.parquet" for name in ("cells", *RECORDS)]
        found = (path.parent for path in (root / FOLDER).glob("*/cells.parquet"))
        found = (p for p in found if _is_segment(p) and not any(linked(p / n) for n in names))
        self.folders = sorted(found, key=lambda path: int(path.name))

    @cached_property
    def changed(self) -> dict[str, int]:
        """When each cell changed, in ns, see `_changed`; of all cells, compacted or not."""
        check_links(self.root / "cells")
        try:
            with os.scandir(self.root / "cells") as entries:
                return {e.name: _changed(e.path) for e in entries if e.is_symlink() or e.is_dir()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ToPiError(f"{self.root / 'cells'} cannot be read ({error.strerror}).") from error

    @cached_property
    def cells(self) -> dict[Path, dict[str, Summary]]:
        """Segment -> key -> summary; every cell once, from the newest segment that holds it."""
        found: dict[Path, dict[str, Summary]] = {}
        seen: set[str] = set()
        for folder in reversed(self.folders):
            try:
                keys, changed, *facts = _read_cells(folder)
            except DAMAGE as error:
                _drop(folder, error)
                found[folder] = {}
                continue
            found[folder] = {
                key: Summary(*about)
                for key, when, *about in zip(keys, changed, *facts, strict=True)
                if self.changed.get(key) == when and key not in seen
            }
            seen |= found[folder].keys()
        return found

    @cached_property
    def others(self) -> list[str]:
        """The names of the folders of cells that no segment holds as they are."""
        held = {key for keys in self.cells.values() for key in keys}
        return sorted(self.changed.keys() - held)

    def scan(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """What segments hold of their cells: a table per row group, texts as dictionaries.

        Cells of a damaged segment come from their logs, which are the record.

        Args:
            name: of the file: "rows" or "latency".
            columns: those wanted, where they are there; None: all.
        """
        for folder, keys in self.cells.items():
            if not keys:
                continue
            try:
                yield from list(_read_segment(folder, name, columns, keys))
            except DAMAGE as error:
                _drop(folder, error)
                yield from _read_logs(self.root, name, columns, keys)


DAMAGE = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged Parquet file raises."""


def _is_segment(folder: Path) -> bool:
    return folder.name.isdecimal()


def _changed(cell: str | Path) -> int:
    """When the folder of a cell or of its pictures changed last, in ns; 0: that cannot be told."""
    try:
        changed = os.lstat(cell).st_mtime_ns
    except OSError:
        return 0
    try:
        return max(changed, os.lstat(os.path.join(cell, "images")).st_mtime_ns)
    except OSError:
        return changed


def _drop(folder: Path, error: Exception) -> None:
    """Remove a damaged segment, so that the next `compact` takes its cells in anew."""
    log.warning("%s is damaged; its cells are read from their logs: %s", folder, error)
    shutil.rmtree(folder, ignore_errors=True)


def _read_cells(folder: Path) -> list[list[Any]]:
    """The columns of `cells.parquet` but for the manifests.

    Raises:
        pa.ArrowException, OSError, ValueError: it is damaged.
    """
    path = folder / "cells.parquet"
    with pq.ParquetFile(path, page_checksum_verification=True) as file:  # read_table needs pandas
        table = file.read(CELL_TYPES.names[:-1])
    if table.schema.remove_metadata() != pa.schema(list(CELL_TYPES)[:-1]):
        raise ValueError("it has other columns")
    if any(column.null_count for column in table.columns):
        raise ValueError("it has empty fields")
    # not to_pylist, which makes a hundred thousand scalars first
    return [column.to_numpy().tolist() for column in table.columns]


def _read_segment(
    folder: Path, name: str, columns: Sequence[str] | None, keys: Collection[str]
) -> Iterator[pa.Table]:
    """`Segments.scan` of one segment.

    Raises:
        pa.ArrowException, OSError, ValueError: it is damaged.
    """
    path = folder / f"{name}.parquet"
    schema = pq.read_schema(path)
    texts = [f.name for f in schema if pa.types.is_string(f.type)]
    wanted = [c for c in schema.names if columns is None or c in {"cell", *columns}]
    whole = len(keys) == pq.read_metadata(folder / "cells.parquet").num_rows
    with pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=wanted)
            yield table if whole else table.filter(pc.is_in(table["cell"], pa.array(keys)))


def _read_logs(
    root: Path, name: str, columns: Sequence[str] | None, keys: Iterable[str]
) -> Iterator[pa.Table]:
    columns = None if columns is None else {"cell", *columns}
    for key in keys:
        try:
            table = _with_cell(_table(root / "cells" / key / f"{name}.jsonl", name), key)
        except (pa.ArrowException, ToPiError) as error:
            log.warning("left out: %s: %s", key, error)
            continue
        yield table.select([c for c in table.column_names if columns is None or c in columns])


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
    with files.lock(root / FOLDER / LOCK) as ours, files.writing(root / FOLDER):
        return _compact(root, max(at_least, 1)) if ours else 0


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
    used = [int(path.name) for path in folder.glob("*") if _is_segment(path)]
    number = max(used, default=-1)
    taken = 0
    for start in range(0, len(keys), TOGETHER):
        found = [_read(root / "cells" / key, now) for key in keys[start : start + TOGETHER]]
        if cells := [each for each in found if each is not None]:
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
    before = _changed(cell)
    if now - before < SETTLED or not (cell / "complete.json").is_file():
        return None
    try:
        manifest = files.read_json(cell / "manifest.json", Manifest)
        records = {name: _table(cell / f"{name}.jsonl", name) for name in RECORDS}
        rows, pairs = records["rows"], records["latency"]
        if lack := missing(cell, manifest["count"], rows["sample"].to_pylist(), len(pairs)):
            raise ToPiError(lack)
        about = Summary(
            str(manifest.get("created", "")),
            manifest["model"],
            manifest["method"],
            "\n".join(manifest.get("labels", [manifest["label"]])),
            settings_of(manifest),
            manifest["count"],
            len(rows),
            len(pairs),
        )
    except (pa.ArrowException, ToPiError, OSError) as error:
        log.warning("%s stays out of the Parquet files: %s", cell.name, error)
        return None
    if _changed(cell) != before:
        return None
    line = {
        "cell": cell.name,
        "changed": before,
        **about._asdict(),
        "manifest": json.dumps(manifest),
    }
    return line, {name: _with_cell(table, cell.name) for name, table in records.items()}


def _with_cell(table: pa.Table, key: str) -> pa.Table:
    return table.add_column(0, "cell", pa.repeat(key, len(table)))


def _table(path: Path, name: str) -> pa.Table:
    """A file of JSON lines, which has to be whole.

    Args:
        name: of its `RECORDS`.

    Raises:
        pa.ArrowException, ToPiError: it is not.
    """
    content, types = files.plain_lines(path), RECORDS[name]
    if not content:
        return types.empty_table()
    options = pa.json.ParseOptions(explicit_schema=types)
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(content) + 1)
    table = pa.json.read_json(pa.BufferReader(content), reading, options)
    for field in REQUIRED[name]:
        column = table[field]
        bad = pc.is_nan(column) if pa.types.is_floating(column.type) else None
        if column.null_count or (bad is not None and pc.any(bad).as_py()):
            raise ToPiError(f"{path} has a line without {field}")
    for sample in table["sample"].to_pylist():
        _checked(sample)
    return table


_checked = lru_cache(maxsize=100_000)(files.checked_name)


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


def concat(tables: Iterable[pa.Table]) -> pa.Table:
    """One table of tables whose columns differ; texts stay dictionaries, one for all."""
    return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()


def moments(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """`Store.moments` of one table."""
    columns = {
        "cell": table["cell"].cast(pa.string()),
        "category": table["category"].cast(pa.string()),
    }
    aims = [("n", "cell", "count")]
    for name in names:
        values = table[name].cast(pa.float64())
        finite = pc.if_else(pc.is_finite(values), values, None)
        columns |= {name: finite, f"{name}_squares": pc.multiply(finite, finite)}
        columns[f"{name}_infinite"] = pc.cast(pc.is_inf(values), pa.int64())
        aims += [(f"{name}_n", name, "count"), (f"{name}_sum", name, "sum")]
        aims += [(f"{name}_{sum_}", f"{name}_{sum_}", "sum") for sum_ in ("squares", "infinite")]
    asked = [(column, how) for _, column, how in aims]
    sums = pa.table(columns).group_by(["cell", "category"]).aggregate(asked)
    return sums.rename_columns(["cell", "category", *(name for name, *_ in aims)])
