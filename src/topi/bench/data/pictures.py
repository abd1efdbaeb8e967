"""Several pictures as one, and masks drawn over them."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

Size = tuple[int, int]
GOLD = np.array([255.0, 200.0, 40.0])


def side_by_side(images: Iterable[Image.Image]) -> Image.Image:
    """Several images in one row, scaled to the height of the first."""
    images = list(images)
    if len(images) == 1:
        return images[0]
    sizes = in_a_row([image.size for image in images])
    images = [image.resize(size) for image, size in zip(images, sizes, strict=True)]
    height = images[0].height
    row = Image.new("RGB", (sum(i.width for i in images), height))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row


def in_a_row(sizes: Sequence[Size]) -> list[Size]:
    """The sizes of images when they are scaled to the height of the first; (width, height)."""
    height = sizes[0][1]
    return [(round(width * height / own), height) for width, own in sizes]


def draw_mask(reference: Image.Image, kept: np.ndarray) -> Image.Image:
    """The reference, kept tokens tinted gold and dropped ones darkened (paper, Figure 7)."""
    pixels = np.asarray(reference.convert("RGB"), dtype=float)
    mask = Image.fromarray(kept).resize(reference.size, Image.Resampling.NEAREST)
    shown = np.asarray(mask)[..., None]
    drawn = np.where(shown, 0.6 * pixels + 0.4 * GOLD, 0.25 * pixels)
    return Image.fromarray(drawn.round().astype(np.uint8))
