"""Your own edits: a folder with images and an `edits.jsonl` that says what to do with them."""

import hashlib
import json
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from topi.data.sample import CATEGORIES, EditSample
from topi.errors import ToPiError

FILE = "edits.jsonl"


class EditFolder:
    """Each line of `path/edits.jsonl` is one sample.

    {"image": "cat.png", "instruction": "make it snow"}; `image` may be a list of files for models
    that take several references. Optional: "category" (one of CATEGORIES), "task", "edited" (the
    true edit) and "id" (the line number otherwise).
    """

    def __init__(self, path: str | Path, count: int | None = None):
        self.path = Path(path)
        file = self.path / FILE
        if not file.is_file():
            raise ToPiError(f"{file} is missing: write one JSON object per line, see EditFolder")
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        self.entries = [self._entry(n, line) for n, line in enumerate(lines[:count], 1)]
        if not self.entries:
            raise ToPiError(f"{file} holds no sample: write one JSON object per line")

    def _entry(self, number: int, line: str) -> dict:
        where = f"{self.path / FILE}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ToPiError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
        for key in ("image", "instruction"):
            if key not in entry:
                raise ToPiError(f'{where} has no "{key}"')
        category = entry.setdefault("category", "local_edit")
        if category not in CATEGORIES:
            raise ToPiError(
                f"{where}: category {category!r} is unknown; choose from {', '.join(CATEGORIES)}"
            )
        entry.setdefault("id", f"{number:05d}")
        return entry

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> EditSample:
        entry = self.entries[index]
        images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        edited = entry.get("edited")
        return EditSample(
            id=f"{self.path.name}-{entry['id']}",
            category=entry["category"],
            task=entry.get("task", entry["category"]),
            instruction=entry["instruction"],
            references=tuple(self._open(name) for name in images),
            target=self._open(edited) if edited else None,
        )

    def _open(self, name: str) -> Image.Image:
        file = self.path / name
        try:
            with Image.open(file) as image:
                return image.convert("RGB")
        except FileNotFoundError as error:
            raise ToPiError(f"the image {file} named in {FILE} does not exist") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ToPiError(
                f"the image {file} cannot be read ({error}): replace it or remove its line"
            ) from error

    def fingerprint(self) -> str:
        """A hash over the entries and the bytes of every image they name."""
        digest = hashlib.sha256(json.dumps(self.entries, sort_keys=True).encode())
        for entry in self.entries:
            names = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
            for name in names:
                file = self.path / name
                digest.update(file.read_bytes() if file.is_file() else b"missing")
        return digest.hexdigest()[:16]
