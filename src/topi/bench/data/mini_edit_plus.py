"""MiniEdit with two references: take a thing, a material or a background from the second image.

Stands for two of AnyEdit's visual types (arXiv 2411.15738, Table 13). The instruction does not
describe what is taken (it names a thing by its kind, without its colour): both images are needed.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from topi.bench.data import drawing
from topi.bench.data.drawing import PATTERNS, Size
from topi.bench.data.mini_edit import MiniEdit, pixel_size
from topi.bench.data.sample import VISUAL
from topi.bench.data.scene import Scene, Thing, pick, random_background, random_scene
from topi.bench.data.tasks import Edit, free_place, some_thing, to_uint8

SPLITS = {"train": 11, "calibration": 12, "evaluation": 13}
#: AnyEdit's names, as sub-tasks.
TASKS = ("visual_reference", "visual_material_transfer")
MATERIALS = tuple(kind for kind in PATTERNS if kind != "gradient")


def _one_of_a_kind(rng: np.random.Generator, size: Size) -> tuple[Scene, Thing]:
    """A scene, and a thing of it whose kind alone names it."""
    while True:
        scene = random_scene(rng, size)
        kinds = [t.kind for t in scene.things]
        if single := [t for t in scene.things if kinds.count(t.kind) == 1]:
            return scene, pick(rng, single)


def put(rng: np.random.Generator, size: Size) -> tuple[Edit, np.ndarray]:
    """A thing of the second image appears at a named place."""
    scene, place, spot = free_place(rng, size)
    second, taken = _one_of_a_kind(rng, size)
    new = replace(spot, kind=taken.kind, colour=taken.colour)
    phrase = pick(
        rng,
        (
            f"put the {taken.kind} from the second image {place}",
            f"add the {taken.kind} of the second image {place}",
        ),
    )
    edited = replace(scene, things=(*scene.things, new))
    edit = Edit(scene.render(size), edited.render(size), phrase, scene, edited)
    return edit, second.render(size)


def swap(rng: np.random.Generator, size: Size) -> tuple[Edit, np.ndarray]:
    """A named thing becomes a thing of the second image, at its place and size."""
    while True:
        scene = random_scene(rng, size)
        index, thing = some_thing(rng, scene)
        second, taken = _one_of_a_kind(rng, size)
        if taken.name != thing.name:
            break
    edited = scene.swap(index, replace(thing, kind=taken.kind, colour=taken.colour))
    phrase = f"replace the {thing.name} with the {taken.kind} from the second image"
    edit = Edit(scene.render(size), edited.render(size), phrase, scene, edited, index)
    return edit, second.render(size)


def material(rng: np.random.Generator, size: Size) -> tuple[Edit, np.ndarray]:
    """A named thing is made of what the second image shows, cut out at its place."""
    scene = random_scene(rng, size)
    index, thing = some_thing(rng, scene)
    sheet = dict(kind=pick(rng, MATERIALS), seed=int(rng.integers(1 << 30)))
    second = drawing.background(sheet, size)
    phrase = pick(
        rng,
        (
            f"use the material of the second image for the {thing.name}",
            f"make the {thing.name} of the material in the second image",
        ),
    )
    after = made_of(scene, index, second)
    return Edit(scene.render(size), after, phrase, scene, index=index), second


def made_of(scene: Scene, index: int, texture: np.ndarray) -> np.ndarray:
    """[H, W, 3]: `scene` with the body of one thing filled with `texture` [H, W, 3]."""
    size, thing = texture.shape[:2], scene.things[index]
    image = replace(scene, things=scene.things[:index]).render(size)
    # A white thing is a map of light and shade; premultiplied, like every sprite.
    rgb, alpha = drawing.sprite(thing.kind, "white", thing.size, thing.turn)
    shade, cover = np.zeros((*size, 3), np.float32), np.zeros((*size, 1), np.float32)
    drawing.paste(shade, rgb, alpha, thing.x, thing.y)
    drawing.paste(cover, alpha, alpha, thing.x, thing.y)
    white = drawing.COLOURS["white"][0] / 255
    image = image * (1 - cover) + np.minimum(shade / white, cover) * texture
    return replace(scene, things=scene.things[index + 1 :]).before(image)


def background(rng: np.random.Generator, size: Size) -> tuple[Edit, np.ndarray]:
    """The things of the first image stand before the second."""
    scene = random_scene(rng, size)
    other = random_background(rng)
    phrase = pick(
        rng,
        ("use the background of the second image", "change the background to the second image"),
    )
    edited = replace(scene, background=other)
    edit = Edit(scene.render(size), edited.render(size), phrase, scene, edited)
    return edit, drawing.background(other, size)


#: The edits of each task, in the order in which the held-out splits cycle through them.
EDITS = {"visual_reference": (put, swap), "visual_material_transfer": (material, background)}


def draw_plus_edit(
    split: str, index: int, size: int | Sequence[int]
) -> tuple[Edit, np.ndarray, str]:
    """A sample with all that is known about it, its second reference and its task."""
    rng = np.random.default_rng([SPLITS[split], index])
    number = _train_number(rng) if split == "train" else index
    task = TASKS[number % 2]
    return *EDITS[task][number // 2 % 2](rng, pixel_size(size)), task


def train_plus_task(index: int) -> str:
    """The task of a sample of the training split, without drawing it."""
    return TASKS[_train_number(np.random.default_rng([SPLITS["train"], index])) % 2]


def _train_number(rng: np.random.Generator) -> int:
    return int(rng.integers(4))


def draw_plus(
    split: str, index: int, size: int | Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, str, str]:
    """(reference 1, reference 2, edited) as uint8 [H, W, 3], instruction, category, task."""
    edit, second, task = draw_plus_edit(split, index, size)
    images = (to_uint8(image) for image in (edit.before, second, edit.after))
    return *images, edit.instruction, VISUAL, task


class MiniEditPlus(MiniEdit):
    """The samples [0, count) of one split, with two references each or more; else as MiniEdit.

    With `size="mixed"` or a `reference_size`, the second reference is as large as the target.
    """

    name = "mini_edit_plus"
    needed = 2

    def pair(self, index: int, size: Size) -> tuple[Edit, tuple[np.ndarray, ...], str, str]:
        edit, second, task = draw_plus_edit(self.split, index, size)
        return edit, (second,), VISUAL, task
