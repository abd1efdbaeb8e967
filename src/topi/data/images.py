"""Image files as they come: whole or damaged."""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

#: What a complete file ends with, by format.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


def read_rgb(content: bytes) -> Image.Image:
    """Decode an image to RGB, the way up that its camera says.

    Raises:
        ValueError: it cannot be decoded; the message says why.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"damaged image: {error}") from error


def damage(content: bytes | None, quick: bool = False) -> str | None:
    """What is wrong with an image file; None if nothing is.

    Args:
        content: of the file; None if there is no such file.
        quick: trust a file that begins and ends as it should, without decoding it.
    """
    if not content:
        return "missing image"
    try:
        if quick:
            with Image.open(io.BytesIO(content)) as image:
                end = _ENDS.get(image.format)
            if end and content.rstrip(b"\0").endswith(end):
                return None
        read_rgb(content)
    except UnidentifiedImageError:
        return "not an image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    return None
