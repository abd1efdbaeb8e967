"""Your own edits: a folder with images, and a list that says what to do with them."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from topi.data.images import read_rgb
from topi.data.inside import inside
from topi.data.sample import CATEGORIES, VISUAL, EditSample
from topi.errors import ToPiError

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
        self.entries = [_entry(n, entry, where) for n, (where, entry) in enumerate(lines, 1)]
        if not self.entries:
            raise ToPiError(f"{self.file} holds no sample: write one JSON object per line, or row")
        ids = [entry["id"] for entry in self.entries]
        if twice := {name for name in ids if ids.count(name) > 1}:
            raise ToPiError(f'{self.file}: the "id" {sorted(twice)[0]} occurs twice')
        self.entries = self.entries[:count]
        for entry in self.entries:
            for name in (*entry["image"], entry.get("edited", "")):
                inside(self.path, name, outside)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> EditSample:
        entry = self.entries[index]
        edited = entry.get("edited")
        return EditSample(
            id=f"{self.path.resolve().name}-{entry['id']}",
            category=entry["category"],
            task=entry.get("task", entry["category"]),
            instruction=entry["instruction"],
            references=tuple(self._open(name) for name in entry["image"]),
            target=self._open(edited) if edited else None,
        )

    def _open(self, name: str) -> Image.Image:
        file = inside(self.path, name, self.outside)
        if not file.is_file():
            raise ToPiError(f"the image {file} named in {self.file.name} does not exist")
        try:
            return read_rgb(file.read_bytes())
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
        return digest.hexdigest()[:16]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # spreadsheets begin with a mark
    except UnicodeDecodeError as error:
        raise ToPiError(f"{file} is not UTF-8: save it as UTF-8") from error


def _jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ToPiError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(entry, dict):
            raise ToPiError(f'{where} is no JSON object: write {{"image": ..., ...}}')
        yield where, entry


def _csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(file)), strict=True)
    try:
        if len(header := reader.fieldnames or ["image"]) == 1 and ";" in header[0]:
            raise ToPiError(f"{file}: separate the columns by commas, not by semicolons")
        reader.fieldnames = [str(name).strip().lower() for name in header]
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row:
                raise ToPiError(f"{where} has more cells than the header: quote commas in texts")
            entry: dict[str, Any] = {k: v.strip() for k, v in row.items() if v and v.strip()}
            if "image" in entry:
                entry["image"] = [name.strip() for name in entry["image"].split(SEPARATOR)]
            yield where, entry
    except csv.Error as error:
        raise ToPiError(f"{file}, line {reader.line_num} is no CSV: {error}") from error


def _entry(number: int, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Checked, with defaults; `image` is a list of names."""
    if unknown := sorted(set(entry) - set(COLUMNS)):
        raise ToPiError(f"{where} has {unknown[0]!r}; known are {', '.join(COLUMNS)}")
    for key in ("image", "instruction"):
        if not entry.get(key) or not str(entry[key]).strip():
            raise ToPiError(f'{where} has no "{key}"')
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    texts = [*images, *(v for k, v in entry.items() if k not in ("image", "id"))]
    if not all(isinstance(text, str) and text for text in texts):
        raise ToPiError(f"{where}: every value is a text; image may be a list of them")
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
