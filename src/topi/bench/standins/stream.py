"""Training batches as a function of the step: a resumed run sees what it would have seen."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from topi.bench.data import CATEGORIES
from topi.bench.data.mini_edit import draw_pair, train_task
from topi.bench.data.mini_edit_plus import TASKS, draw_plus, train_plus_task
from topi.bench.data.scene import random_scene
from topi.bench.data.tasks import to_uint8

Size = tuple[int, int]
STRIDE = 1 << 20
"""More than a batch, so that no two samples of one come to be the same."""


@dataclass
class Batch:
    """Images uint8 [B, H, W, 3]; the references may differ in size from the edited images."""

    references: tuple[Tensor, ...]
    edited: Tensor
    prompts: list[str]
    categories: list[str]
    name: str = ""
    """Of a batch for validation, if it is not the first."""


@dataclass(frozen=True)
class Draw:
    """What to draw.

    Args:
        sizes: (height, width) in pixels, or (height, width, height and width of the reference);
            each batch is of one of them, chosen by its step.
        batch: samples per batch at the size of the first entry; larger images make smaller batches.
        shift: references are shifted by up to so many pixels in each direction.
        scale: references are scaled by a factor between 1 / scale and scale.
        enlarge: draw at the size, then enlarge so many times: objects span more tokens.
        focus: share of samples drawn among the tasks of `focus_on` alone, by their shares.
        focus_on: names of tasks, of MiniEdit and of MiniEditPlus; where it names none of those
            with as many references as the batch, all of them are drawn.
        beside: share of batches with an unrelated scene on the right of each reference, as an
            editor of one picture gets several references.
        plus: share of batches with two references.
        reference_size: (height, width) of a picture -> that at which the pipeline sees it.
        seed: of everything random here.
    """

    sizes: Sequence[Sequence[int]]
    batch: int
    reference_size: Callable[[Size], Size]
    shift: int = 0
    scale: float = 1.0
    enlarge: int = 1
    focus: float = 0.0
    focus_on: Sequence[str] = ()
    beside: float = 0.0
    plus: float = 0.0
    seed: int = 0

    def shape(self, number: int) -> tuple[Size, Size]:
        """Sizes of the target and of the picture to edit, before either is enlarged."""
        size = tuple(self.sizes[number])
        return size[:2], size[2:] or size[:2]


def draw_batch(draw: Draw, step: int, offset: int = 0) -> Batch:
    """The batch of a step; `offset` sets apart the phases of a run."""
    rng = np.random.default_rng([draw.seed, offset, step])
    size, shown_size = draw.shape(rng.integers(len(draw.sizes)))
    pixels = draw.sizes[0][0] * draw.sizes[0][1]
    count = max(1, round(draw.batch * pixels / (size[0] * size[1])))
    first = int(rng.integers(1 << 40))
    several = rng.random() < draw.plus
    indices = range(first, first + count)
    tasks = [task for task in draw.focus_on if (task in TASKS) == several]
    if draw.focus and tasks:
        focused = rng.random(count) < draw.focus
        pairs = zip(indices, focused, strict=True)
        task_of = train_plus_task if several else train_task
        indices = [index_among(tasks, k, task_of) if f else k for k, f in pairs]
    rows = [_draw(several, index, size) for index in indices]
    beside = draw.beside and rng.random() < draw.beside
    size, shown_size = (enlarged(s, draw.enlarge) for s in (size, shown_size))
    references, edited, prompts, categories = [], [], [], []
    for before, after, prompt, category in rows:
        edited.append(resized(after, size))
        prompts.append(prompt)
        categories.append(category)
        moved = [displaced(b, draw.shift, draw.scale, rng) for b in before]
        shown = [resized(image, draw.reference_size(shown_size)) for image in moved]
        if beside:
            shown[0] = beside_another(shown[0], rng)
        references.append(shown)
    return Batch(
        tuple(stacked(images) for images in zip(*references, strict=True)),
        stacked(edited),
        prompts,
        categories,
    )


def beside_another(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[H, 2 W, 3]: the image [H, W, 3], and an unrelated scene on its right."""
    size = image.shape[:2]
    return np.concatenate([image, to_uint8(random_scene(rng, size).render(size))], axis=1)


def index_among(tasks: Sequence[str], index: int, task_of: Callable[[int], str]) -> int:
    """The first index from this one on, in strides, whose training sample is of one of `tasks`."""
    while task_of(index) not in tasks:
        index += STRIDE
    return index


def _draw(
    several: bool, index: int, size: Size
) -> tuple[tuple[np.ndarray, ...], np.ndarray, str, str]:
    if several:
        first, second, after, prompt, category, _ = draw_plus("train", index, size)
        return (first, second), after, prompt, category
    before, after, prompt, category, _ = draw_pair("train", index, size)
    return (before,), after, prompt, category


def enlarged(size: Size, factor: int) -> Size:
    """(height, width), `factor` times."""
    return size[0] * factor, size[1] * factor


def stacked(images: Sequence[np.ndarray]) -> Tensor:
    """Images [H, W, 3] to one tensor [B, H, W, 3]."""
    return torch.from_numpy(np.stack(images))


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """Bicubic; the same array where the size is right already."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def displaced(image: np.ndarray, shift: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """The image moved and scaled at random, edges continued."""
    if shift == 0 and scale == 1:
        return image
    height, width = image.shape[:2]
    factor = scale ** rng.uniform(-1, 1)
    rows, columns = round(height / factor), round(width / factor)  # seen of the image
    margin = shift + max(0, rows - height, columns - width)
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    top = margin + (height - rows) // 2 + int(rng.integers(-shift, shift + 1))
    left = margin + (width - columns) // 2 + int(rng.integers(-shift, shift + 1))
    return resized(wide[top : top + rows, left : left + columns], (height, width))


class BatchStream(IterableDataset):
    """The batches of a phase from step `start` on, without end."""

    def __init__(self, draw: Draw, offset: int, start: int):
        self.draw, self.offset, self.start = draw, offset, start

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        index, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.start + index
        while True:
            yield draw_batch(self.draw, step, self.offset)
            step += stride


def loader(draw: Draw, offset: int, start: int, workers: int) -> DataLoader:
    """Batches in the order of their steps, drawn by `workers` processes (0: by this one)."""
    stream = BatchStream(draw, offset, start)
    return DataLoader(
        stream, batch_size=None, num_workers=workers, prefetch_factor=6 if workers else None
    )


def validation_batches(draw: Draw, count: int = 24) -> list[Batch]:
    """Calibration samples: of the first size, by category; of the last; with two references.

    The second and third are half as many, and there if the phase has further sizes and batches
    with two references. Unrelated scenes stand beside references if they do in most of the
    training.
    """
    batches = [_held_out(draw, 0, count)]
    if len({draw.shape(k) for k in range(len(draw.sizes))}) > 1:
        batches.append(_held_out(draw, len(draw.sizes) - 1, count // 2, "other_shape"))
    if draw.plus:
        batches.append(_held_out(draw, 0, count // 2, "two_references"))
    return batches


def _held_out(draw: Draw, number: int, count: int, name: str = "") -> Batch:
    size, shown_size = draw.shape(number)
    if name == "two_references":
        samples = [draw_plus("calibration", k, size) for k in range(count)]
    else:
        samples = [draw_pair("calibration", k, size) for k in range(count)]
        samples.sort(key=lambda sample: CATEGORIES.index(sample[3]))
    *before, after, prompts, categories, _ = zip(*samples, strict=True)
    size, shown_size = (enlarged(s, draw.enlarge) for s in (size, shown_size))
    seen = draw.reference_size(shown_size)
    shown = [[resized(image, seen) for image in images] for images in before]
    if draw.beside > 0.5:
        rng = np.random.default_rng(draw.seed)
        shown = [[beside_another(image, rng) for image in images] for images in shown]
    edited = stacked([resized(image, size) for image in after])
    return Batch(tuple(map(stacked, shown)), edited, list(prompts), list(categories), name)
