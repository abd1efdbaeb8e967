"""The edits of MiniEdit: one function per sub-task, from a generator to a pair of images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from topi.bench.data import drawing
from topi.bench.data.drawing import COLOURS, DIRECTED, LANDSCAPES, WALLS, Size
from topi.bench.data.scene import Scene, Thing, new_name, overlaps, pick, random_scene

TASKS = {
    "camera_move": ("pan", "zoom", "rotate", "resize"),
    "global_edit": ("style", "tone", "background", "weather"),
    "implicit_change": ("time_of_day", "light", "season", "water"),
    "local_edit": ("add", "remove", "replace", "recolour", "move"),
}
#: The type of AnyEdit (arXiv 2411.15738, Table 13) that each sub-task stands for. AnyEdit files all
#: movement under camera moves; here an object that moves in a resting view is a local edit.
EDIT_TYPES = {
    "pan": "movement",
    "zoom": "resize",
    "rotate": "rotation_change",
    "resize": "resize",
    "style": "style_change",
    "tone": "tone_transfer",
    "background": "background_change",
    "weather": "tone_transfer",
    "time_of_day": "implicit_change",
    "light": "implicit_change",
    "season": "implicit_change",
    "water": "implicit_change",
    "add": "add",
    "remove": "remove",
    "replace": "replace",
    "recolour": "color_alter",
    "move": "movement",
}

PAN = 16  # pixels that a pan moves the view
MOVE = 24  # pixels that a moved object travels
ZOOM = 1.25
MARGIN = 16  # the world reaches at least this far beyond the view on each side

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
#: centres as shares of (width, height)
PLACES = {
    "on the left": (0.22, 0.5),
    "on the right": (0.78, 0.5),
    "at the top": (0.5, 0.22),
    "at the bottom": (0.5, 0.78),
    "in the middle": (0.5, 0.5),
}

#: task -> effect -> ways to ask for it
PHRASES = {
    "style": {
        "black_and_white": ("make the image black and white", "convert the picture to grayscale"),
        "pixel_art": ("turn the image into pixel art", "make it a mosaic"),
        "poster": ("turn it into a posterized print",),
        "negative": ("turn it into a photo negative", "invert the colors"),
        "blur": ("blur the image", "make it out of focus"),
    },
    "tone": {
        "sepia": ("apply a sepia tone", "make it look like an old sepia photo"),
        "warm": ("make the colors warmer", "give the image a warm tone"),
        "cool": ("make the colors cooler", "give the image a cool blue tone"),
        "bright": ("make the image brighter", "increase the brightness"),
        "contrast": ("increase the contrast",),
    },
    "weather": {
        "fog": ("add thick fog to the scene", "make it foggy"),
        "rain": ("change the weather to rain", "make it rainy"),
        "storm": ("make it stormy", "add dark storm clouds"),
    },
    "time_of_day": {
        "night": ("what if night falls", "what would it look like at night"),
        "sunset": ("what if the sun sets", "what would it look like at sunset"),
    },
    "light": {
        "lights_off": ("what happens if the lights go out", "what if the lamp is switched off"),
    },
    "season": {
        "snowfall": ("what if it snows", "what happens after heavy snow"),
        "autumn": ("what if autumn comes", "what happens when the leaves turn"),
    },
    "water": {
        "flood": ("what if the place is flooded", "what happens when the water rises"),
    },
}


@dataclass(frozen=True)
class Edit:
    """A drawn edit and what is known about it.

    Args:
        before: the reference, float32 [H, W, 3] in [0, 1].
        after: the true edit, likewise.
        instruction: asks for it.
        scene: what the reference shows.
        edited: what the true edit shows, where that is a scene too.
        index: which thing of `scene` is edited; None if none is.
    """

    before: np.ndarray
    after: np.ndarray
    instruction: str
    scene: Scene
    edited: Scene | None = None
    index: int | None = None


def _edit(scene: Scene, edited: Scene, size: Size, instruction: str, index=None) -> Edit:
    return Edit(scene.render(size), edited.render(size), instruction, scene, edited, index)


def some_thing(rng: np.random.Generator, scene: Scene) -> tuple[int, Thing]:
    """A thing of the scene, all equally likely, and its index."""
    index = int(rng.integers(len(scene.things)))
    return index, scene.things[index]


# ------------------------------------------------------------------------------- camera moves
def pan(rng: np.random.Generator, size: Size) -> Edit:
    """The view moves by PAN pixels over a larger world."""
    height, width = size
    scene = random_scene(rng, size)
    world = scene.render(size, MARGIN)
    direction = pick(rng, DIRECTIONS)
    dx, dy = (PAN * d for d in DIRECTIONS[direction])

    def view(x, y):
        return world[MARGIN + y : MARGIN + y + height, MARGIN + x : MARGIN + x + width]

    phrase = pick(rng, ("pan the camera {}", "move the camera {}")).format(direction)
    return Edit(view(0, 0), view(dx, dy), phrase, scene)


def zoom(rng: np.random.Generator, size: Size) -> Edit:
    """The view grows or shrinks by ZOOM about its middle."""
    margin = max(MARGIN, math.ceil(max(size) * (ZOOM - 1) / 2))
    scene = random_scene(rng, size)
    world = scene.render(size, margin)

    def view(factor):
        rows, columns = (
            slice(margin + length // 2 - half, margin + length // 2 + half)
            for length, half in ((n, round(n * factor) // 2) for n in size)
        )
        return world[rows, columns]

    if rng.random() < 0.5:
        phrase = pick(rng, ("zoom in", "move the camera closer"))
        return Edit(view(1), resample(view(1 / ZOOM), size), phrase, scene)
    phrase = pick(rng, ("zoom out", "move the camera back"))
    return Edit(view(1), resample(view(ZOOM), size), phrase, scene)


def rotate(rng: np.random.Generator, size: Size) -> Edit:
    """One named thing turns by a quarter or half."""
    scene = random_scene(rng, size, first_kinds=DIRECTED)
    thing = scene.things[0]
    turn, phrase = pick(
        rng,
        (
            (180, f"turn the {thing.name} upside down"),
            (90, f"rotate the {thing.name} clockwise"),
            (270, f"rotate the {thing.name} counterclockwise"),
        ),
    )
    return _edit(scene, scene.swap(0, replace(thing, turn=turn)), size, phrase, 0)


def resize(rng: np.random.Generator, size: Size) -> Edit:
    """One named thing grows or shrinks."""
    scene = random_scene(rng, size)
    index, thing = some_thing(rng, scene)
    factor, phrase = pick(
        rng,
        (
            (1.4, f"make the {thing.name} bigger"),
            (0.65, f"make the {thing.name} smaller"),
        ),
    )
    edited = scene.swap(index, replace(thing, size=2 * int(thing.size * factor / 2)))
    return _edit(scene, edited, size, phrase, index)


# -------------------------------------------------------------- global edits, implicit changes
def _effect_task(task: str) -> Callable[[np.random.Generator, Size], Edit]:
    def edit(rng, size):
        name = pick(rng, PHRASES[task])
        scene = random_scene(rng, size)
        before = scene.render(size)
        return Edit(before, drawing.effect(name, before), pick(rng, PHRASES[task][name]), scene)

    return edit


def change_background(rng: np.random.Generator, size: Size) -> Edit:
    """Everything but the things is replaced by a named background."""
    scene = random_scene(rng, size)
    if rng.random() < 0.5:
        name = pick(rng, LANDSCAPES)
        new = dict(kind="landscape", name=name, horizon=0.52, seed=7)
        phrase = pick(rng, (f"change the background to a {name}", f"put it in a {name}"))
    else:
        name = pick(rng, WALLS)
        new = dict(kind="wall", name=name, seed=0)
        phrase = pick(
            rng, (f"change the background to plain {name}", f"make the background {name}")
        )
    return _edit(scene, replace(scene, background=new), size, phrase)


# -------------------------------------------------------------------------------- local edits
def free_place(rng: np.random.Generator, size: Size) -> tuple[Scene, str, Thing]:
    """A scene, a named place in it that is free, and an unnamed stand-in for what comes there."""
    side = 30 if drawing.side(size) <= 64 else 36
    while True:
        scene = random_scene(rng, size)
        place = pick(rng, PLACES)
        x, y = centre(place, size)
        if not overlaps(x, y, side, scene.things, share=0.7):
            return scene, place, Thing("", "", side, x, y)


def centre(place: str, size: Size) -> tuple[float, float]:
    """(x, y) in pixels of one of PLACES."""
    return size[1] * PLACES[place][0], size[0] * PLACES[place][1]


def add(rng: np.random.Generator, size: Size) -> Edit:
    """A new thing appears at a named place."""
    scene, place, spot = free_place(rng, size)
    kind, colour = new_name(rng, {t.name for t in scene.things})
    new = replace(spot, kind=kind, colour=colour)
    edited = replace(scene, things=(*scene.things, new))
    return _edit(scene, edited, size, f"add a {new.name} {place}")


def remove(rng: np.random.Generator, size: Size) -> Edit:
    """One named thing disappears."""
    scene = random_scene(rng, size)
    index, thing = some_thing(rng, scene)
    phrase = pick(rng, (f"remove the {thing.name}", f"delete the {thing.name}"))
    return _edit(scene, scene.swap(index), size, phrase, index)


def replace_thing(rng: np.random.Generator, size: Size) -> Edit:
    """One named thing becomes another, at its place and size."""
    scene = random_scene(rng, size)
    index, thing = some_thing(rng, scene)
    kind, colour = new_name(rng, {t.name for t in scene.things})
    new = replace(thing, kind=kind, colour=colour)
    phrase = f"replace the {thing.name} with a {new.name}"
    return _edit(scene, scene.swap(index, new), size, phrase, index)


def recolour(rng: np.random.Generator, size: Size) -> Edit:
    """One named thing changes its colour."""
    scene = random_scene(rng, size)
    index, thing = some_thing(rng, scene)
    colour = pick(rng, (c for c in COLOURS if c != thing.colour))
    phrase = pick(
        rng,
        (f"make the {thing.name} {colour}", f"change the color of the {thing.name} to {colour}"),
    )
    return _edit(scene, scene.swap(index, replace(thing, colour=colour)), size, phrase, index)


def move(rng: np.random.Generator, size: Size) -> Edit:
    """One named thing travels by MOVE pixels."""
    for _ in range(1000):
        scene = random_scene(rng, size)
        index, thing = some_thing(rng, scene)
        direction = pick(rng, DIRECTIONS)
        moved = shifted(thing, direction)
        inside = all(
            0.4 * thing.size < v < length - 0.4 * thing.size
            for v, length in ((moved.x, size[1]), (moved.y, size[0]))
        )
        others = scene.swap(index).things
        if inside and not overlaps(moved.x, moved.y, thing.size, others, share=0.7):
            break
    words = {"left": "to the left", "right": "to the right"}.get(direction, direction)
    phrase = f"move the {thing.name} {words}"
    return _edit(scene, scene.swap(index, moved), size, phrase, index)


def shifted(thing: Thing, direction: str) -> Thing:
    """`thing`, MOVE pixels further in one of DIRECTIONS."""
    dx, dy = (MOVE * d for d in DIRECTIONS[direction])
    return replace(thing, x=thing.x + dx, y=thing.y + dy)


#: sub-task -> how to draw it, a pure function of the generator and the size
EDITS: dict[str, Callable[[np.random.Generator, Size], Edit]] = {
    "pan": pan,
    "zoom": zoom,
    "rotate": rotate,
    "resize": resize,
    "background": change_background,
    "add": add,
    "remove": remove,
    "replace": replace_thing,
    "recolour": recolour,
    "move": move,
    **{task: _effect_task(task) for task in PHRASES},
}


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[0, 1] floats to rounded bytes."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def resample(image: np.ndarray, size: Size) -> np.ndarray:
    """[H, W, 3] floats to another size, bicubic."""
    pixels = Image.fromarray(to_uint8(image)).resize(size[::-1], Image.BICUBIC)
    return np.asarray(pixels, np.float32) / 255
