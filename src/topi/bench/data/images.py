"""Image files as they come: of any mode and size, whole or damaged."""

import io
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

T = TypeVar("T")
#: What a complete file ends with, by format.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
#: Formats whose 16-bit pictures use the range of their numbers; None is a picture made in memory.
_SIXTEEN_BITS = ("PNG", "TIFF", "PPM", "JPEG2000", None)
BITS, PHOTOMETRIC = 258, 262
"""Tags of TIFF."""
#: What every supported pipeline takes. FLUX.2 is the strictest and has these very limits.
SHORTEST = 64  # pixels
MOST_STRETCHED = 8  # times the shorter side


def read_rgb(content: bytes) -> Image.Image:
    """Decode an image to RGB, the way up that its camera says.

    Raises:
        ValueError: it cannot be decoded, or has no one right rendering; the message says why.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return ImageOps.exif_transpose(to_rgb(image))
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    except UnclearError:
        raise
    except Exception as error:  # a damaged file raises whatever its damage suggests
        raise ValueError(f"damaged image: {error}") from error


class UnclearError(ValueError):
    """An image whose values have no known range, so that nobody can tell its 8-bit RGB."""


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: on white where transparent, 16 bits scaled to 8.

    Raises:
        UnclearError: its values have no known range: 32-bit integers and floating-point numbers.
    """
    if why := unclear(image):
        raise UnclearError(why)
    if _is_deep(image):
        return _scaled(image)
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if levels := _grey_levels(image):
        image.load()  # which scales the pixels to 255, but not the transparent value
        image.info["transparency"] = image.info["transparency"] * 255 // levels
    pixels = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    flat.info = dict(pixels.info)
    return flat


def _scaled(image: Image.Image) -> Image.Image:
    """A 16-bit grey image as 8-bit RGB."""
    tags = getattr(image, "tag_v2", {})  # of TIFF
    largest = 2 ** tags.get(BITS, (16,))[0] - 1
    values = np.asarray(image).astype(np.int64)
    scaled = (values * 255 + largest // 2) // largest
    if tags.get(PHOTOMETRIC) == 0:  # zero is white, which Pillow leaves as it is
        scaled = 255 - scaled
    if (clear := image.info.get("transparency")) is not None:
        scaled = np.where(values == clear, 255, scaled)
    flat = Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    flat.info = {name: image.info[name] for name in image.info.keys() & {"exif"}}
    return flat


def unclear(image: Image.Image) -> str | None:
    """Why an opened image has no one right 8-bit RGB; None if it has. It is not decoded."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if _is_deep(image) and not (sixteen and image.format in _SIXTEEN_BITS):
        kind = "floating-point numbers" if image.mode == "F" else "integers"
        return f"its {kind} (mode {image.mode}) have no known range: save it with 8 bits a channel"
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:
        return "it has 16 bits a channel and a transparent colour: save it with 8 bits a channel"
    return None


def _is_deep(image: Image.Image) -> bool:
    return image.mode[0] in "IF"


def _grey_levels(image: Image.Image) -> int | None:
    """The largest value in a PNG file of 2 or 4 bits with a transparent value; else None."""
    if image.format != "PNG" or not image.tile:
        return None
    return {"L;2": 3, "L;4": 15}.get(str(image.tile[0][3]))


def size_problem(size: tuple[int, int]) -> str | None:
    """Why some pipeline refuses a reference of (width, height) in pixels; None if all take it."""
    if min(size) < SHORTEST:
        return f"{size[0]} x {size[1]} pixels: each side needs at least {SHORTEST}"
    if max(size) > MOST_STRETCHED * min(size):
        limit = f"the longer side may be at most {MOST_STRETCHED} times the shorter"
        return f"{size[0]} x {size[1]} pixels: {limit}"
    return None


def damage(content: bytes | None, quick: bool = False, sized: bool = True) -> str | None:
    """What is wrong with an image file; None if nothing is.

    Args:
        content: of the file; None if there is no such file.
        quick: trust a file that begins and ends as it should, without decoding it.
        sized: it is a reference, which pipelines take in some sizes only.
    """
    if not content:
        return "missing image"
    try:
        with Image.open(io.BytesIO(content)) as image:
            end, size, why = _ENDS.get(image.format), image.size, unclear(image)
        if why:
            return why
        if not (quick and end and content.rstrip(b"\0").endswith(end)):
            size = read_rgb(content).size
    except UnidentifiedImageError:
        return "not an image"
    except ValueError as error:
        return str(error)
    except Exception as error:
        return f"damaged image: {error}"
    return size_problem(size) if sized else None


def _once(look: Callable[[Path], T]) -> Callable[[Path], T]:
    """Look at each state of a file once, as its size and time of change tell states apart."""

    @lru_cache(maxsize=100_000)
    def kept(file: Path, changed: int, length: int) -> T:
        return look(file)

    @wraps(look)
    def looked(file: Path) -> T:
        about = file.stat()
        return kept(file.resolve(), about.st_mtime_ns, about.st_size)

    return looked


@_once
def looked_at(file: Path) -> tuple[int, int]:
    """The size of an image file that looks whole from outside, (width, height) as it is stored.

    Raises:
        ValueError: there is something wrong with it; the message says what.
        OSError: it cannot be read.
    """
    content = file.read_bytes()
    if problem := damage(content, quick=True, sized=False):
        raise ValueError(problem)
    with Image.open(io.BytesIO(content)) as image:
        return image.size


@_once
def read_otherwise(file: Path) -> bool:
    """Whether an image was read otherwise before transparency and more than 8 bits were known.

    Results on such an image must not be mixed with those of that time.
    """
    try:
        with Image.open(file) as image:
            if _is_deep(image):
                return True
            if not image.has_transparency_data:
                return False
            return to_rgb(image).tobytes() != image.convert("RGB").tobytes()
    except Exception:  # it is named when it is read
        return False
