"""MiniEdit: procedural in-context edits in AnyEdit's four groups (arXiv 2411.15738, Table 13).

A sample is a pure function of (split, index, size). Evaluation and calibration splits cycle through
the categories and, within a category, through its sub-tasks, so any first n samples are stratified;
the training split draws them at random with the shares below. Version 1.0 is frozen: the hashes of
its held-out samples are in the manifest (see `topi.bench.data.manifest`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property

import numpy as np
from PIL import Image

from topi.bench.data import manifest
from topi.bench.data.drawing import Size
from topi.bench.data.sample import CATEGORIES, EditSample
from topi.bench.data.scene import random_scene
from topi.bench.data.tasks import EDITS, TASKS, Edit, resample, to_uint8

#: The splits differ in the seed, so they share no sample.
SPLITS = {"train": 1, "calibration": 2, "evaluation": 3}
COUNTS = {"train": 10_000_000, "calibration": 48, "evaluation": 512}
#: Shares of the training split: the tasks that a small model learns last are drawn more often.
TRAIN_SHARES = {
    "pan": 0.04,
    "zoom": 0.12,
    "rotate": 0.08,
    "resize": 0.09,
    "style": 0.03,
    "tone": 0.02,
    "background": 0.05,
    "weather": 0.02,
    "time_of_day": 0.015,
    "light": 0.01,
    "season": 0.025,
    "water": 0.02,
    "add": 0.12,
    "remove": 0.06,
    "replace": 0.11,
    "recolour": 0.07,
    "move": 0.12,
}
#: The (target size, reference size) that `size="mixed"` cycles through: odd token grids of 8-pixel
#: patches, and references of another size than the target. Three shapes are coprime with the four
#: categories and with the four or five sub-tasks, so each meets every shape.
SHAPES: tuple[tuple[Size, Size], ...] = (
    ((104, 168), (104, 168)),
    ((152, 104), (112, 80)),
    ((120, 120), (152, 152)),
)
ROUND = 4 * max(len(tasks) for tasks in TASKS.values())  # samples with every category and task
SMALLEST = 48  # pixels; objects of up to 44 pixels have to fit


def pixel_size(size: int | Sequence[int]) -> Size:
    """(height, width) of a side or a pair.

    Raises:
        ValueError: not one or two multiples of 8, or too small.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n % 8 == 0 for n in pair):
        raise ValueError(f"size={size} must be a multiple of 8, or [height, width] of such")
    if min(pair) < SMALLEST:
        raise ValueError(f"size={size} is too small; MiniEdit needs at least {SMALLEST} pixels")
    return pair


def draw_edit(split: str, index: int, size: int | Sequence[int]) -> tuple[Edit, str, str]:
    """A sample with all that is known about it, its category and its task."""
    rng = np.random.default_rng([SPLITS[split], index])
    if split == "train":
        task = _train_task(rng)
        category = next(c for c in CATEGORIES if task in TASKS[c])
    else:
        category = CATEGORIES[index % 4]
        task = TASKS[category][index // 4 % len(TASKS[category])]
    return EDITS[task](rng, pixel_size(size)), category, task


def train_task(index: int) -> str:
    """The task of a sample of the training split, without drawing it."""
    return _train_task(np.random.default_rng([SPLITS["train"], index]))


def _train_task(rng: np.random.Generator) -> str:
    return str(rng.choice(list(TRAIN_SHARES), p=list(TRAIN_SHARES.values())))


def draw_pair(
    split: str,
    index: int,
    size: int | Sequence[int],
    reference_size: int | Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray, str, str, str]:
    """(reference, edited) as uint8 [height, width, 3], instruction, category, task.

    Args:
        size: of the edited image and the reference, one side or (height, width).
        reference_size: of the reference, if it differs: the same view, resampled.
    """
    edit, category, task = draw_edit(split, index, size)
    before = _reference(edit, pixel_size(reference_size or size))
    return before, to_uint8(edit.after), edit.instruction, category, task


def _reference(edit: Edit, size: Size) -> np.ndarray:
    """uint8 [*size, 3]."""
    same = edit.before.shape[:2] == size
    return to_uint8(edit.before if same else resample(edit.before, size))


class MiniEdit:
    """The samples [0, count) of one split.

    Args:
        split: train, calibration or evaluation.
        size: of the target in pixels: a side, (height, width), or "mixed" for SHAPES in turn.
        count: all of the split, if not given.
        reference_size: of the reference, if it is not that of the target.
        references: how many each sample has, if more than `needed`: behind those come scenes that
            the instruction does not need, as large as the target. All else stays as it is, also the
            id, so that numbers pair across it, and a sample's scenes are among those of a larger
            number.

    Samples are checked against the manifest as they are drawn (ToPiError).

    Raises:
        ValueError: a setting out of range.
    """

    name = "mini_edit"
    needed = 1
    """References that an instruction speaks of."""

    def __init__(
        self,
        split: str = "evaluation",
        size: int | Sequence[int] | str = 128,
        count: int | None = None,
        reference_size: int | Sequence[int] | None = None,
        references: int | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; choose from {', '.join(SPLITS)}")
        if isinstance(size, str) and size != "mixed":
            raise ValueError(f'size={size!r} is unknown; give pixels, [height, width] or "mixed"')
        if size == "mixed" and reference_size is not None:
            raise ValueError('size="mixed" has reference sizes of its own; drop reference_size')
        self.split = split
        self.shapes = SHAPES if size == "mixed" else (_shape(size, reference_size),)
        self.key = f"{self.name}-{split}-{'mixed' if size == 'mixed' else label(*self.shapes[0])}"
        self.references = self.needed if references is None else references
        if self.references < self.needed:
            raise ValueError(
                f"references={references} is too few: {self.name} needs {self.needed} or more"
            )
        self.count = COUNTS[split] if count is None else count
        if not 0 < self.count <= COUNTS[split]:
            raise ValueError(f"count={count} must be between 1 and {COUNTS[split]}, all of {split}")

    @classmethod
    @cache
    def verify(cls) -> None:
        """Check a round of the frozen samples: whatever the size, it is the same generator.

        Raises:
            ToPiError: it draws other pixels than those that version 1.0 froze.
        """
        data = cls(count=ROUND)
        for index in range(ROUND):
            manifest.check(data.key, index, data.draw(index))

    def __len__(self) -> int:
        return self.count

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the samples; nothing is drawn."""
        return [self._id(index) for index in range(self.count)]

    def _id(self, index: int) -> str:
        shape = label(*self.shapes[index % len(self.shapes)])
        return f"{self.name}-{self.split}-{shape}-{index:05d}"

    def __getitem__(self, index: int) -> EditSample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        sample = self.draw(index)
        if index < len(manifest.hashes(self.key)):
            needed = sample.references[: self.needed]
            manifest.check(self.key, index, replace(sample, references=needed))
        else:
            self.verify()
        return sample

    def pair(self, index: int, size: Size) -> tuple[Edit, tuple[np.ndarray, ...], str, str]:
        """An edit, further references as floats [H, W, 3], category and task."""
        edit, category, task = draw_edit(self.split, index, size)
        return edit, (), category, task

    def draw(self, index: int) -> EditSample:
        """The sample, whatever the manifest says."""
        size, reference_size = self.shapes[index % len(self.shapes)]
        edit, more, category, task = self.pair(index, size)
        places = range(self.needed, self.references)
        more += tuple(self._further(index, place, size) for place in places)
        references = (_reference(edit, reference_size), *map(to_uint8, more))
        return EditSample(
            id=self._id(index),
            category=category,
            task=task,
            instruction=edit.instruction,
            references=tuple(Image.fromarray(image) for image in references),
            target=Image.fromarray(to_uint8(edit.after)),
            size=size,
            objects=len(edit.scene.things),
        )

    def _further(self, index: int, place: int, size: Size) -> np.ndarray:
        """The scene at a place behind the references that are needed, [*size, 3]."""
        rng = np.random.default_rng([SPLITS[self.split], index, place])
        return random_scene(rng, size).render(size)

    def fingerprint(self) -> str:
        """A hash over the pixels and instructions of one round through all categories and tasks."""
        digest = hashlib.sha256()
        for index in range(ROUND):
            sample = self.draw(index)
            for image in (*sample.references, sample.target):
                digest.update(image.tobytes())
            digest.update(sample.instruction.encode())
        return digest.hexdigest()[:16]


def _shape(size: int | Sequence[int], reference_size: int | Sequence[int] | None):
    target = pixel_size(size)
    return target, target if reference_size is None else pixel_size(reference_size)


def label(size: Size, reference_size: Size) -> str:
    """How ids name a shape: 128, 104x168, 152x104from112x80."""

    def text(pair):
        return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"

    return text(size) if size == reference_size else f"{text(size)}from{text(reference_size)}"
