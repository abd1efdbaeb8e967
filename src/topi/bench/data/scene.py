"""Scenes of MiniEdit: a background and named things before it, drawn at random."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from topi.bench.data import drawing
from topi.bench.data.drawing import COLOURS, KINDS, LANDSCAPES, PATTERNS, WALLS, Size


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

    def render(self, size: Size, margin: int = 0) -> np.ndarray:
        """[height + 2 margin, width + 2 margin, 3] in [0, 1]; the view sits in the middle."""
        height, width = size
        ground = drawing.background(self.background, (height + 2 * margin, width + 2 * margin))
        return self.before(ground, margin)

    def before(self, ground: np.ndarray, margin: int = 0) -> np.ndarray:
        """The things drawn over a copy of `ground`, a picture of the background."""
        image = ground.copy()
        for t in self.things:
            rgb, alpha = drawing.sprite(t.kind, t.colour, t.size, t.turn)
            drawing.paste(image, rgb, alpha, t.x + margin, t.y + margin)
        return image

    def swap(self, index: int, *new: Thing) -> "Scene":
        """The scene with thing `index` replaced by `new`; by nothing, if that is empty."""
        return replace(self, things=self.things[:index] + new + self.things[index + 1 :])


def pick(rng: np.random.Generator, options: Iterable):
    """One of `options`, all equally likely."""
    options = tuple(options)
    return options[rng.integers(len(options))]


def overlaps(x: float, y: float, size: float, things, share: float = 0.9) -> bool:
    """True if a thing at (x, y) came nearer to one of `things` than `share` of touching."""
    return any(max(abs(x - t.x), abs(y - t.y)) < (size + t.size) / 2 * share for t in things)


def new_name(rng, taken: set[str], kinds=tuple(KINDS)) -> tuple[str, str]:
    """A (kind, colour) whose name is not in `taken` yet; the name is added to `taken`."""
    while True:
        kind, colour = pick(rng, kinds), pick(rng, COLOURS)
        if f"{colour} {kind}" not in taken:
            taken.add(f"{colour} {kind}")
            return kind, colour


def random_background(rng: np.random.Generator) -> dict:
    """A spec for `drawing.background`: landscapes, plain walls and textures."""
    seed = int(rng.integers(1 << 30))
    u = rng.random()
    if u < 0.45:
        horizon = float(rng.uniform(0.4, 0.65))
        return dict(kind="landscape", name=pick(rng, LANDSCAPES), horizon=horizon, seed=seed)
    if u < 0.55:
        return dict(kind="wall", name=pick(rng, WALLS), seed=seed)
    return dict(kind=pick(rng, PATTERNS), seed=seed)


def random_scene(rng: np.random.Generator, size: Size, first_kinds=tuple(KINDS)) -> Scene:
    """1 to 4 named things (fewer on small images) that hardly overlap."""
    height, width = size
    side = drawing.side(size)
    taken: set[str] = set()
    things: list[Thing] = []
    low, high = (13, 19) if side <= 64 else (15, 22)
    for k in range(rng.integers(1, 1 + (2 if side <= 64 else 3 if side < 128 else 4))):
        thing = 2 * int(rng.integers(low, high))
        for _ in range(30):
            x, y = rng.uniform(thing / 2, (width - thing / 2, height - thing / 2))
            if not overlaps(x, y, thing, things):
                kind, colour = new_name(rng, taken, first_kinds if k == 0 else tuple(KINDS))
                things.append(Thing(kind, colour, thing, float(x), float(y)))
                break
    return Scene(random_background(rng), tuple(things))
