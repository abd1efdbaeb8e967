"""W&B as a mirror of one cell: config, rows, kept tokens, summary, table, pictures, artifacts.

The store is the record. Whatever goes wrong here is a warning and never ends a cell.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
from PIL import Image

from topi.bench.data.pictures import draw_mask, side_by_side
from topi.bench.results import Cell, Store, files
from topi.bench.results.calibration_file import read_calibration
from topi.bench.results.masks import read_anchors
from topi.bench.results.statistics import speedup
from topi.bench.tracking.sync import runs_of, wandb_mode
from topi.bench.tracking.wandb_log import read_log
from topi.errors import ToPiError

log = logging.getLogger(__name__)

SCORES = ("psnr", "ssim", "lpips", "keep_ratio", "flop_speedup", "seconds")
PATIENCE = 30
"""Seconds to wait for W&B's last words on disk."""
KEPT = {0: "dropped", 1: "kept"}
"""What the values of a mask mean."""
NEAREST = Image.Resampling.NEAREST
TAG = 64
"""Characters that W&B allows."""
PLACES = {
    "WANDB_DIR": "",
    "WANDB_DATA_DIR": "data",
    "WANDB_CACHE_DIR": "cache",
    "WANDB_CONFIG_DIR": "config",
    "WANDB_ARTIFACT_DIR": "artifacts",
}
"""W&B writes to the user's home unless told otherwise."""


class Mirror:
    """One W&B run for one cell, with the cell's key as its id.

    Its steps are the indices of the samples in the data. A cell that is resumed continues its run:
    what is logged already is not logged again, and what a killed process could not hand to W&B any
    more is logged now.

    Args:
        store: where the cell is.
        cell: with its manifest written.
        mode: "offline" needs neither login nor network; "online"; "none" does nothing. The
            environment variable WANDB_MODE goes before it, see `wandb_mode`.
        project: of W&B.
        pictures: samples in the picture grid.
    """

    def __init__(
        self, store: Store, cell: Cell, mode: str, project: str = "topi", pictures: int = 8
    ) -> None:
        self.store, self.cell = store, cell
        self.mode, self.project, self.pictures = wandb_mode(mode), project, pictures
        self.run: Any = None
        self.logged: set[int] = set()  # steps

    def __enter__(self) -> Self:
        if self.mode != "none":
            self._attempt(self._start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.run is not None and error is None:
            self._attempt(self._summarise)
        if self.run is not None:
            self._attempt(lambda: self._finish(int(error is not None)))

    def row(self, row: Mapping[str, Any]) -> None:
        """Log a row."""
        scores = {name: row[name] for name in SCORES if row.get(name) is not None}
        self._log(scores, row["index"])

    def _log(self, content: Mapping[str, Any], step: int) -> None:
        if self.run is not None and step not in self.logged:
            self._attempt(lambda: self.run.log(content, step=step))
            self.logged.add(step)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            log.warning("W&B is left out from here on (%s); the store has everything", error)
            self.run = None

    def _start(self) -> None:
        folder = (self.store.root / "wandb").resolve()
        for variable, place in PLACES.items():
            os.environ.setdefault(variable, str(folder / place))
            Path(os.environ[variable]).mkdir(parents=True, exist_ok=True)
        import wandb

        manifest = self.cell.manifest
        self.run = wandb.init(
            id=self.cell.key,
            name=manifest["label"],
            project=self.project,
            group=manifest.get("experiment") or manifest["model"],
            tags=[manifest["model"], manifest["method"], manifest["device"]["name"][:TAG]],
            config=manifest,
            mode=self.mode,
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                x_disable_stats=True,
                console="off",
                disable_git=True,
                init_timeout=60,
                x_transaction_log_flush_interval=1.0,  # seconds; a killed process loses no more
            ),
        )
        self.run.define_metric("kept/step", hidden=True)
        self.run.define_metric("kept/*", step_metric="kept/step")
        self.logged = self._steps()
        for row in self.cell.rows:
            self.row(row)

    def _finish(self, code: int) -> None:
        """End the run, and wait until its end is on disk: W&B writes on after it says it is done.

        Who resumes the cell at once would find steps missing, and log them a second time.
        """
        self.run.finish(exit_code=code)
        if self.mode == "offline":
            folder, deadline = Path(self.run.dir).parent, time.monotonic() + PATIENCE
            while read_log(folder).exit is None and time.monotonic() < deadline:
                time.sleep(0.05)

    def _steps(self) -> set[int]:
        """The steps that earlier attempts logged."""
        if self.mode == "online":
            return set(range(self.run.step))
        steps: set[int] = set()
        for folder in runs_of(self.store, self.cell.key):
            try:
                steps.update(read_log(folder).steps)
            except Exception as error:  # of its format, which is W&B's own business
                log.warning("%s cannot be read (%r); its rows are logged again", folder, error)
        return steps

    def _summarise(self) -> None:
        import wandb

        rows, count = pd.DataFrame(self.cell.rows), self.cell.manifest["count"]
        for step, kept in enumerate(kept_curve(self.cell)):
            self._log({"kept/step": step, "kept/keep_ratio": kept}, count + 1 + step)
        pictures = [
            wandb.Image(self._picture(name), caption=f"{name}: {text}")
            for name, text in rows[["sample", "instruction"]].head(self.pictures).values
        ]
        table = wandb.Table(columns=list(rows.columns), data=rows.astype(object).values.tolist())
        last = count + 1 + self.cell.manifest["steps"]
        self._log({"samples": table, "pictures": pictures, "masks": self._masks(rows)}, last)
        self._keep_files()
        self.run.summary.update(summary(rows, pd.DataFrame(self.cell.latency)))

    def _keep_files(self) -> None:
        """The rows, and the calibrations of these weights, as artifacts."""
        import wandb

        results = wandb.Artifact(f"results-{self.cell.key}", type="results")
        for name in ("manifest.json", "rows.jsonl", "latency.jsonl"):
            if (path := self.cell.path / name).is_file():
                results.add_file(str(path))
        self.run.log_artifact(results)
        for path in calibrations(self.store, self.cell.manifest):
            calibration = wandb.Artifact(artifact_name(path), type="calibration")
            calibration.add_file(str(path))
            self.run.log_artifact(calibration)

    def _masks(self, rows: pd.DataFrame) -> Any:
        """A table of pictures: what the last anchor kept lies over the reference as a mask."""
        import wandb

        table = wandb.Table(columns=["sample", "instruction", "reference", "full", "output"])
        full = self.store.full(self.cell.manifest["full_key"])
        classes = wandb.Classes([{"id": i, "name": name} for i, name in KEPT.items()])
        for sample, instruction in rows[["sample", "instruction"]].head(self.pictures).values:
            reference, masks = full.references(sample)[0], None
            with suppress(IndexError):  # no masks
                anchors = read_anchors(self.cell.path / "masks" / f"{sample}.json")
                kept = Image.fromarray(anchors[-1].kept[0]).resize(reference.size, NEAREST)
                data = np.asarray(kept).astype(np.uint8)
                masks = {"kept": {"mask_data": data, "class_labels": KEPT}}
            output = files.read_image(self.cell.path / "images" / f"{sample}.png")
            pictures = [wandb.Image(image) for image in (full.image(sample), output)]
            marked = wandb.Image(reference, masks=masks, classes=classes)
            table.add_data(sample, instruction, marked, *pictures)
        return table

    def _picture(self, sample: str) -> Image.Image:
        """reference | full | this cell | the tokens kept at the last anchor."""
        full = self.store.full(self.cell.manifest["full_key"])
        references = full.references(sample)
        images = [
            *references,
            full.image(sample),
            files.read_image(self.cell.path / "images" / f"{sample}.png"),
        ]
        with suppress(IndexError):  # no masks
            anchors = read_anchors(self.cell.path / "masks" / f"{sample}.json")
            images += [draw_mask(*pair) for pair in zip(references, anchors[-1].kept, strict=True)]
        return side_by_side(images)


def calibrations(store: Store, manifest: Mapping[str, Any]) -> list[Path]:
    """The calibration that a cell names, and those in its store that are of its weights."""
    paths = sorted((store.root / "calibration").glob("*.json"))
    if named := manifest["config"].get("layers", {}).get("file"):
        paths.append(Path(named))  # whoever wrote the manifest, only a calibration is uploaded
    return [path for path in paths if _weights(path) == manifest["weights"]]


def artifact_name(path: Path) -> str:
    """What W&B calls a calibration; with a hash, as files in two folders may have one name."""
    allowed = re.sub(r"[^\w.-]+", "_", path.stem, flags=re.ASCII)[:80]
    return f"calibration-{allowed}-{sha256(path.read_bytes()).hexdigest()[:8]}"


def _weights(path: Path) -> str | None:
    try:
        return read_calibration(path).origin.get("weights")
    except ToPiError:
        return None


def kept_curve(cell: Cell) -> list[float]:
    """The share of reference tokens that each denoising step of the pipeline sees [steps].

    A mean over the samples, of the conditional branch: all tokens up to the first anchor and at
    every anchor, between them what the last anchor kept.
    """
    steps = cell.manifest["steps"]
    curves = []
    for row in cell.rows:
        curve = [1.0] * steps
        anchors = read_anchors(cell.path / "masks" / f"{row['sample']}.json")
        ratios = {anchor.step: anchor.keep_ratio for anchor in anchors if anchor.branch == "cond"}
        now = 1.0
        for step in range(steps):
            now = ratios.get(step, now)
            curve[step] = 1.0 if step in ratios else now
        curves.append(curve)
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def summary(rows: pd.DataFrame, latency: pd.DataFrame) -> dict[str, float]:
    """Means over the samples, finite values only, of all and of each category; the speed-up."""
    finite = rows[[name for name in SCORES if name in rows]].astype(float)
    finite = finite.mask(finite.abs() == float("inf"))
    groups = {"mean": finite, **dict(list(finite.groupby(rows["category"])))}
    result = {
        f"{group}/{name}": value
        for group, scores in groups.items()
        for name, value in scores.mean().items()
        if pd.notna(value)
    }
    if not latency.empty:
        result["speedup"] = speedup(latency).value
    return {**result, "n": len(rows), "identical": int((rows["psnr"] == float("inf")).sum())}
