"""Quality of an editor: its images against the true edits of held-out samples."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from topi.bench.data import EditSample
from topi.bench.editors.editor import Editor
from topi.bench.runs import metrics
from topi.bench.runs.resume import Row, collect_batches

CAP = 10 * math.log10(255**2 / 1e-3)
"""PSNR in dB of equal pictures. JSON has no infinity."""


def psnr(image: np.ndarray, target: np.ndarray, where: np.ndarray | None = None) -> float:
    """PSNR in dB of uint8 images [H, W, 3], over the pixels `where` [H, W] if given."""
    pixels = (torch.from_numpy(np.array(a if where is None else a[where])) for a in (image, target))
    return min(metrics.psnr(*pixels), CAP)


def compare(sample: EditSample, edited: Image.Image) -> Row:
    """PSNR in dB of the edited image (`psnr`) and of the reference (`copy_psnr`) to the true edit.

    `*_changed` is over the pixels that the true edit changes, `*_unchanged` over the others; None
    where there are no such pixels.
    """
    target, reference, image = (
        np.asarray(i.convert("RGB")) for i in (sample.target, sample.copy, edited)
    )
    row: Row = {}
    regions = {"": None, "_changed": sample.changed, "_unchanged": ~sample.changed}
    for suffix, where in regions.items():
        empty = where is not None and not where.any()
        row[f"psnr{suffix}"] = None if empty else psnr(image, target, where)
        row[f"copy_psnr{suffix}"] = None if empty else psnr(reference, target, where)
    return row


def edit_batch(editor: Editor, samples: Sequence[EditSample], seed: int) -> list[Image.Image]:
    """The images that `editor.edit` gives one by one, in one pipeline call where possible.

    It is possible for Kontext with references of one size. The Qwen pipelines take one picture a
    call.
    """
    sizes = {(sample.size, *(image.size for image in sample.references)) for sample in samples}
    if editor.config.kind != "kontext" or len(sizes) > 1:
        return [editor.edit(sample, seed) for sample in samples]
    pixels = np.stack([np.asarray(editor.references(s)[0]) for s in samples])
    arguments = editor.arguments(samples[0], seed) | {
        "image": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255,
        "prompt": [s.instruction for s in samples],
        "generator": [torch.Generator().manual_seed(seed) for _ in samples],
    }
    return editor.pipe(**arguments).images


def held_out_rows(
    editor: Editor,
    samples: Sequence[EditSample],
    seed: int = 0,
    batch: int = 8,
    made: Callable[[int, Image.Image], bool | None] = lambda index, image: None,
    path: Path | None = None,
) -> list[Row]:
    """`compare` for every sample, edited `batch` at a time.

    Args:
        made: (index of the sample, edited image) -> True if the edit is the one that was asked for;
            None where no check can decide.
        path: a file that keeps the finished rows, so that a killed run continues there.
    """

    def rows_of(indices: Sequence[int], chosen: Sequence[EditSample]) -> Iterator[Row]:
        images = edit_batch(editor, chosen, seed)
        for index, sample, image in zip(indices, chosen, images, strict=True):
            yield compare(sample, image) | {"made": made(index, image)}

    return collect_batches(samples, rows_of, f"{editor.name}: held-out edits", path, batch)
