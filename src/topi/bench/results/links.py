"""Inside a store nothing is read or written through a symbolic link; whoever made it.

A pipe or a device in place of a file is refused everywhere.
"""

import errno
import os
import stat
from pathlib import Path

from topi.errors import ToPiError

PACKED = "manifests.parquet"
"""A file that a packed store has, see `topi.bench.results.packed`, and no other store."""
_guarded: set[Path] = set()
_read_only: dict[Path, Path] = {}
"""Read-only folder -> the export that its files come from."""


def guard(folder: Path | str, export: Path | None = None) -> Path:
    """From now on no link below this folder, a store, is followed by `open_plain`.

    The folder itself may be a link, or lie in a linked folder. Nothing is written below an export,
    see `check_writable`.

    Args:
        export: the export that the files of this folder come from.
    """
    path = Path(os.path.abspath(folder))
    _guarded.add(path)
    if export is None and (path / PACKED).exists():
        export = path
    if export is not None:
        _read_only[path] = export
    return Path(folder)


def export_of(path: Path | str) -> Path | None:
    """The export that this path belongs to, see `guard`; None if it is in none."""
    here = Path(os.path.abspath(path))
    return next((_read_only[part] for part in (here, *here.parents) if part in _read_only), None)


def check_writable(path: Path | str) -> None:
    """Raise a ToPiError if this path belongs to an export."""
    if (export := export_of(path)) is not None:
        raise ToPiError(
            f"{export} is an export, which is read-only: name another store with store=PATH or "
            "--store PATH."
        )


def linked(path: Path | str) -> bool:
    """True if this path is in a guarded folder, and is a link or in a linked folder there."""
    return any(part.is_symlink() for part in _inside(path))


def check_links(path: Path | str) -> None:
    """Raise a ToPiError if this path is `linked`."""
    if linked(path):
        raise ToPiError(
            f"{path} is a symbolic link or in a linked folder: nothing inside a store is read or "
            "written through links. Remove the link, or move what it leads to here."
        )


def _inside(path: Path | str) -> list[Path]:
    """A path and its parents, up to a guarded folder; nothing if it is in none."""
    here = Path(os.path.abspath(path))
    parts = [here]
    for parent in here.parents:
        if parent in _guarded:
            return parts
        parts.append(parent)
    return []


def open_plain(path: Path | str, flags: int) -> int:
    """An opener for `open`: a plain file, and inside a guarded folder not through a link.

    Raises:
        ToPiError: it is a link, a pipe or a device.
    """
    check_links(path)
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if _inside(path) else 0)
    strange = f"{path} is a pipe or a device, not a regular file: put a file in its place."
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:  # a pipe that nobody reads
            raise
        raise ToPiError(strange) from error
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        os.close(descriptor)
        raise ToPiError(strange)
    return descriptor
