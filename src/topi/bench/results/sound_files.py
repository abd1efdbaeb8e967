"""Whether pictures and archives are whole: their checksums fit; nothing is decoded."""

import io
import logging
import stat
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image

from topi.bench.results.files import read_bytes

log = logging.getLogger(__name__)


def is_sound_image(path: Path) -> bool:
    """Whether an image is there and its checksums fit; nothing is decoded."""
    return _is_sound(path, _verify_image)


def is_sound_archive(path: Path) -> bool:
    """Whether a zip file, such as an .npz, is there and its checksums fit."""
    return _is_sound(path, _verify_archive)


def _is_sound(path: Path, verify: Callable[[io.BytesIO], None]) -> bool:
    try:
        about = path.lstat()
    except OSError:
        return False
    regular = stat.S_ISREG(about.st_mode)
    return regular and _verified(path, verify, about.st_mtime_ns, about.st_size)


def _verify_image(content: io.BytesIO) -> None:
    with Image.open(content) as image:
        image.verify()


def _verify_archive(content: io.BytesIO) -> None:
    with zipfile.ZipFile(content) as archive:
        if (name := archive.testzip()) is not None:
            raise ValueError(f"{name} in it does not fit its checksum")


@lru_cache(maxsize=100_000)
def _verified(path: Path, verify: Callable[[io.BytesIO], None], changed: int, size: int) -> bool:
    """Whether a file is sound; it is read once, and again when it has changed."""
    try:
        verify(io.BytesIO(read_bytes(path)))
    except Exception as error:  # a torn archive raises whatever its torn part suggests
        log.warning("%s is damaged: %s", path, error)
        return False
    return True
