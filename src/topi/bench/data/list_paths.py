"""A list of pictures reads files of its own folder, unless the user allows others."""

import os
from pathlib import Path

from topi.errors import ToPiError


def inside(folder: Path, name: str, outside: bool = False) -> Path:
    """The file of this name in a folder.

    Args:
        outside: the user allows files anywhere.

    Raises:
        ToPiError: the name, or a link in the folder, leads out of it.
    """
    file = folder / name
    if outside or "\0" in name:  # no file is called so
        return file
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
        raise ToPiError(
            f"the image {name} is outside {folder}: put it there, or set data.outside=true if "
            "you trust who wrote the list"
        )
    return file
