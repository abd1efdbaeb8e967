"""Finished cells in Parquet: how they are read. `topi.bench.results.compact` writes them.

    parquet/<n>/cells.parquet     one line per cell: what lists and tables say of it, its manifest
                rows.parquet      the rows of these cells, with the key of their cell
                latency.parquet   their timed pairs

The append logs are the record. A segment (`parquet/<n>`) holds a cell as of the last change of the
cell's folder. A cell that changed later is read from its log.
"""

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
from topi.bench.results.records import Pair, Row
from topi.errors import ToPiError

log = logging.getLogger(__name__)

FOLDER = "parquet"
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
        settings: what cells of one table share, as JSON: what full-context outputs depend on, and
            `count`.
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


def summary_of(manifest: Mapping[str, Any], rows: int = 0, latency: int = 0) -> Summary:
    """The summary of a cell with this manifest and so many rows and timed pairs."""
    labels = manifest.get("labels", [manifest["label"]])
    return Summary(
        created=str(manifest.get("created", "")),
        model=manifest["model"],
        method=manifest["method"],
        label="\n".join(labels),
        settings=canonical({**manifest["full"], "count": manifest["count"]}),
        count=manifest["count"],
        rows=rows,
        latency=latency,
    )


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
        folders = (path.parent for path in (root / FOLDER).glob("*/cells.parquet"))
        folders = (p for p in folders if is_segment(p) and not any(linked(p / n) for n in names))
        self.folders = sorted(folders, key=lambda path: int(path.name))

    @cached_property
    def changed(self) -> dict[str, int]:
        """When each cell changed, in ns, see `changed_at`; of all cells, compacted or not."""
        check_links(self.root / "cells")
        try:
            with os.scandir(self.root / "cells") as entries:
                return {e.name: changed_at(e.path) for e in entries if e.is_symlink() or e.is_dir()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ToPiError(f"{self.root / 'cells'} cannot be read ({error.strerror}).") from error

    @cached_property
    def cells(self) -> dict[Path, dict[str, Summary]]:
        """Segment -> key -> summary; every cell once, from the newest segment that holds it."""
        cells: dict[Path, dict[str, Summary]] = {}
        seen: set[str] = set()
        for folder in reversed(self.folders):
            try:
                keys, changed, *facts = _read_cells(folder)
            except DAMAGE as error:
                _drop(folder, error)
                cells[folder] = {}
                continue
            cells[folder] = {
                key: Summary(*about)
                for key, when, *about in zip(keys, changed, *facts, strict=True)
                if self.changed.get(key) == when and key not in seen
            }
            seen |= cells[folder].keys()
        return cells

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


def is_segment(folder: Path) -> bool:
    """True if this folder has the name of a segment."""
    return folder.name.isdecimal()


def changed_at(cell: str | Path) -> int:
    """When the folder of a cell or of its pictures changed last, in ns; 0 if it is not there."""
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
            table = with_cell(table_of_log(root / "cells" / key / f"{name}.jsonl", name), key)
        except (pa.ArrowException, ToPiError) as error:
            log.warning("left out: %s: %s", key, error)
            continue
        yield table.select([c for c in table.column_names if columns is None or c in columns])


def with_cell(table: pa.Table, key: str) -> pa.Table:
    """Records of a cell, and its key in front of each."""
    return table.add_column(0, "cell", pa.repeat(key, len(table)))


def table_of_log(path: Path, name: str) -> pa.Table:
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
