"""The full-context outputs that all cells of a model, its data and a seed share."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from topi.bench.results import files
from topi.bench.results.links import check_links
from topi.bench.results.mend import clear_up
from topi.bench.results.records import FullRun
from topi.bench.results.sound_files import is_sound_image
from topi.errors import ToPiError


@dataclass(frozen=True)
class FullOutputs:
    """The full-context outputs of one model on one data set with one seed."""

    path: Path

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.path.name

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, once, or again if it is damaged; clear up after killed processes."""
        with self.claim():
            clear_up(self.path)
            try:
                files.read_json(self.path / "manifest.json", FullRun)
            except ToPiError:
                files.write_json(self.path / "manifest.json", dict(manifest))

    @contextmanager
    def claim(self) -> Iterator[None]:
        """One process computes at a time; others wait and find the output there."""
        with files.lock(self.path / ".lock", wait=True):
            yield

    def image(self, sample: str) -> Image.Image | None:
        """The output, or None if it is not there yet."""
        path = self.image_file(sample)
        return files.read_image(path) if os.path.lexists(path) else None

    def has(self, sample: str) -> bool:
        """Whether the output and the references of a sample are there and sound."""
        references = self.reference_files(sample)
        return bool(references) and all(map(is_sound_image, [self.image_file(sample), *references]))

    def set_aside(self, sample: str) -> None:
        """Take a damaged output out of the way."""
        path = self.image_file(sample)
        check_links(path.parent)
        path.replace(path.with_suffix(".damaged"))

    def image_file(self, sample: str) -> Path:
        """Where the output of a sample is, or will be."""
        return self.path / "images" / f"{files.checked_name(sample)}.png"

    def references(self, sample: str) -> list[Image.Image]:
        """The references of a sample that is there."""
        return [files.read_image(path) for path in self.reference_files(sample)]

    def reference_files(self, sample: str) -> list[Path]:
        """Where the references of a sample are, in their order."""
        return files.numbered(self.path / "references", files.checked_name(sample))

    def add(self, sample: str, image: Image.Image, references: Iterable[Image.Image]) -> None:
        """Keep an output, its references first."""
        files.checked_name(sample)
        for number, reference in enumerate(references):
            files.write_image(self.path / "references" / f"{sample}_{number}.png", reference)
        files.write_image(self.path / "images" / f"{sample}.png", image)
