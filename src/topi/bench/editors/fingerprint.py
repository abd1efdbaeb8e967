"""What names the weights of a model: a commit of the hub, or the content of files."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

log = logging.getLogger(__name__)

DOCUMENTS = {".md", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".pdf"}
"""Suffixes of files in a model's folder that no pipeline loads."""
LARGE = 64 * 2**20
"""Bytes from which on the hash of a file is kept."""
READERS = 4
"""Files that are hashed at once."""


def hub_fingerprint(hub_id: str, revision: str | None) -> str:
    """The hub id and commit of downloaded weights, or the content of a local folder.

    A branch moves, so what it was when the weights were loaded is looked up in the hub's cache.
    """
    if Path(hub_id).is_dir():
        return folder_fingerprint(Path(hub_id))
    revision = revision or "main"
    found = try_to_load_from_cache(hub_id, "model_index.json", revision=revision)
    commit = Path(found).parent.name if isinstance(found, str) else revision
    return f"{hub_id}@{commit}"


def folder_fingerprint(folder: Path) -> str:
    """A hash of 16 digits over the names and contents of a model's files.

    Weights of any format, adapters and all configurations count; hidden files, pictures and
    documents do not. The hash of a large file is kept, see `kept_hash`.
    """
    found = sorted(model_files(folder))
    size = sum(file.stat().st_size for file in found)
    if size >= 16 * LARGE:
        log.info("hashing %.0f GB of weights in %s, once per file", size / 1e9, folder)
    with ThreadPoolExecutor(READERS) as readers:
        hashes = list(readers.map(kept_hash, found))
    names = [str(file.relative_to(folder)) for file in found]
    return hashlib.sha256(json.dumps([names, hashes]).encode()).hexdigest()[:16]


def model_files(folder: Path) -> Iterator[Path]:
    """All files below `folder`, through links, that may belong to a model."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
        names = [] if real in seen else names
        seen.add(real)
        for file in (Path(place, name) for name in names if name[0] != "."):
            if file.suffix.lower() not in DOCUMENTS and file.is_file():
                yield file


def kept_hash(file: Path) -> str:
    """The SHA-256 of a file; that of a large one is kept for as long as the file is not touched.

    It is kept in the user's cache folder under path, inode, size and times. The time of the last
    change of status is one of them, which no program can set back. What cannot be kept is computed.
    """
    about = file.stat()
    if about.st_size < LARGE:
        return file_hash(file)
    known = (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    name = hashlib.sha256(f"{file.resolve()} {known}".encode()).hexdigest()
    kept = hash_folder() / name
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch(r"[0-9a-f]{64}", text := kept.read_text("ascii")):
            return text
    found = file_hash(file)
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{name}.{os.getpid()}.part")
        partial.write_text(found)
        partial.replace(kept)
    return found


def hash_folder() -> Path:
    """Where hashes of large files are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topi" / "hashes"


def file_hash(file: Path) -> str:
    """The SHA-256 of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
