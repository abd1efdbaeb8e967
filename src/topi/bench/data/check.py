"""Is a download complete? What `topi data check PATH` counts and finds broken."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from topi.bench.data.anyedit_source import Key, ParquetFiles, Row, TestFolder, open_source
from topi.bench.data.anyedit_types import CATEGORY
from topi.bench.data.folder import FILES, EditFolder
from topi.bench.data.images import damage, size_problem
from topi.bench.data.sample import VISUAL
from topi.errors import ToPiError

#: AnyEdit-Test has so many pairs of each of its 25 types.
PER_TYPE = 50
#: Of more parquet files than this, only some images are looked at: those of the first row groups of
#: some files, so that it takes seconds.
READ_ALL_BELOW = 2 * 2**30  # bytes
LOOK_INTO = 8  # files


@dataclass
class Findings:
    """What was found: rows by (category, type), and what is wrong, as (where, reason).

    `absent` are types that no row is of, where that need not be wrong.
    """

    kind: str
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    looked_at: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def check(path: str | Path, everything: bool = False) -> Findings:
    """Look at a folder of own edits, AnyEdit-Test, or parquet files of AnyEdit, or one of these.

    Images are looked at from outside (do they begin and end as they should?); the loaders decode
    every image that they use.

    Args:
        path: a local folder, or a parquet file.
        everything: decode all images, also those of many large parquet files.

    Raises:
        ToPiError: there is nothing of the kind.
    """
    path = Path(path)
    if not path.exists():
        raise ToPiError(f"there is no folder {path}")
    if any((path / name).is_file() for name in FILES):
        return _check_folder(path)
    source = open_source(path)
    found = Findings("AnyEdit-Test" if isinstance(source, TestFolder) else "AnyEdit, parquet files")
    if isinstance(source, TestFolder):
        keys = source.keys()
        _count(found, keys)
        _check_rows(found, source.rows(keys, edited=True), everything)
        for kind, category in CATEGORY.items():
            if (number := found.rows[category, kind]) != PER_TYPE:
                found.broken.append((kind, f"{number} pairs instead of {PER_TYPE}"))
    else:
        _check_parquet(found, source, everything)
    return found


def _check_folder(path: Path) -> Findings:
    found = Findings("own edits")
    folder = EditFolder(path)
    for index, entry in enumerate(folder.entries):
        found.rows[entry["category"], entry.get("task", entry["category"])] += 1
        found.looked_at += 1
        try:
            sizes = [image.size for image in folder[index].references]
        except ToPiError as error:
            found.broken.append((entry["id"], str(error)))
        else:
            problems = filter(None, map(size_problem, sizes))
            found.broken += [(entry["id"], f"FLUX.2 refuses {problem}") for problem in problems]
    return found


def _count(found: Findings, keys: list[Key]) -> None:
    for key in keys:
        if key.known_type is None:
            found.broken.append((f"{key.type}-{key.id}", f"unknown edit type {key.type!r}"))
        else:
            found.rows[CATEGORY[key.known_type], key.known_type] += 1


def _check_rows(found: Findings, rows: Iterator[tuple[Key, Row]], everything: bool) -> None:
    for key, row in rows:
        found.looked_at += 1
        visual = CATEGORY.get(key.known_type) == VISUAL
        images = {"image": row.image, "edited image": row.edited}
        images |= {"second image": row.visual} if visual else {}
        found_of = {
            name: damage(image, quick=not everything, sized=name != "edited image")
            for name, image in images.items()
        }
        problems = [f"{name}: {problem}" for name, problem in found_of.items() if problem]
        if not row.instruction:
            problems.append("no instruction")
        if problems:
            name = f"{key.known_type or key.type}-{key.id}"
            found.broken.append((name, "; ".join(problems)))


def _check_parquet(found: Findings, source: ParquetFiles, everything: bool) -> None:
    size = sum(source.system.size(file) for file in source.files)
    every = max(len(source.files) // LOOK_INTO, 1)
    for number, file in enumerate(source.files):
        try:
            keys = source.keys_of(file)
            _count(found, keys)
            if not everything and size > READ_ALL_BELOW:
                keys = [key for key in keys if key.at[1] == 0 and number % every == 0]
            _check_rows(found, source.rows(keys, edited=True), everything)
        except ToPiError as error:
            found.broken.append((Path(file).name, str(error)))
    found.broken += _missing_shards(source.files)
    if found.rows:
        present = {kind for _, kind in found.rows}
        found.absent = [kind for kind in CATEGORY if kind not in present]


def _missing_shards(files: list[str]) -> Iterator[tuple[str, str]]:
    """Name the missing files of a split whose files are <split>-00003-of-00012.parquet."""
    shards: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := re.match(r"(.+)-(\d{5})-of-(\d{5})", Path(file).name):
            shards.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (split, count), present in shards.items():
        if absent := sorted(set(range(count)) - present):
            numbers = ", ".join(f"{n:05d}" for n in absent[:5]) + (", ..." if absent[5:] else "")
            yield split, f"{len(absent)} of {count} files are missing: {numbers}"
