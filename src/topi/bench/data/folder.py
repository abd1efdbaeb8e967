"""Your own edits: a folder with images, and a list that says what to do with them."""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from topi.bench.data.images import looked_at, read_otherwise, read_rgb
from topi.bench.data.list_paths import inside
from topi.bench.data.sample import CATEGORIES, VISUAL, EditSample
from topi.bench.io.names import can_be_path, checked_name, is_unicode
from topi.errors import ToPiError

T = TypeVar("T")
FILES = ("edits.jsonl", "edits.csv")
COLUMNS = ("image", "instruction", "category", "task", "edited", "id")
SEPARATOR = ";"


class EditFolder:
    """Each line of `path/edits.jsonl`, or each row of `path/edits.csv`, is one sample.

    {"image": "cat.png", "instruction": "make it snow"}; `image` may be a list of files (in CSV:
    "a.png;b.png") for models that take several references. Optional: "category" (one of CATEGORIES
    or VISUAL), "task", "edited" (the true edit) and "id" (the number of the entry otherwise).

    Unlike AnyEdit's, a broken line or image is not left out: it is your own, so mend it. All broken
    images are named by `topi data check`.

    Args:
        path: the folder.
        count: samples; all if None.
        outside: allow the list to name images outside the folder.

    Raises:
        ToPiError: the list is missing, or something in it is wrong; the message names the line.
    """

    def __init__(self, path: str | Path, count: int | None = None, outside: bool = False):
        self.path, self.outside = Path(path), outside
        if count is not None and count < 1:
            raise ToPiError(f"count={count} must be at least 1")
        found = [self.path / name for name in FILES if (self.path / name).is_file()]
        if not found:
            raise ToPiError(
                f"{self.path / FILES[0]} is missing: write one JSON object per line, see "
                f"EditFolder, or a table {FILES[1]}"
            )
        if len(found) > 1:
            raise ToPiError(f"{self.path} holds {' and '.join(FILES)}: remove one of them")
        self.file = found[0]
        lines = _csv(self.file) if self.file.suffix == ".csv" else _jsonl(self.file)
        self.entries = list(_checked(lines, self.path.resolve().name))
        if not self.entries:
            raise ToPiError(f"{self.file} holds no sample: write one JSON object per line, or row")
        self.entries = self.entries[:count]
        for entry in self.entries:
            for name in (*entry["image"], entry.get("edited", "")):
                inside(self.path, name, outside)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the samples; no picture is read."""
        folder = self.path.resolve().name
        return [f"{folder}-{entry['id']}" for entry in self.entries]

    def __getitem__(self, index: int) -> EditSample:
        entry = self.entries[index]
        edited = entry.get("edited")
        return EditSample(
            id=self.ids[index],
            category=entry["category"],
            task=entry.get("task", entry["category"]),
            instruction=entry["instruction"],
            references=tuple(self._open(name) for name in entry["image"]),
            target=self._open(edited) if edited else None,
        )

    def sizes(self, index: int) -> list[tuple[int, int]]:
        """The sizes of the references of a sample, (width, height) as stored; none is decoded.

        Raises:
            ToPiError: a picture of the sample is missing, or can be seen to be damaged.
        """
        entry = self.entries[index]
        named = [*entry["image"], *([entry["edited"]] if "edited" in entry else [])]
        return [self._read(name, looked_at) for name in named][: len(entry["image"])]

    def _open(self, name: str) -> Image.Image:
        return self._read(name, lambda file: read_rgb(file.read_bytes()))

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        file = inside(self.path, name, self.outside)
        if not file.is_file():
            raise ToPiError(f"the image {file} named in {self.file.name} does not exist")
        try:
            return read(file)
        except (OSError, ValueError) as error:
            raise ToPiError(
                f"the image {file} cannot be read ({error}): replace it or remove its line"
            ) from error

    def fingerprint(self) -> str:
        """A hash over the entries and the bytes of every image they name."""
        digest = hashlib.sha256(json.dumps(self.entries, sort_keys=True).encode())
        for entry in self.entries:
            for name in entry["image"]:
                file = inside(self.path, name, self.outside)
                digest.update(file.read_bytes() if file.is_file() else b"missing")
                if file.is_file() and read_otherwise(file):
                    digest.update(b"on white, scaled to 8 bits")
        return digest.hexdigest()[:16]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # spreadsheets begin with a mark
    except UnicodeDecodeError as error:
        raise ToPiError(f"{file} is not UTF-8: save it as UTF-8") from error


def _jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # not splitlines, which also splits at U+2028 and the like, inside of texts
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            entry = json.loads(line, object_pairs_hook=partial(_once, where))
        except json.JSONDecodeError as error:
            raise ToPiError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's
            raise ToPiError(f"{where} cannot be read: {error}") from error
        if not isinstance(entry, dict):
            raise ToPiError(f'{where} is no JSON object: write {{"image": ..., ...}}')
        yield where, entry


def _csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(_text(file)), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where, start = f"{file}, line {start}", reader.line_num + 1
            if not any(cells):
                continue
            if header is None:
                if len(cells) == 1 and ";" in cells[0]:
                    raise ToPiError(f"{file}: separate the columns by commas, not by semicolons")
                header = [name.strip().lower() for name in cells]
                _once(where, [(name, None) for name in header if name])
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise ToPiError(f"{where} has more cells than the header: quote commas in texts")
            row = zip(header, cells, strict=False)
            entry: dict[str, Any] = {k: v.strip() for k, v in row if v.strip()}
            if "image" in entry:
                entry["image"] = [name.strip() for name in entry["image"].split(SEPARATOR)]
            yield where, entry
    except csv.Error as error:
        raise ToPiError(f"{file}, line {start} is no CSV: {error}") from error


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary; a name that occurs twice is refused."""
    counts = Counter(name for name, _ in pairs)
    if twice := [name for name, number in counts.items() if number > 1]:
        raise ToPiError(f"{where} has {twice[0]!r} twice: remove one of them")
    return dict(pairs)


def _checked(lines: Iterator[tuple[str, dict]], folder: str) -> Iterator[dict[str, Any]]:
    """The entries; an id is refused if it occurs twice or if it cannot name a file."""
    known: dict[str, str] = {}
    for number, (where, line) in enumerate(lines, 1):
        entry = _entry(number, line, where)
        name = entry["id"]
        if (first := known.setdefault(name, where)) != where:
            raise ToPiError(f'{where}: the "id" {name} occurs twice, first in {first}')
        try:
            checked_name(f"{folder}-{name}")
        except ToPiError as error:
            raise ToPiError(
                f"{where}: the id with the name of the folder before it: {error}"
            ) from error
        yield entry


def _entry(number: int, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Checked, with defaults; `image` is a list of names."""
    if unknown := sorted(set(entry) - set(COLUMNS)):
        raise ToPiError(f"{where} has {unknown[0]!r}; known are {', '.join(COLUMNS)}")
    entry = {key: value for key, value in entry.items() if value is not None}
    for key in ("image", "instruction"):
        if not entry.get(key) or not str(entry[key]).strip():
            raise ToPiError(f'{where} has no "{key}"')
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    texts = [*images, *(v for k, v in entry.items() if k not in ("image", "id"))]
    if not all(isinstance(text, str) and text for text in texts):
        raise ToPiError(f"{where}: every value is a text; image may be a list of them")
    if not all(map(is_unicode, texts)):
        raise ToPiError(f"{where}: a text is no valid Unicode (it has half of a surrogate pair)")
    if unusable := [name for name in (*images, entry.get("edited", "")) if not can_be_path(name)]:
        raise ToPiError(f"{where}: {unusable[0][:80]!r} is no name of a file, or too long for one")
    category = entry.get("category", "local_edit")
    if category not in (*CATEGORIES, VISUAL):
        raise ToPiError(
            f"{where}: category {category!r} is unknown; choose from "
            f"{', '.join((*CATEGORIES, VISUAL))}"
        )
    name = str(entry.get("id", f"{number:05d}"))
    if not re.fullmatch(r"[\w.-]+", name):
        raise ToPiError(f'{where}: the "id" {name!r} must do as a file name: letters, digits, ._-')
    return entry | {"image": images, "category": category, "id": name}
