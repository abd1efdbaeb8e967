"""How well an editor edits: its images against the true edits of held-out samples."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from topi.bench.data import EditSample
from topi.bench.editors.editor import Editor
from topi.bench.io.escape import rich_markup
from topi.bench.results import files


def psnr(image: np.ndarray, target: np.ndarray, where: np.ndarray | None = None) -> float:
    """PSNR in dB of uint8 images [H, W, 3], over the pixels `where` [H, W] if given."""
    error = (image.astype(np.float64) - target) ** 2
    error = error.mean() if where is None else error[where].mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def compare(sample: EditSample, edited: Image.Image) -> dict[str, object]:
    """One row: the edited image, and the untouched reference, against the true edit.

    `*_changed` is over the pixels that the true edit changes, `*_unchanged` over the others; None
    where there are no such pixels.
    """
    target, reference, image = (
        np.asarray(i.convert("RGB")) for i in (sample.target, sample.copy, edited)
    )
    row: dict[str, object] = {"id": sample.id, "category": sample.category, "task": sample.task}
    regions = {"": None, "_changed": sample.changed, "_unchanged": ~sample.changed}
    for suffix, where in regions.items():
        empty = where is not None and not where.any()
        row[f"psnr{suffix}"] = None if empty else psnr(image, target, where)
        row[f"copy_psnr{suffix}"] = None if empty else psnr(reference, target, where)
    return row


def edit_batch(editor: Editor, samples: Sequence[EditSample], seed: int) -> list[Image.Image]:
    """The images that `editor.edit` would give one by one, in one pipeline call where it can be.

    That is on Kontext, with references of one size; the Qwen pipelines take one picture a call.
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
    samples: Iterable[EditSample],
    seed: int = 0,
    batch: int = 8,
    made: Callable[[int, Image.Image], bool | None] = lambda index, image: None,
    path: Path | None = None,
) -> list[dict[str, object]]:
    """`compare` for every sample, edited `batch` at a time.

    Args:
        made: (index of the sample, edited image) -> was the edit made that was asked for? None
            where that cannot be told.
        path: a file that keeps the finished rows, so that a killed run goes on there.
    """
    samples = list(samples)
    rows: list[dict[str, object]] = [] if path is None else files.resume_lines(path)
    starts = range(len(rows), len(samples), batch)
    for start in track(starts, rich_markup(f"{editor.name}: held-out edits")):
        chunk = samples[start : start + batch]
        images = edit_batch(editor, chunk, seed)
        for index, (sample, image) in enumerate(zip(chunk, images, strict=True), start):
            rows.append(compare(sample, image) | {"made": made(index, image)})
            if path is not None:
                files.append(path, rows[-1])
    return rows
