"""A store as a few Parquet files: what `topi export` writes, and how it is read.

    manifests.parquet       path, content: every manifest.json and complete.json
    masks.parquet           path, content: every masks/<sample>.json
    pictures.parquet        path, content: every PNG file
    probe_arrays.parquet    path, content: every .npz file of a probe
    rows.parquet            a line per sample of a cell; latency.parquet: a line per timed pair
    probe_rows.parquet      a line per sample of a probe; bench_rows.parquet: of a benchmark

`path` is relative to the store. In the tables of lines, `folder` is the cell, probe or benchmark,
as "cells/<key>", and `fields` the names of the fields that the line has, as JSON; each field is a
column. A column whose values have no common type holds them as JSON, which its metadata say.

Readers get the files of a store, see `store_folder`; a packed store is not written to.
"""

import functools
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topi.bench.results import files
from topi.bench.results.links import PACKED, guard
from topi.errors import ToPiError

WHOLE = {
    "manifests": ("*/*/*.json", pa.string()),
    "masks": ("cells/*/masks/*.json", pa.string()),
    "pictures": ("*/*/*/*.png", pa.binary()),
    "probe_arrays": ("probe/*/maps/*.npz", pa.binary()),
}
"""Table -> the files that it holds as they are, and as what."""
LINES = {
    "rows": "cells/*/rows.jsonl",
    "latency": "cells/*/latency.jsonl",
    "probe_rows": "probe/*/rows.jsonl",
    "bench_rows": "bench/*/rows.jsonl",
}
"""Table -> the files of JSON lines whose lines it holds."""
AS_JSON = {b"topi": b"json"}
DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading damaged Parquet files raises, or those that others wrote."""


def pack(content: Mapping[str, bytes], out: Path) -> None:
    """Write files of a store as Parquet files.

    Args:
        content: path in the store -> content; JSON lines without checksums.
        out: a folder that is there.
    """
    paths = sorted(content)
    for name, (pattern, kind) in WHOLE.items():
        chosen = _matching(paths, pattern)
        values = [content[path] for path in chosen]
        _write(out, name, pa.table({"path": chosen, "content": pa.array(values, kind)}))
    for name, pattern in LINES.items():
        lines = [
            (str(PurePosixPath(path).parent), json.loads(line))
            for path in _matching(paths, pattern)
            for line in content[path].splitlines()
        ]
        _write(out, name, _table_of_lines(lines))


def _matching(paths: Iterable[str], pattern: str) -> list[str]:
    depth = pattern.count("/")
    return [p for p in paths if p.count("/") == depth and PurePosixPath(p).match(pattern)]


def _table_of_lines(lines: list[tuple[str, dict[str, Any]]]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "folder": pa.array([folder for folder, _ in lines], pa.string()),
        "fields": pa.array([json.dumps(list(line)) for _, line in lines], pa.string()),
    }
    types = [pa.field(name, column.type) for name, column in columns.items()]
    for name in dict.fromkeys(name for _, line in lines for name in line):
        column, as_json = _column([line.get(name) for _, line in lines])
        columns[name] = column
        types.append(pa.field(name, column.type, metadata=AS_JSON if as_json else None))
    return pa.table(list(columns.values()), pa.schema(types))


def _column(values: list[Any]) -> tuple[pa.Array, bool]:
    """Values as a column that gives them back, and whether it holds them as JSON."""
    try:
        if (column := pa.array(values)).to_pylist() == values:
            return column, False
    except (pa.ArrowException, OverflowError, UnicodeError):
        pass  # they have no common type
    return pa.array([json.dumps(value) for value in values], pa.string()), True


def _write(out: Path, name: str, table: pa.Table) -> None:
    path = out / f"{name}.parquet"
    pq.write_table(table, path, compression="zstd", compression_level=15, write_page_checksum=True)
    files.sync(path)


def unpack(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The path and the content of each file that `pack` wrote into a folder.

    Raises:
        ToPiError: a Parquet file is missing or damaged.
    """
    for name, (pattern, kind) in WHOLE.items():
        for line in _read(folder, name):
            content = line["content"].encode() if kind == pa.string() else line["content"]
            yield _checked(line["path"], pattern), content
    for name, pattern in LINES.items():
        for key, lines in itertools.groupby(_read(folder, name), key=lambda line: line["folder"]):
            records = (
                {field: line[field] for field in json.loads(line["fields"])} for line in lines
            )
            text = "".join(f"{json.dumps(record)}\n" for record in records)
            yield _checked(f"{key}/{PurePosixPath(pattern).name}", pattern), text.encode()


def _read(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a table."""
    content = files.read_bytes(folder / f"{name}.parquet")
    with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
        table = file.read()  # pq.read_table needs pandas
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        values = column.to_pylist()
        as_json = (field.metadata or {}).items() >= AS_JSON.items()
        columns.append([json.loads(value) for value in values] if as_json else values)
    return [dict(zip(table.column_names, line, strict=True)) for line in zip(*columns, strict=True)]


def _checked(path: str, pattern: str) -> str:
    """A path that an export names, which stays in the folder and is of the table's kind."""
    for part in path.split("/"):
        files.checked_name(part)
    if not _matching([path], pattern):
        raise ValueError(f"it has {path!r}, which is not {pattern}")
    return path


def store_folder(root: Path | str) -> Path:
    """The folder with the files of a store: its own, or of a packed store a temporary one.

    The temporary folder lasts as long as the process. Neither is written to through links, see
    `guard`.

    Raises:
        ToPiError: the store is packed, and damaged.
    """
    folder = guard(root)
    try:
        stamp = os.stat(folder / PACKED)
    except OSError:  # also where there is no store yet
        return folder
    path = Path(os.path.abspath(folder))
    return Path(_unpacked(path, stamp.st_ino, stamp.st_mtime_ns).name)


@functools.cache
def _unpacked(folder: Path, *_: int) -> "tempfile.TemporaryDirectory[str]":
    """A packed store as files; the further arguments tell one state of it from another."""
    temporary = tempfile.TemporaryDirectory(prefix=f"topi-{folder.name}-")
    try:
        for name, content in unpack(folder):
            path = Path(temporary.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except (*DAMAGE, ToPiError) as error:
        raise ToPiError(
            f"The export {folder} cannot be read ({error}): restore it, or write it anew with "
            "`topi export`."
        ) from error
    guard(temporary.name, export=folder)
    return temporary
