"""What `topi bench` and `topi probe` leave on disk has one form: a manifest, and rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from topi.bench.results import files
from topi.bench.results.mend import mend_manifest


@dataclass(frozen=True)
class StudyFolder:
    """The folder of one study; reading it needs no torch.

    A subclass says what its manifest and its rows are (`MANIFEST`, `ROW`), the number of that
    format (`SCHEMA`), and what to do about a damaged file (`AGAIN`).
    """

    path: Path
    MANIFEST: ClassVar[Any]
    ROW: ClassVar[Any]
    SCHEMA: ClassVar[int]
    AGAIN: ClassVar[str]

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.path.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was run: the model, its weights, and the settings of the study.

        Raises:
            ToPiError: it is damaged or of another schema.
        """
        content = files.read_json(self.path / "manifest.json", self.MANIFEST, self.AGAIN)
        return {name: value for name, value in content.items() if name != "schema"}

    @property
    def rows_file(self) -> Path:
        """Where the rows are appended."""
        return self.path / "rows.jsonl"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows in the order in which they came."""
        return files.read_lines(self.rows_file, self.ROW)

    def lock(self) -> AbstractContextManager[bool]:
        """Yields whether this process may write."""
        return files.lock(self.path / ".lock")

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest unless it is there; what is damaged is set aside."""
        if mend_manifest(self.path, self.MANIFEST) is None:
            self.write_manifest(manifest)
        self.__dict__.pop("manifest", None)  # not cached from before

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        files.write_json(self.path / "manifest.json", {"schema": self.SCHEMA, **manifest})
        self.__dict__.pop("manifest", None)
