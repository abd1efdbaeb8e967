"""Sizes of references that pipelines refuse; those of FLUX.2 are in `topi.bench.data.images`."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from topi.bench.data.pictures import Size, in_a_row

QWEN_RATIO = 200
"""Of the sides of a picture, the most that the processor of Qwen2.5-VL takes."""
MEGAPIXEL, CONDITION = 1024**2, 384**2
"""Pixels to which Qwen pipelines resize a reference; the second for the text encoder of Plus."""


def of_area(size: Size, pixels: int) -> Size:
    """The size of about so many pixels, both sides multiples of eight."""
    scale = (pixels / (size[0] * size[1])) ** 0.5
    width, height = (max(8 * round(side * scale / 8), 8) for side in size)
    return width, height


def row_problem(sizes: Sequence[Size], area: int | None, token: int) -> str | None:
    """Why Kontext refuses references that lie side by side; None if it takes them.

    Args:
        sizes: (width, height) of each in pixels.
        area: pixels that the row is scaled to before the pipeline gets it; None: it is not.
        token: side of a token in pixels.
    """
    row = in_a_row(sizes)
    width, height = sum(width for width, _ in row), row[0][1]
    given = of_area((width, height), area) if area else (width, height)
    if min(given) >= token and all(width for width, _ in row):
        return None
    scaled = "" if given == (width, height) else f", scaled to {given[0]} x {given[1]}"
    return f"{width} x {height} pixels{scaled}: each side needs at least {token}"


def resized_problem(size: Size, pipe: DiffusionPipeline, several: bool) -> str | None:
    """Why a Qwen pipeline refuses a reference of (width, height); None if it takes it.

    Args:
        several: the pipeline is Plus, which resizes each reference twice.
    """
    call = type(pipe).__call__
    # the pipeline's own, which small models replace
    dimensions = getattr(call, "__wrapped__", call).__globals__["calculate_dimensions"]
    for area in (MEGAPIXEL, CONDITION) if several else (MEGAPIXEL,):
        scaled = dimensions(area, size[0] / size[1])[:2]
        if not min(scaled) or max(scaled) > QWEN_RATIO * min(scaled):
            return f"{size[0]} x {size[1]} pixels: it is too narrow once it is resized"
    return None
