"""Drawing for MiniEdit: objects, backgrounds and whole-image effects, all by own code.

Images are float32 RGB arrays [H, W, 3] in [0, 1]; lengths are pixels unless named otherwise; a
`Size` is (height, width).
"""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Size = tuple[int, int]

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (245, 210, 40),
    "purple": (140, 50, 180),
    "orange": (245, 130, 30),
    "white": (245, 245, 245),
    "black": (30, 30, 36),
}
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_CANVAS = 192  # sprites are drawn at this size and reduced, which antialiases them


# ------------------------------------------------------------------------------------ objects
def _polygon(draw: ImageDraw.ImageDraw, points, fill, edge, width: int = 7) -> None:
    scaled = [(96 + 86 * x, 96 + 86 * y) for x, y in points]
    draw.polygon(scaled, fill=fill)
    draw.line([*scaled, *scaled[:2]], fill=edge, width=width, joint="curve")


def _ball(d, body, edge):
    d.ellipse((8, 8, 184, 184), fill=body, outline=edge, width=7)
    d.ellipse((48, 36, 92, 80), fill=tuple(min(255, v + 70) for v in body[:3]) + (255,))


def _box(d, body, edge):
    d.rectangle((16, 16, 176, 176), fill=body, outline=edge, width=7)
    d.line((16, 16, 176, 176), fill=edge, width=7)
    d.line((176, 16, 16, 176), fill=edge, width=7)


def _star(d, body, edge):
    radius = (1.0, 0.42)
    points = [
        (radius[k % 2] * math.sin(k * math.pi / 5), -radius[k % 2] * math.cos(k * math.pi / 5))
        for k in range(10)
    ]
    _polygon(d, points, body, edge)


def _heart(d, body, edge):
    def point(a: float) -> tuple[float, float]:
        y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        return math.sin(a) ** 3, -y / 16

    _polygon(d, [point(a) for a in np.linspace(0, 2 * np.pi, 40)], body, edge)


def _ring(d, body, edge):
    d.ellipse((8, 8, 184, 184), fill=body, outline=edge, width=7)
    d.ellipse((62, 62, 130, 130), fill=(0, 0, 0, 0), outline=edge, width=7)


def _house(d, body, edge):
    d.rectangle((30, 84, 162, 180), fill=body, outline=edge, width=6)
    d.polygon([(14, 90), (96, 14), (178, 90)], fill=edge)
    d.rectangle((80, 124, 112, 180), fill=(70, 45, 30, 255))
    d.rectangle((122, 104, 148, 130), fill=(250, 240, 170, 255))


def _tree(d, body, edge):
    d.rectangle((82, 124, 110, 184), fill=(110, 70, 40, 255))
    d.ellipse((24, 8, 168, 140), fill=body, outline=edge, width=6)


def _car(d, body, edge):
    d.polygon([(50, 92), (72, 48), (134, 48), (158, 92)], fill=body, outline=edge, width=6)
    d.polygon([(66, 90), (80, 60), (100, 60), (100, 90)], fill=(190, 225, 245, 255))
    d.rounded_rectangle((10, 88, 182, 142), 18, fill=body, outline=edge, width=6)
    for x in (52, 140):
        d.ellipse(
            (x - 26, 118, x + 26, 170),
            fill=(30, 30, 34, 255),
            outline=(150, 150, 155, 255),
            width=8,
        )


def _boat(d, body, edge):
    d.polygon([(10, 124), (182, 124), (146, 176), (46, 176)], fill=body, outline=edge, width=6)
    d.line((92, 124, 92, 14), fill=(110, 70, 40, 255), width=9)
    d.polygon([(102, 18), (102, 112), (172, 112)], fill=(240, 236, 222, 255), outline=edge, width=5)


def _fish(d, body, edge):
    d.polygon([(130, 96), (184, 46), (184, 146)], fill=edge)
    d.ellipse((8, 46, 148, 146), fill=body, outline=edge, width=6)
    d.ellipse((34, 78, 52, 96), fill=(250, 250, 250, 255), outline=(20, 20, 20, 255), width=5)


def _flower(d, body, edge):
    d.line((96, 96, 96, 186), fill=(50, 130, 60, 255), width=12)
    for k in range(6):
        x, y = 96 + 44 * math.cos(k * math.pi / 3), 72 + 44 * math.sin(k * math.pi / 3)
        d.ellipse((x - 27, y - 27, x + 27, y + 27), fill=body, outline=edge, width=4)
    d.ellipse((72, 48, 120, 96), fill=(250, 215, 80, 255), outline=edge, width=4)


def _mushroom(d, body, edge):
    d.rounded_rectangle(
        (68, 90, 124, 184), 16, fill=(238, 226, 200, 255), outline=(150, 135, 110, 255), width=5
    )
    d.pieslice((10, 14, 182, 196), 180, 360, fill=body, outline=edge, width=6)
    for x, y in ((60, 70), (100, 46), (136, 78)):
        d.ellipse((x - 12, y - 12, x + 12, y + 12), fill=(250, 250, 245, 255))


KINDS = {
    "ball": _ball,
    "box": _box,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "house": _house,
    "tree": _tree,
    "car": _car,
    "boat": _boat,
    "fish": _fish,
    "flower": _flower,
    "mushroom": _mushroom,
}
#: Objects that look different after a quarter turn.
DIRECTED = ("heart", "house", "tree", "car", "boat", "fish", "flower", "mushroom")


@functools.lru_cache(8192)
def sprite(kind: str, colour: str, size: int, turn: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An object as (rgb [size, size, 3], alpha [size, size, 1]); `turn` in degrees clockwise."""
    image = Image.new("RGBA", (_CANVAS, _CANVAS), (0, 0, 0, 0))
    body = COLOURS[colour] + (255,)
    edge = tuple(int(v * 0.55) for v in COLOURS[colour]) + (255,)
    KINDS[kind](ImageDraw.Draw(image), body, edge)
    if turn:
        image = image.rotate(-turn)
    # Premultiplied ("RGBa") resizing keeps the transparent black out of the edge colours.
    pixels = np.asarray(image.convert("RGBa").resize((size, size), Image.LANCZOS), np.float32) / 255
    return pixels[..., :3].copy(), pixels[..., 3:].copy()


def paste(image: np.ndarray, rgb: np.ndarray, alpha: np.ndarray, x: float, y: float) -> None:
    """Draw a premultiplied sprite onto `image` in place, centred at (x, y); clipped at borders."""
    size = rgb.shape[0]
    left, top = int(x - size / 2), int(y - size / 2)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + size, image.shape[1]), min(top + size, image.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    region = image[y0:y1, x0:x1]
    image[y0:y1, x0:x1] = region * (1 - alpha[inner]) + rgb[inner]


# -------------------------------------------------------------------------------- backgrounds
#: sky at the top, sky at the horizon, ground
LANDSCAPES = {
    "meadow": ((120, 190, 240), (200, 230, 250), (80, 150, 65)),
    "desert": ((240, 200, 140), (250, 235, 200), (215, 175, 105)),
    "beach": ((90, 180, 235), (190, 235, 250), (235, 215, 160)),
    "snow field": ((170, 190, 215), (225, 232, 240), (238, 242, 248)),
    "city street": ((150, 165, 185), (205, 210, 215), (98, 98, 104)),
}
WALLS = {
    "red": (190, 50, 50),
    "green": (60, 140, 80),
    "blue": (60, 100, 190),
    "yellow": (235, 205, 90),
    "purple": (120, 70, 160),
    "gray": (128, 128, 128),
    "pink": (240, 170, 190),
}
PATTERNS = ("clouds", "stone", "wood", "stripes", "tiles", "gradient")


def _resize(values: np.ndarray, size: Size) -> np.ndarray:
    image = Image.fromarray(values).resize(size[::-1], Image.BICUBIC)
    return np.asarray(image, np.float32)[..., None]


def side(size: Size) -> float:
    """The side of the square of the same area."""
    return math.sqrt(size[0] * size[1])


def fractal_noise(
    rng: np.random.Generator, size: Size, cells: int = 3, octaves: int = 4
) -> np.ndarray:
    """[height, width, 1] noise in about [0, 1] with a 1/f fall-off, as in natural textures.

    `cells` is the grid of the coarsest octave along the side of a square; other shapes have the
    same cells per pixel.
    """
    total = np.zeros((*size, 1), np.float32)
    for k in range(octaves):
        grid = tuple(max(round(cells * 2**k * length / side(size)), 1) for length in size)
        total += _resize(rng.random(grid, np.float32), size) * 0.5**k
    return total / sum(0.5**k for k in range(octaves))


def background(spec: dict, size: Size) -> np.ndarray:
    """[height, width, 3] from a spec: kind "landscape" | "wall" | a pattern, plus name and seed."""
    rng = np.random.default_rng(spec["seed"])
    height, width = size
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    kind = spec["kind"]
    if kind == "landscape":
        top, horizon, ground = (np.array(c, np.float32) / 255 for c in LANDSCAPES[spec["name"]])
        h = spec["horizon"]
        line = h + 0.03 * np.sin(2 * np.pi * x * rng.uniform(0.5, 2) + rng.uniform(0, 6))
        below = np.clip((y - line) * height / 2 + 0.5, 0, 1)
        sky = top + (horizon - top) * np.clip(y / h, 0, 1)
        texture = fractal_noise(rng, size, cells=max(int(side(size)) // 16, 2), octaves=3) - 0.5
        land = ground * (1 - 0.25 * np.clip((y - h) / (1 - h), 0, 1)) + 0.22 * texture
        image = sky * (1 - below) + land * below
    elif kind == "wall":
        image = np.array(WALLS[spec["name"]], np.float32) / 255 * (1.08 - 0.16 * y) + 0 * x
    else:
        first = rng.uniform(0.15, 0.95, 3).astype(np.float32)
        second = np.clip(first + rng.uniform(-0.35, 0.35, 3), 0, 1).astype(np.float32)
        image = first + (second - first) * _pattern(kind, rng, size, x, y)
    return np.clip(image, 0, 1).astype(np.float32)


def _pattern(kind: str, rng, size: Size, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights [height, width, 1] of the second colour; x and y run over [0, 1]."""
    scale = side(size) / 128
    if kind == "clouds":
        return fractal_noise(rng, size, cells=3, octaves=3)
    if kind == "stone":
        return fractal_noise(rng, size, cells=max(int(8 * scale), 3), octaves=3)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        return np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)
    # The same length per pixel along both axes, whatever the shape.
    y, x = y * (size[0] / side(size)), x * (size[1] / side(size))
    if kind == "wood":
        bend = fractal_noise(rng, size, cells=2, octaves=2)
        return 0.5 + 0.5 * np.sin(2 * np.pi * (x * rng.uniform(3, 6) * scale + 1.5 * bend))
    angle = rng.uniform(0, 2 * np.pi)
    if kind == "stripes":
        turns = (x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(3, 6) * scale
        return 0.5 + 0.5 * np.sin(2 * np.pi * turns)
    n = rng.uniform(4, 8) * scale
    return (np.floor(x * n) + np.floor(y * n)) % 2


# ------------------------------------------------------------------------------------ effects
def _tint(scale, shift=(0, 0, 0)):
    a, b = np.array(scale, np.float32), np.array(shift, np.float32)
    return lambda image, grey, y: image * a + b


def _pixel_art(image, grey, y):
    h, w, _ = image.shape
    blocks = image.reshape(h // 8, 8, w // 8, 8, 3).mean((1, 3))
    return np.repeat(np.repeat(blocks, 8, 0), 8, 1)


def _blur(image, grey, y):
    pixels = Image.fromarray((image * 255).astype(np.uint8))
    return np.asarray(pixels.filter(ImageFilter.GaussianBlur(2.5)), np.float32) / 255


def _streaks(image: np.ndarray) -> np.ndarray:
    """Diagonal rain on a fixed 8-pixel lattice: the same for every image, so it can be learnt."""
    rows, columns = np.indices(image.shape[:2])
    return (((columns + rows // 2) % 8 == 0) & (rows % 8 < 6)).astype(np.float32)[..., None]


def _rain(image, grey, y):
    wet = image * np.array([0.62, 0.66, 0.72], np.float32) + 0.08
    return wet + 0.18 * _streaks(image)


def _snow(image, grey, y):
    cover = np.clip((y - 0.55) * 5, 0, 1) * 0.72
    return (image * 0.75 + 0.17) * (1 - cover) + cover * np.array([0.95, 0.97, 1.0], np.float32)


def _flood(image, grey, y):
    water = np.clip((y - 0.62) * 25, 0, 1) * 0.75
    return image * (1 - water) + water * np.array([0.16, 0.42, 0.62], np.float32)


def _autumn(image, grey, y):
    leaf = np.clip((image[..., 1:2] - np.maximum(image[..., 0:1], image[..., 2:3])) * 6, 0, 1)
    tinted = image * np.array([1.06, 0.94, 0.80], np.float32)
    return tinted * (1 - leaf) + leaf * grey * np.array([1.5, 0.85, 0.3], np.float32)


def _sunset(image, grey, y):
    warm = image * np.array([0.95, 0.68, 0.55], np.float32)
    return warm + (1 - y) * np.array([0.28, 0.10, 0.02], np.float32)


EFFECTS = {
    "black_and_white": lambda image, grey, y: np.repeat(grey, 3, 2),
    "sepia": lambda image, grey, y: grey * np.array([1.05, 0.86, 0.62], np.float32) + 0.02,
    "pixel_art": _pixel_art,
    "poster": lambda image, grey, y: np.round(image * 3) / 3,
    "negative": lambda image, grey, y: 1 - image,
    "blur": _blur,
    "warm": _tint((1.12, 1.0, 0.72), (0.05, 0.02, 0)),
    "cool": _tint((0.70, 0.92, 1.12), (0, 0.02, 0.06)),
    "bright": _tint((1.15, 1.15, 1.15), (0.15, 0.15, 0.15)),
    "contrast": lambda image, grey, y: (image - 0.5) * 1.7 + 0.5,
    "fog": _tint((0.45, 0.45, 0.45), (0.465, 0.475, 0.485)),
    "rain": _rain,
    "storm": _tint((0.48, 0.50, 0.58), (0.02, 0.03, 0.06)),
    "night": _tint((0.28, 0.32, 0.50), (0.01, 0.015, 0.06)),
    "lights_off": _tint((0.16, 0.16, 0.16)),
    "sunset": _sunset,
    "snowfall": _snow,
    "flood": _flood,
    "autumn": _autumn,
}


def luma(image: np.ndarray) -> np.ndarray:
    """Brightness of [H, W, 3] as float32 [H, W], to the last bit the same on every CPU.

    A matrix product is not: BLAS adds in another order from one CPU to the next.
    """
    grey = np.zeros(image.shape[:2], np.float32)
    for channel, weight in enumerate(LUMA.astype(np.float64)):  # so that a product is exact
        grey = (image[..., channel] * weight + grey).astype(np.float32)
    return grey


def effect(name: str, image: np.ndarray) -> np.ndarray:
    """Apply one of EFFECTS to [H, W, 3]."""
    grey = luma(image)[..., None]
    y = np.linspace(0, 1, image.shape[0], dtype=np.float32)[:, None, None]
    return np.clip(EFFECTS[name](image, grey, y), 0, 1).astype(np.float32)
