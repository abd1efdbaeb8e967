"""What `topi probe` leaves on disk: how a model attends to its references (Figs. 1-3 and 7).

    probe/<model>-<key>/manifest.json   model, weights, data, layers, tau, ...; written first
                        rows.jsonl      one line per sample, appended as they come
                        maps/<sample>.npz, references/<sample>_<i>.png

The arrays and pictures of a sample are on disk before its row. In a row, `branches` are those of
classifier-free guidance, `grids` the rows and columns of each reference's tokens. In an .npz (no
pickles):

    mass            float32 [branches, steps, layers]  attention that a target token gives to all
                    references together, sum_j S_j of Eq. 3, in [0, 1]
    attention       float16 [steps, |C|]   |C| S_j, mean over all layers and branches: its mean over
                    tokens is the total mass, so 1e-4 and less are kept as well as 0.5
    representative  float16 [steps, |C|]   the same over the representative layers
    influence       float16 [steps, |C|]   I_j of Eq. 9, mean over branches, each scaled to mean 1
    kept            bool    [steps, |C|]   tokens that Eq. 10 would keep by `influence` at `tau`
    rank_attention, rank_influence  float32 [steps]   Spearman correlation with step 0 over tokens
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from topi.bench.results import files
from topi.bench.results.mend import mend_lines
from topi.bench.results.packed import store_folder
from topi.bench.results.records import ProbeManifest, ProbeRow
from topi.bench.results.sound_files import is_sound_archive, is_sound_image
from topi.bench.results.study_folder import StudyFolder
from topi.errors import ToPiError

log = logging.getLogger(__name__)

ARRAYS = ("mass", "attention", "representative", "influence", "kept")
ARRAYS += ("rank_attention", "rank_influence")
ABOUT = ("sample", "category", "task")


@dataclass(frozen=True)
class Maps:
    """The arrays of one sample; shapes and units are in the docstring of this module."""

    mass: np.ndarray
    attention: np.ndarray
    representative: np.ndarray
    influence: np.ndarray
    kept: np.ndarray
    rank_attention: np.ndarray
    rank_influence: np.ndarray


@dataclass(frozen=True)
class ProbeRun(StudyFolder):
    """One probe of a model on some data."""

    MANIFEST, ROW = ProbeManifest, ProbeRow
    SCHEMA = 1
    AGAIN = "probe again, which sets it aside."

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished samples, in the order of the data."""
        return sorted(super().rows, key=lambda row: row["index"])

    @property
    def complete(self) -> bool:
        """True if all samples are there with sound arrays; an export has few references."""
        samples = {row["sample"] for row in self.rows if self._sound(row["sample"])}
        return len(samples) == self.manifest["count"]

    def _sound(self, sample: str) -> bool:
        """Whether the arrays of a sample are there, and they and its references sound."""
        pictures = self._references(sample)
        arrays = is_sound_archive(self._maps_file(sample))
        return arrays and all(map(is_sound_image, pictures))

    def _references(self, sample: str) -> list[Path]:
        return files.numbered(self.path / "references", sample)

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, once; set aside what is damaged, and rows without sound arrays."""
        self.begin(manifest)

        def identity(row: Mapping[str, Any]) -> str | None:
            sample = row["sample"]
            there = len(self._references(sample)) == len(row["grids"])
            return sample if there and self._sound(sample) else None

        mend_lines(self.path, self.rows_file.name, ProbeRow, identity)

    def add(self, sample: str, arrays: Mapping[str, np.ndarray], references: list) -> None:
        """Keep the arrays and reference images of a sample; its row comes after."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: arrays[name] for name in ARRAYS})
        files.write(self._maps_file(sample), buffer.getvalue())
        for number, reference in enumerate(references):
            files.write_image(self.path / "references" / f"{sample}_{number}.png", reference)

    def maps(self, sample: str) -> Maps:
        """The arrays of a finished sample, in float32.

        Raises:
            ToPiError: the file is missing or damaged.
        """
        path = self._maps_file(sample)
        try:
            with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as held:
                arrays = {name: held[name] for name in ARRAYS}
        except Exception as error:  # a torn zip raises whatever its torn part suggests
            raise ToPiError(f"{path} is damaged. To repair: {self.AGAIN}") from error
        return Maps(**{k: a if a.dtype == bool else a.astype("f4") for k, a in arrays.items()})

    def references(self, sample: str) -> list[Image.Image]:
        """The reference images of a finished sample."""
        grids = next(row["grids"] for row in self.rows if row["sample"] == sample)
        folder = self.path / "references"
        return [files.read_image(folder / f"{sample}_{i}.png") for i in range(len(grids))]

    @cached_property
    def mass(self) -> pd.DataFrame:
        """`ABOUT`, branch, step, layer, mass: one line each (Figs. 1 and 3)."""
        return self._frame("mass", ("branch", "step", "layer"))

    def rank_correlation(self, score: str = "attention") -> pd.DataFrame:
        """`ABOUT`, step, correlation: of the tokens' order with that at step 0 (Fig. 2).

        Args:
            score: "attention" (mean over all layers) or "influence" (Eq. 9).
        """
        frame = self._frame(f"rank_{score}", ("step",))
        return frame.rename(columns={f"rank_{score}": "correlation"})

    def _frame(self, name: str, axes: tuple[str, ...]) -> pd.DataFrame:
        parts = []
        for row in self.rows:
            values = getattr(self.maps(row["sample"]), name)
            index = np.indices(values.shape).reshape(values.ndim, -1)
            part = pd.DataFrame(dict(zip(axes, index, strict=True)) | {name: values.ravel()})
            if "branch" in axes:
                part["branch"] = np.take(row["branches"], part["branch"])
            parts.append(part.assign(**{column: row[column] for column in ABOUT}))
        frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        return frame.reindex(columns=[*ABOUT, *axes, name])

    def _maps_file(self, sample: str) -> Path:
        return self.path / "maps" / f"{sample}.npz"


def probe_run(store: Path | str, key: str) -> ProbeRun:
    """The probe of this key, there or not."""
    return ProbeRun(store_folder(store) / "probe" / key)


def load_probes(store: Path | str, weights: Mapping[str, str] | None = None) -> list[ProbeRun]:
    """The latest complete probe of each model, by its name; damaged ones are left out.

    Args:
        weights: model -> fingerprint of the weights of which it must be, if there is one.
    """
    runs = []
    for path in sorted(store_folder(store).glob("probe/*/manifest.json")):
        run = ProbeRun(path.parent)
        try:
            about = run.manifest
            known = (weights or {}).get(about["model"], about["weights"])
            if run.complete and about["weights"] == known:
                runs.append(run)
        except ToPiError as error:
            log.warning("left out: %s", error)
    runs.sort(key=lambda run: run.manifest["created"])
    latest = {run.manifest["model"]: run for run in runs}
    return [latest[name] for name in sorted(latest)]
