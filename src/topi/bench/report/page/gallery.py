"""The pictures and masks of a store, for a few samples per category."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pandas as pd
from PIL import Image

from topi.bench.report.paper.artefacts import OURS
from topi.bench.report.tables.columns import categories_of, in_order
from topi.bench.results.files import read_image
from topi.bench.results.masks import Anchor, read_anchors
from topi.bench.results.mend import pictured
from topi.bench.results.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """One sample with all there is to see of it; `outputs`, `anchors`, `psnr` go by label."""

    sample: str
    category: str
    instruction: str
    references: tuple[Image.Image, ...]
    full: Image.Image
    outputs: dict[str, Image.Image] = field(default_factory=dict)
    anchors: dict[str, list[Anchor]] = field(default_factory=dict)
    psnr: dict[str, float] = field(default_factory=dict)


def draw_difference(output: Image.Image, full: Image.Image, gain: float = 4.0) -> Image.Image:
    """Absolute difference of two images, `gain` times as bright: black where nothing was lost."""
    difference = np.abs(_floats(output) - _floats(full))
    return Image.fromarray(np.clip(gain * difference, 0, 255).astype(np.uint8))


def on_curve(label: str) -> bool:
    """True if the label varies only how much is kept."""
    return all(word.startswith(("tau=", "ratio=")) for word in label.split()[1:])


def shown_labels(rows: pd.DataFrame, limit: int = 5) -> list[str]:
    """The labels a grid has room for: all up to `limit`, else one of each method.

    A method is shown with its default setting, ToPi with `OURS`. Without that setting, it is shown
    with the middle one by speed of those that vary only how much is kept. Ablations and stacks with
    a cache are left out; a cache alone comes after the methods.
    """
    rows = in_order(rows[rows["method"] != "full"])
    labels = list(rows["label"].unique())
    if len(labels) <= limit:
        return labels
    methods, caches = [], []
    for method, group in rows.groupby("method", sort=False):
        speeds = group.groupby("label", sort=False)["flop_speedup"].mean().sort_values()
        default, plain = OURS if method == "topi" else method, list(filter(on_curve, speeds.index))
        if default in plain:
            methods.append(default)
        elif plain:
            methods.append(plain[len(plain) // 2])
        caches += [label for label in speeds.index if label == f"full cache={method}"]
    return methods + caches


def gather(store: Store, rows: pd.DataFrame, per_category: int = 2) -> list[Picture]:
    """The first `per_category` samples of each category that the most shown labels have done.

    Only samples whose pictures are there and sound: a store that is committed holds few of them.

    Args:
        store: where the pictures are.
        rows: its rows of one model.
        per_category: how many samples to show.
    """
    labels = shown_labels(rows)
    rows = rows[rows["label"].isin(labels)].drop_duplicates(["label", "sample"])
    cells = {key: store.cell(key).path for key in rows["cell"].unique()}
    there = [
        (cells[row.cell] / "images" / f"{row.sample}.png").is_file() for row in rows.itertuples()
    ]
    rows = rows[np.array(there, dtype=bool)]
    pictures = []
    for category in categories_of(rows):
        inside = rows[rows["category"] == category].sort_values("index", kind="stable")
        done = inside["sample"].value_counts(sort=False)
        groups = (
            inside[inside["sample"] == sample].set_index("label").reindex(labels).dropna(how="all")
            for sample in done.index[done == done.max()]
        )
        whole = (_picture(store, group) for group in groups if _whole(store, group))
        pictures += islice(whole, per_category)
    return pictures


def _whole(store: Store, group: pd.DataFrame) -> bool:
    """Whether every picture of a sample is there and sound."""
    sample = group["sample"].iloc[0]
    cells = [store.cell(key) for key in group["cell"]]
    full = store.full(cells[0].manifest["full_key"])
    return full.has(sample) and all(pictured(cell.path, sample) for cell in cells)


def _picture(store: Store, group: pd.DataFrame) -> Picture:
    """One sample; `group` holds its rows by label."""
    sample = group["sample"].iloc[0]
    cells = {label: store.cell(key) for label, key in group["cell"].items()}
    full = store.full(next(iter(cells.values())).manifest["full_key"])
    masks = {label: cell.path / "masks" / f"{sample}.json" for label, cell in cells.items()}
    anchors = {label: read_anchors(path) for label, path in masks.items()}
    return Picture(
        sample=sample,
        category=group["category"].iloc[0],
        instruction=group["instruction"].iloc[0],
        references=tuple(full.references(sample)),
        full=read_image(full.image_file(sample)),
        outputs={
            label: read_image(cell.path / "images" / f"{sample}.png")
            for label, cell in cells.items()
        },
        anchors={label: found for label, found in anchors.items() if found},
        psnr=group["psnr"].to_dict(),
    )


def keep_ratios(store: Store, rows: pd.DataFrame) -> pd.DataFrame:
    """Share of reference tokens that each denoising step computes, for the rows with masks.

    An anchor's mask holds from the step after it until the next anchor; anchors and the steps
    before the first one run on the full context. Branches are lines of their own. Samples with
    skipped calls are left out: which steps a cache skipped is not known here.

    Returns:
        Columns `method, label, sample, step, keep_ratio`.
    """
    lines = []
    for row in in_order(rows).itertuples():
        path = store.cell(row.cell).path / "masks" / f"{row.sample}.json"
        anchors = [] if getattr(row, "skipped_calls", 0) > 0 else read_anchors(path)
        branches = {anchor.branch for anchor in anchors}
        for branch in sorted(branches):
            at = {anchor.step: anchor.keep_ratio for anchor in anchors if anchor.branch == branch}
            held = 1.0
            for step in range(row.calls // len(branches)):
                ratio = 1.0 if step in at else held
                lines.append((row.method, row.label, row.sample, step, ratio))
                held = at.get(step, held)
    return pd.DataFrame(lines, columns=["method", "label", "sample", "step", "keep_ratio"])


def _floats(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=float)
