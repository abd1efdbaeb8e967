"""Several pictures as one."""

from collections.abc import Iterable

from PIL import Image


def side_by_side(images: Iterable[Image.Image]) -> Image.Image:
    """Several images in one row, scaled to the height of the first."""
    images = list(images)
    if len(images) == 1:
        return images[0]
    height = images[0].height
    images = [i.resize((round(i.width * height / i.height), height)) for i in images]
    row = Image.new("RGB", (sum(i.width for i in images), height))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row
