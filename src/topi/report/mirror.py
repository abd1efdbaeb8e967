"""W&B as a mirror of one cell: config, rows, summary, a table and a picture grid.

The store is the record. Whatever goes wrong here is a warning and never ends a cell.
"""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from PIL import Image

from topi.report.gallery import draw_mask, read_anchors, side_by_side
from topi.report.statistics import speedup
from topi.results import Cell, Store

log = logging.getLogger(__name__)

SCORES = ("psnr", "ssim", "lpips", "keep_ratio", "flop_speedup", "seconds")
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

    Args:
        store: where the cell is.
        cell: with its manifest written.
        mode: "offline" needs neither login nor network; "online"; "none" does nothing.
        project: of W&B.
        pictures: samples in the picture grid.
    """

    def __init__(
        self, store: Store, cell: Cell, mode: str, project: str = "topi", pictures: int = 8
    ) -> None:
        self.store, self.cell = store, cell
        self.mode, self.project, self.pictures = mode, project, pictures
        self.run: Any = None

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
            self._attempt(lambda: self.run.finish(exit_code=int(error is not None)))

    def row(self, row: Mapping[str, Any]) -> None:
        """A new row; its index in the data is W&B's step, so a resumed cell goes on counting."""
        if self.run is not None:
            scores = {name: row[name] for name in SCORES if row.get(name) is not None}
            self._attempt(lambda: self.run.log(scores, step=row["index"]))

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
            group=manifest["model"],
            tags=[manifest["method"]],
            config=manifest,
            mode=self.mode,
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True, x_disable_stats=True, console="off", disable_git=True
            ),
        )

    def _summarise(self) -> None:
        import wandb

        rows = pd.DataFrame(self.cell.rows)
        pictures = [
            wandb.Image(self._picture(name), caption=f"{name}: {text}")
            for name, text in rows[["sample", "instruction"]].head(self.pictures).values
        ]
        table = wandb.Table(columns=list(rows.columns), data=rows.astype(object).values.tolist())
        self.run.log({"samples": table, "pictures": pictures}, step=int(rows["index"].max()) + 1)
        self.run.summary.update(summary(rows, pd.DataFrame(self.cell.latency)))

    def _picture(self, sample: str) -> Image.Image:
        """reference | full | this cell | the tokens kept at the last anchor."""
        full = self.store.full(self.cell.manifest["full_key"])
        references = full.references(sample)
        images = [
            *references,
            full.image(sample),
            Image.open(self.cell.path / "images" / f"{sample}.png"),
        ]
        with suppress(FileNotFoundError):
            anchors = read_anchors(self.cell.path / "masks" / f"{sample}.json")
            images += [draw_mask(*pair) for pair in zip(references, anchors[-1].kept, strict=True)]
        return side_by_side(images)


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
