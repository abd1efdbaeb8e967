"""Files that are either whole or absent: atomic writes, append-only lines, locks."""

import fcntl
import glob
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

from PIL import Image

from topi.bench.io.names import checked_name as checked_name
from topi.bench.results.links import check_links, check_writable, open_plain
from topi.bench.results.validation import parse
from topi.errors import ToPiError

log = logging.getLogger(__name__)

AGAIN = "run its cell again, which sets it aside and computes it anew."


def read_bytes(path: Path | str) -> bytes:
    """The content of a plain file, see `open_plain`."""
    with open(path, "rb", opener=open_plain) as file:
        return file.read()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one sentence.

    Raises:
        ToPiError: instead of an OSError, or the path is in a read-only store.
    """
    check_writable(path)
    try:
        yield
    except OSError as error:
        raise ToPiError(
            f"Cannot write {path} ({error.strerror or error}): free some space or name another "
            "folder (store=PATH, --out PATH)."
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


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, in one step; what UTF-8 cannot hold stands there as an escape."""
    write(path, text.encode(errors="backslashreplace"))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk and not lost with a node."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numbered(folder: Path, name: str) -> list[Path]:
    """The pictures `<name>_<number>.png` of a folder, by their numbers."""
    by_number = {}
    for path in folder.glob(f"{glob.escape(name)}_*.png"):
        number = path.stem.removeprefix(f"{name}_")
        if number.isdecimal():  # `a_0_1` is of `a_0`
            by_number[int(number)] = path
    return [by_number[number] for number in sorted(by_number)]


def write_json(path: Path, content: Any) -> None:
    """Write plain data as readable JSON, in one step."""
    write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_parts(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object of JSON in one step, a line per field, as some are long lists."""
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    write(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as lines of JSON, in one step."""
    write(path, b"".join(map(_line, records)))


def _line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON; its last field is the CRC-32 of the line without this field."""
    text = json.dumps(record, ensure_ascii=False).encode()
    return b'%s, "crc32": "%08x"}\n' % (text[:-1], crc32(text)) if record else text + b"\n"


def _without_checksum(line: bytes) -> bytes | None:
    """A line without the checksum that `_line` gave it; None if it does not fit.

    Lines of earlier versions have none and stay as they are. One changed byte does not make a line
    one of these: either the name of the field or the form of its value still shows.
    """
    text, end = line[:-22] + b"}", line[-22:]
    name, value = end[3:8], end[12:20]
    if (end[:3], end[8:12], end[20:]) != (b', "', b'": "', b'"}'):
        return line
    if name != b"crc32" and value.strip(b"0123456789abcdef"):
        return line
    return text if name == b"crc32" and value == b"%08x" % crc32(text) else None


def write_image(path: Path, image: Image.Image) -> None:
    """Write an image as PNG, in one step."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write(path, buffer.getvalue())


def read_image(path: Path) -> Image.Image:
    """Read an image whole.

    Raises:
        ToPiError: the file is missing or damaged.
    """
    try:
        content = read_bytes(path)
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ToPiError(
            f"The image {path} cannot be read ({error}): run its cell again, which replaces it."
        ) from error


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line of JSON and wait until it is on disk.

    Raises:
        ToPiError: it cannot be written; the file is as before then.
    """
    line = _line(record)
    with writing(path), open(path, "ab", buffering=0, opener=open_plain) as file:
        before = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError("the disk took only a part of the line")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def _content(path: Path) -> bytes:
    """`read_bytes`, with an error that says what cannot be read.

    Raises:
        ToPiError: it is missing, a folder, a link, a pipe or a device, or cannot be read.
    """
    try:
        return read_bytes(path)
    except OSError as error:
        raise ToPiError(f"{path} cannot be read ({error.strerror}).") from error


def scan_lines(path: Path, kind: Any = dict[str, Any]) -> list[dict[str, Any] | None]:
    """`read_lines`, with None for every damaged line."""
    records: list[dict[str, Any] | None] = []
    for line in _split(path)[0]:
        try:
            records.append(_record(line, kind, path))
        except ToPiError:
            records.append(None)
    return records


def _split(path: Path) -> tuple[list[bytes], int]:
    """The whole lines of a file and the bytes of a torn last one; nothing if it is not there."""
    if not os.path.lexists(path):
        return [], 0
    *lines, rest = _content(path).split(b"\n")
    return lines, len(rest)


def _record(line: bytes, kind: Any, what: Path | str) -> Any:
    if (text := _without_checksum(line)) is None:
        raise ToPiError(f"{what} is damaged, its checksum does not fit. To repair: {AGAIN}")
    return parse(text, kind, what, AGAIN)


def read_lines(path: Path, kind: Any = dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, without a torn last one; none if there is no file.

    Args:
        kind: of the records, as for `topi.bench.results.validation.parse`.

    Raises:
        ToPiError: a line is damaged or not of this kind.
    """
    lines = enumerate(_split(path)[0], 1)
    return [_record(line, kind, f"Line {number} of {path}") for number, line in lines]


def plain_lines(path: Path) -> bytes:
    """The lines of a file that must be whole, without their checksums.

    Raises:
        ToPiError: a line is damaged, or the last one torn.
    """
    lines, torn = _split(path)
    texts = [_without_checksum(line) for line in lines]
    if torn or None in texts:
        raise ToPiError(f"{path} has a torn or damaged line. To repair: {AGAIN}")
    return b"".join(text + b"\n" for text in texts if text is not None)


def read_json(path: Path, kind: Any = dict[str, Any], again: str = AGAIN) -> dict[str, Any]:
    """Read an object of JSON.

    Args:
        kind: of the object, and `again`: as for `topi.bench.results.validation.parse`.

    Raises:
        ToPiError: the file is missing, damaged or not of this kind.
    """
    return parse(_content(path), kind, path, again)


def drop_torn_line(path: Path) -> bool:
    """Cut off a last line that a killed process left unfinished. True if there was one."""
    torn = _split(path)[1]
    if torn:
        with writing(path), open(path, "r+b", opener=open_plain) as file:
            file.truncate(path.stat().st_size - torn)
    return bool(torn)


def resume_lines(path: Path, kind: Any = dict[str, Any]) -> list[dict[str, Any]]:
    """The records that a killed process left, for one that appends the rest; makes the folder.

    Raises:
        ToPiError: a line before the last is damaged, or the folder cannot be made.
    """
    with writing(path):
        check_links(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
    if drop_torn_line(path):
        log.warning("dropped an unfinished last line of %s", path)
    return read_lines(path, kind)


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
    """True if a process holds this lock now."""
    try:
        with open(path, opener=open_plain) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except ToPiError:  # a link is nobody's lock
        return False
    except BlockingIOError:
        return True
    except OSError:  # it is not there, or no file
        return False
    return False
