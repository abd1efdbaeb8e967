"""Was the edit made that was asked for? An exact check of local edits, from how they were drawn.

Also of those that take a thing from a second image. MiniEdit knows the scene behind every image, so
it can also draw what an editor may have done instead: nothing, the right thing in another colour,
another thing, the right thing elsewhere, the edit of another object, or the edit with another
object lost on the way. An image passes if the true edit is nearer to it than every alternative, and
if it is near: nearest alone would let a blob pass that resembles the right object a little more
than the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from topi.bench.data import drawing
from topi.bench.data.drawing import COLOURS, KINDS, Size
from topi.bench.data.mini_edit import draw_edit, pixel_size
from topi.bench.data.mini_edit_plus import draw_plus_edit
from topi.bench.data.sample import CHANGED_THRESHOLD
from topi.bench.data.scene import Scene, Thing
from topi.bench.data.tasks import DIRECTIONS, PLACES, Edit, centre, shifted

TRUE = "the edit"
UNCHANGED = "unchanged"
#: How near is near: over the pixels that the edit changes, at most this share of the squared change
#: is missing (one quarter is 6 dB nearer to the true edit than the untouched reference is) ...
TOLERANCE = 0.25
#: ... or the mean squared error is at most this (23 dB), for edits of little contrast.
TOLERATED_ERROR = 0.005
#: An alternative counts if it differs from the true edit visibly in so many pixels.
VISIBLE = 8


@dataclass(frozen=True)
class Verdict:
    """What an image shows.

    Args:
        made: whether it is the edit that was asked for.
        nearest: which drawing it is nearest to: TRUE, UNCHANGED, "colour: red", "kind: fish",
            "place: left", "object: blue car" (edited instead), "lost: blue car", ...
        missing: squared distance to the true edit over that of the reference, over the pixels that
            the edit changes; 0 is the true edit, 1 the reference.
        error: mean squared error over these pixels, of values in [0, 1].
    """

    made: bool
    nearest: str
    missing: float
    error: float


def check_edit(
    split: str, index: int, size: int | Sequence[int], image: Image.Image | np.ndarray
) -> Verdict:
    """Check what an editor made of a local_edit sample of MiniEdit.

    Args:
        split: of the sample, as index and size.
        index: of the sample.
        size: (height, width) of the target, or one side.
        image: what the editor gave, uint8 RGB [height, width, 3].

    Raises:
        ValueError: the sample is no local edit, or the image is of another size.
    """
    edit, category, task = draw_edit(split, index, size)
    if category != "local_edit":
        raise ValueError(f"sample {index} of {split} is a {category}; only local edits are checked")
    return judge(task, edit, pixel_size(size), image)


def check_taken(
    split: str, index: int, size: int | Sequence[int], image: Image.Image | np.ndarray
) -> Verdict:
    """`check_edit` for a sample of MiniEditPlus that takes a thing from its second image.

    Raises:
        ValueError: the sample takes a material or a background, or the image is of another size.
    """
    edit, _, task = draw_plus_edit(split, index, size)
    if task != "visual_reference":
        raise ValueError(f"sample {index} of {split} is a {task}; only taken things are checked")
    # A thing that is put somewhere has no predecessor; one that is swapped in replaces it.
    local = "add" if edit.index is None else "replace"
    return judge(local, edit, pixel_size(size), image)


def judge(task: str, edit: Edit, size: Size, image: Image.Image | np.ndarray) -> Verdict:
    """The verdict on `image` for an edit drawn by `task`."""
    shown = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if shown.shape != (*size, 3):
        raise ValueError(f"the image is {shown.shape}, the sample {(*size, 3)}; resize it first")
    shown = shown.astype(np.float32) / 255
    ground = drawing.background(edit.scene.background, size)

    def distance(picture: np.ndarray) -> float:
        return float(np.square(shown - np.clip(picture, 0, 1)).sum())

    distances = {TRUE: distance(edit.after)}
    for name, scene in alternatives(task, edit, size).items():
        picture = scene.before(ground)
        if np.count_nonzero(_differ(picture, edit.after)) >= VISIBLE:
            distances[name] = distance(picture)
    nearest = min(distances, key=distances.__getitem__)
    region = _differ(edit.before, edit.after)
    error, change = (
        float(np.square(picture - edit.after)[region].mean()) for picture in (shown, edit.before)
    )
    near = error <= max(TOLERANCE * change, TOLERATED_ERROR)
    return Verdict(nearest == TRUE and near, nearest, error / change, error)


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).max(-1) > CHANGED_THRESHOLD


# ------------------------------------------------------------------------------- alternatives
def alternatives(task: str, edit: Edit, size: Size) -> dict[str, Scene]:
    """What an editor may have done instead of a local edit, by name; each scene once."""
    found = {UNCHANGED: edit.scene}
    for name, scene in _alternatives(task, edit, size):
        if scene != edit.edited and scene not in found.values():
            found[name] = scene
    return found


def _alternatives(task: str, edit: Edit, size: Size) -> Iterator[tuple[str, Scene]]:
    scene, edited, index = edit.scene, edit.edited, edit.index
    others = [j for j in range(len(scene.things)) if j != index]
    if task != "remove":
        # The thing that the true edit shows is the last one if it was added.
        at = len(scene.things) if index is None else index
        for name, thing in _variants(edited.things[at]):
            yield name, edited.swap(at, thing)
    if task in ("replace", "recolour", "move"):
        yield "removed", scene.swap(index)
    yield from _ELSEWHERE[task](edit, size, others)
    for j in others:
        after = j - 1 if task == "remove" and j > index else j
        yield f"lost: {scene.things[j].name}", edited.swap(after)


def _variants(thing: Thing) -> Iterator[tuple[str, Thing]]:
    """`thing` in every other colour, and of every other kind."""
    for colour in COLOURS:
        if colour != thing.colour:
            yield f"colour: {colour}", replace(thing, colour=colour)
    for kind in KINDS:
        if kind != thing.kind:
            yield f"kind: {kind}", replace(thing, kind=kind)


def _add_elsewhere(edit: Edit, size: Size, others):
    new = edit.edited.things[-1]
    for place in PLACES:
        x, y = centre(place, size)
        things = (*edit.scene.things, replace(new, x=x, y=y))
        yield f"place: {place}", replace(edit.scene, things=things)


def _remove_elsewhere(edit: Edit, size: Size, others):
    for j in others:
        yield f"object: {edit.scene.things[j].name}", edit.scene.swap(j)


def _replace_elsewhere(edit: Edit, size: Size, others):
    new = edit.edited.things[edit.index]
    for j in others:
        old = edit.scene.things[j]
        there = replace(old, kind=new.kind, colour=new.colour)
        yield f"object: {old.name}", edit.scene.swap(j, there)


def _recolour_elsewhere(edit: Edit, size: Size, others):
    colour = edit.edited.things[edit.index].colour
    for j in others:
        old = edit.scene.things[j]
        yield f"object: {old.name}", edit.scene.swap(j, replace(old, colour=colour))
        yield f"also: {old.name}", edit.edited.swap(j, replace(old, colour=colour))


def _move_elsewhere(edit: Edit, size: Size, others):
    thing, moved = edit.scene.things[edit.index], edit.edited.things[edit.index]
    for direction in DIRECTIONS:
        yield f"place: {direction}", edit.scene.swap(edit.index, shifted(thing, direction))
    yield "doubled", edit.scene.swap(edit.index, thing, moved)
    for j in others:
        other = edit.scene.things[j]
        there = replace(other, x=other.x + moved.x - thing.x, y=other.y + moved.y - thing.y)
        yield f"object: {other.name}", edit.scene.swap(j, there)


_ELSEWHERE = {
    "add": _add_elsewhere,
    "remove": _remove_elsewhere,
    "replace": _replace_elsewhere,
    "recolour": _recolour_elsewhere,
    "move": _move_elsewhere,
}
