"""Several pictures as one."""

from collections.abc import Iterable, Sequence

from PIL import Image

Size = tuple[int, int]


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
