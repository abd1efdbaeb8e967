"""MiniEdit: procedural in-context edits in AnyEdit's four groups (arXiv 2411.15738, Table 13).

A sample is a pure function of (split, index, size). Evaluation and calibration splits cycle through
the categories and, within a category, through its sub-tasks, so any first n samples are stratified;
the training split draws them at random with the shares below.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from topi.data import drawing
from topi.data.drawing import COLOURS, DIRECTED, KINDS, LANDSCAPES, PATTERNS, WALLS
from topi.data.sample import CATEGORIES, EditSample

#: The splits differ in the seed, so they share no sample.
SPLITS = {"train": 1, "calibration": 2, "evaluation": 3}
DEFAULT_COUNT = {"train": 10_000_000, "calibration": 48, "evaluation": 256}

TASKS = {
    "camera_move": ("pan", "zoom", "rotate", "resize"),
    "global_edit": ("style", "tone", "background", "weather"),
    "implicit_change": ("time_of_day", "light", "season", "water"),
    "local_edit": ("add", "remove", "replace", "recolour", "move"),
}
TRAIN_SHARES = {
    "camera_move": 0.30,
    "global_edit": 0.17,
    "implicit_change": 0.11,
    "local_edit": 0.42,
}

PAN = 16  # pixels that a pan moves the view
MOVE = 24  # pixels that a moved object travels
ZOOM = 1.25
MARGIN = 16  # the world reaches this far beyond the view on each side

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
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
class Thing:
    """A drawn object; x, y its centre and size its side, in pixels of the view."""

    kind: str
    colour: str
    size: int
    x: float
    y: float
    turn: int = 0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """A background spec (see `drawing.background`) and the things before it, back to front."""

    background: dict
    things: tuple[Thing, ...]

    def render(self, size: int, margin: int = 0) -> np.ndarray:
        """[size + 2 margin, size + 2 margin, 3] in [0, 1]; the view sits in the middle."""
        image = drawing.background(self.background, size + 2 * margin)
        for t in self.things:
            rgb, alpha = drawing.sprite(t.kind, t.colour, t.size, t.turn)
            drawing.paste(image, rgb, alpha, t.x + margin, t.y + margin)
        return image


def _pick(rng: np.random.Generator, options):
    options = tuple(options)
    return options[rng.integers(len(options))]


def _overlaps(x: float, y: float, size: float, things, share: float = 0.9) -> bool:
    return any(max(abs(x - t.x), abs(y - t.y)) < (size + t.size) / 2 * share for t in things)


def _new_thing(rng, taken: set[str], kinds=tuple(KINDS)) -> tuple[str, str]:
    """A (kind, colour) whose name is not in `taken` yet; the name is added to `taken`."""
    while True:
        kind, colour = _pick(rng, kinds), _pick(rng, COLOURS)
        if f"{colour} {kind}" not in taken:
            taken.add(f"{colour} {kind}")
            return kind, colour


def random_background(rng: np.random.Generator) -> dict:
    """A spec for `drawing.background`: landscapes, plain walls and textures."""
    seed = int(rng.integers(1 << 30))
    u = rng.random()
    if u < 0.45:
        horizon = float(rng.uniform(0.4, 0.65))
        return dict(kind="landscape", name=_pick(rng, LANDSCAPES), horizon=horizon, seed=seed)
    if u < 0.55:
        return dict(kind="wall", name=_pick(rng, WALLS), seed=seed)
    return dict(kind=_pick(rng, PATTERNS), seed=seed)


def random_scene(rng: np.random.Generator, size: int, first_kinds=tuple(KINDS)) -> Scene:
    """1 to 4 named things (fewer on small images) that hardly overlap."""
    taken: set[str] = set()
    things: list[Thing] = []
    low, high = (13, 19) if size <= 64 else (15, 22)
    for k in range(rng.integers(1, 1 + (2 if size <= 64 else 3 if size < 128 else 4))):
        side = 2 * int(rng.integers(low, high))
        for _ in range(30):
            x, y = rng.uniform(side / 2, size - side / 2, 2)
            if not _overlaps(x, y, side, things):
                kind, colour = _new_thing(rng, taken, first_kinds if k == 0 else tuple(KINDS))
                things.append(Thing(kind, colour, side, float(x), float(y)))
                break
    return Scene(random_background(rng), tuple(things))


# Every task maps (rng, size) to (reference, edited, instruction); images float32 [size, size, 3].


def _with(scene: Scene, index: int, *new: Thing) -> Scene:
    kept = scene.things[:index] + new + scene.things[index + 1 :]
    return replace(scene, things=kept)


def _rescaled(image: np.ndarray, size: int) -> np.ndarray:
    pixels = Image.fromarray(to_uint8(image)).resize((size, size), Image.BICUBIC)
    return np.asarray(pixels, np.float32) / 255


def pan(rng, size):
    """The view moves by PAN pixels over a larger world."""
    world = random_scene(rng, size).render(size, MARGIN)
    direction = _pick(rng, DIRECTIONS)
    dx, dy = (PAN * d for d in DIRECTIONS[direction])

    def view(x, y):
        return world[MARGIN + y : MARGIN + y + size, MARGIN + x : MARGIN + x + size]

    phrase = _pick(rng, ("pan the camera {}", "move the camera {}")).format(direction)
    return view(0, 0), view(dx, dy), phrase


def zoom(rng, size):
    """The view grows or shrinks by ZOOM about its middle."""
    world = random_scene(rng, size).render(size, MARGIN)
    middle = MARGIN + size // 2

    def view(side):
        half = side // 2
        return world[middle - half : middle + half, middle - half : middle + half]

    if rng.random() < 0.5:
        phrase = _pick(rng, ("zoom in", "move the camera closer"))
        return view(size), _rescaled(view(round(size / ZOOM)), size), phrase
    phrase = _pick(rng, ("zoom out", "move the camera back"))
    return view(size), _rescaled(view(round(size * ZOOM)), size), phrase


def rotate(rng, size):
    """One named thing turns by a quarter or half."""
    scene = random_scene(rng, size, first_kinds=DIRECTED)
    thing = scene.things[0]
    turn, phrase = _pick(
        rng,
        (
            (180, f"turn the {thing.name} upside down"),
            (90, f"rotate the {thing.name} clockwise"),
            (270, f"rotate the {thing.name} counterclockwise"),
        ),
    )
    edited = _with(scene, 0, replace(thing, turn=turn))
    return scene.render(size), edited.render(size), phrase


def resize(rng, size):
    """One named thing grows or shrinks."""
    scene = random_scene(rng, size)
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    factor, phrase = _pick(
        rng,
        (
            (1.4, f"make the {thing.name} bigger"),
            (0.65, f"make the {thing.name} smaller"),
        ),
    )
    edited = _with(scene, index, replace(thing, size=2 * int(thing.size * factor / 2)))
    return scene.render(size), edited.render(size), phrase


def _effect_task(task: str):
    def edit(rng, size):
        name = _pick(rng, PHRASES[task])
        reference = random_scene(rng, size).render(size)
        return reference, drawing.effect(name, reference), _pick(rng, PHRASES[task][name])

    return edit


def change_background(rng, size):
    """Everything but the things is replaced by a named background."""
    scene = random_scene(rng, size)
    if rng.random() < 0.5:
        name = _pick(rng, LANDSCAPES)
        new = dict(kind="landscape", name=name, horizon=0.52, seed=7)
        phrase = _pick(rng, (f"change the background to a {name}", f"put it in a {name}"))
    else:
        name = _pick(rng, WALLS)
        new = dict(kind="wall", name=name, seed=0)
        phrase = _pick(
            rng, (f"change the background to plain {name}", f"make the background {name}")
        )
    return scene.render(size), replace(scene, background=new).render(size), phrase


def add(rng, size):
    """A new thing appears at a named place."""
    side = 30 if size <= 64 else 36
    while True:
        scene = random_scene(rng, size)
        place = _pick(rng, PLACES)
        x, y = (size * p for p in PLACES[place])
        if not _overlaps(x, y, side, scene.things, share=0.7):
            break
    kind, colour = _new_thing(rng, {t.name for t in scene.things})
    new = Thing(kind, colour, side, x, y)
    edited = replace(scene, things=(*scene.things, new))
    return scene.render(size), edited.render(size), f"add a {new.name} {place}"


def remove(rng, size):
    """One named thing disappears."""
    scene = random_scene(rng, size)
    index = int(rng.integers(len(scene.things)))
    name = scene.things[index].name
    phrase = _pick(rng, (f"remove the {name}", f"delete the {name}"))
    return scene.render(size), _with(scene, index).render(size), phrase


def replace_thing(rng, size):
    """One named thing becomes another, at its place and size."""
    scene = random_scene(rng, size)
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    kind, colour = _new_thing(rng, {t.name for t in scene.things})
    new = replace(thing, kind=kind, colour=colour)
    phrase = f"replace the {thing.name} with a {new.name}"
    return scene.render(size), _with(scene, index, new).render(size), phrase


def recolour(rng, size):
    """One named thing changes its colour."""
    scene = random_scene(rng, size)
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    colour = _pick(rng, (c for c in COLOURS if c != thing.colour))
    phrase = _pick(
        rng,
        (f"make the {thing.name} {colour}", f"change the color of the {thing.name} to {colour}"),
    )
    edited = _with(scene, index, replace(thing, colour=colour))
    return scene.render(size), edited.render(size), phrase


def move(rng, size):
    """One named thing travels by MOVE pixels."""
    for _ in range(1000):
        scene = random_scene(rng, size)
        index = int(rng.integers(len(scene.things)))
        thing = scene.things[index]
        direction = _pick(rng, DIRECTIONS)
        dx, dy = (MOVE * d for d in DIRECTIONS[direction])
        x, y = thing.x + dx, thing.y + dy
        inside = all(0.4 * thing.size < v < size - 0.4 * thing.size for v in (x, y))
        others = scene.things[:index] + scene.things[index + 1 :]
        if inside and not _overlaps(x, y, thing.size, others, share=0.7):
            break
    words = {"left": "to the left", "right": "to the right"}.get(direction, direction)
    edited = _with(scene, index, replace(thing, x=x, y=y))
    return scene.render(size), edited.render(size), f"move the {thing.name} {words}"


EDITS = {
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


def draw_pair(split: str, index: int, size: int) -> tuple[np.ndarray, np.ndarray, str, str, str]:
    """(reference, edited) as uint8 [size, size, 3], instruction, category, task."""
    rng = np.random.default_rng([SPLITS[split], index])
    if split == "train":
        category = CATEGORIES[rng.choice(4, p=[TRAIN_SHARES[c] for c in CATEGORIES])]
        task = _pick(rng, TASKS[category])
    else:
        category = CATEGORIES[index % 4]
        task = TASKS[category][index // 4 % len(TASKS[category])]
    reference, edited, instruction = EDITS[task](rng, size)
    return to_uint8(reference), to_uint8(edited), instruction, category, task


class MiniEdit:
    """The samples [0, count) of one split at `size` x `size` pixels (size a multiple of 8)."""

    def __init__(self, split: str = "evaluation", size: int = 128, count: int | None = None):
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; choose from {', '.join(SPLITS)}")
        if size % 8:
            raise ValueError(f"size={size} must be a multiple of 8")
        self.split, self.size = split, size
        self.count = DEFAULT_COUNT[split] if count is None else count
        if not 0 < self.count <= DEFAULT_COUNT["train"]:
            raise ValueError(f"count={count} must be between 1 and {DEFAULT_COUNT['train']}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> EditSample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        before, after, instruction, category, task = draw_pair(self.split, index, self.size)
        return EditSample(
            id=f"mini_edit-{self.split}-{self.size}-{index:05d}",
            category=category,
            task=task,
            instruction=instruction,
            references=(Image.fromarray(before),),
            target=Image.fromarray(after),
        )

    def fingerprint(self) -> str:
        """A hash over the pixels and instructions of one round through all categories and tasks."""
        digest = hashlib.sha256()
        for index in range(4 * max(len(tasks) for tasks in TASKS.values())):
            before, after, instruction, *_ = draw_pair(self.split, index, self.size)
            digest.update(before.tobytes() + after.tobytes() + instruction.encode())
        return digest.hexdigest()[:16]
