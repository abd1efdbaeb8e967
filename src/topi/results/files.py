"""Files that are either whole or absent: atomic writes, append-only lines, locks."""

import fcntl
import io
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from topi.errors import ToPiError
from topi.results.links import check_links, open_plain

log = logging.getLogger(__name__)


def read_bytes(path: Path | str) -> bytes:
    """The content of a plain file, see `open_plain`."""
    with open(path, "rb", opener=open_plain) as file:
        return file.read()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one sentence.

    Raises:
        ToPiError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ToPiError(
            f"Cannot write {path} ({error.strerror or error}): free some space or name another "
            "folder with store=PATH."
        ) from error


def write(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old content or the new, never a part.

    Raises:
        ToPiError: it cannot be written; nothing is left behind then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        check_links(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # of a process that had our number
        try:
            with open(partial, "xb", opener=open_plain) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk and not lost with a node."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_schema(path: Path | str, schema: int, what: str, again: str) -> dict[str, Any]:
    """A JSON object that says which schema it has; the rest of it.

    Args:
        what: it is to be, in the messages.
        again: what the user can do about it.

    Raises:
        ToPiError: there is no such file, or it is nothing of this schema.
    """
    try:
        content = json.loads(read_bytes(path))
    except OSError as error:
        why = f"The {what} {path} cannot be read ({error.strerror})"
        raise ToPiError(f"{why}: {again}") from error
    except ValueError as error:
        raise ToPiError(f"{path} is not JSON ({error}): {again}") from error
    said = content.pop("schema", None) if isinstance(content, dict) else None
    if said != schema:
        raise ToPiError(f"{path} is no {what} of schema {schema} (it says {said}): {again}")
    return content


def checked_name(name: Any) -> str:
    """A key or an id that becomes a part of a path: whoever wrote it, it stays in its folder.

    Raises:
        ToPiError: it is not one plain name.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or len(name) > 200
        or any(character in name for character in "/\\\0")
    ):
        raise ToPiError(
            f"{name!r} cannot name a file: what it is from, a store or a data set, is broken."
        )
    return name


def write_json(path: Path, content: Any) -> None:
    """Write plain data as readable JSON, in one step."""
    write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as lines of JSON, in one step."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write(path, "".join(lines).encode())


def write_image(path: Path, image: Image.Image) -> None:
    """Write an image as PNG, in one step."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write(path, buffer.getvalue())


def read_image(path: Path) -> Image.Image:
    """Read an image whole.

    Raises:
        ToPiError: the file is damaged.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ToPiError(
            f"The image {path} cannot be read ({error}): delete it and run again."
        ) from error


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line of JSON and wait until it is on disk.

    Raises:
        ToPiError: it cannot be written; the file is as before then.
    """
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    with writing(path), open(path, "ab", buffering=0, opener=open_plain) as file:
        before = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError("the disk took only a part of the line")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def scan_lines(path: Path) -> tuple[list[dict[str, Any] | None], int]:
    """`read_lines`, with None for every damaged line."""
    try:
        *lines, rest = read_bytes(path).split(b"\n")
    except (FileNotFoundError, IsADirectoryError):
        return [], 0
    return [_record(line) for line in lines], len(rest)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a file of JSON lines, and the bytes of a torn last line (0: none is torn).

    Raises:
        ToPiError: a line before the last is damaged.
    """
    records, torn = scan_lines(path)
    if None in records:
        raise ToPiError(
            f"Line {records.index(None) + 1} of {path} is damaged: run its cell again, which sets "
            "it aside and computes it anew."
        )
    return records, torn


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of JSON.

    Raises:
        ToPiError: the file is damaged.
    """
    if (record := _record(read_bytes(path))) is None:
        raise ToPiError(
            f"{path} is damaged: run its cell again, which sets it aside and computes it anew."
        )
    return record


def drop_torn_line(path: Path) -> bool:
    """Cut off a last line that a killed process left unfinished. True if there was one."""
    torn = scan_lines(path)[1]
    if torn:
        with writing(path), open(path, "r+b", opener=open_plain) as file:
            file.truncate(path.stat().st_size - torn)
    return bool(torn)


def resume_lines(path: Path) -> list[dict[str, Any]]:
    """The records that a killed process left, for one that appends the rest; makes the folder.

    Raises:
        ToPiError: a line before the last is damaged, or the folder cannot be made.
    """
    with writing(path):
        check_links(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
    if drop_torn_line(path):
        log.warning("dropped an unfinished last line of %s", path)
    return read_lines(path)[0]


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file; yields whether we got it. A lock ends with its process.

    Args:
        path: the lock file; it stays.
        wait: until the holder lets go. Else give up at once, but for the moment in which
            `is_locked` may be looking.
    """
    with writing(path):
        check_links(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT)
    with open(descriptor, "a") as file:
        yield _lock(file.fileno(), wait)


def _lock(file: int, wait: bool) -> bool:
    if wait:
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


def is_locked(path: Path) -> bool:
    """Does some process hold this lock now?"""
    try:
        with open(path, opener=open_plain) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, ToPiError):  # a link is nobody's lock
        return False
    except BlockingIOError:
        return True
    return False
