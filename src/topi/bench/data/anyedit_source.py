"""Where AnyEdit's pairs lie: the folders of AnyEdit-Test, or parquet files here or on the hub.

Rows are indexed first, by id and type alone, and then read: nobody has to fetch 218 GB.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from rich.progress import track

from topi.bench.data.anyedit_types import edit_type
from topi.bench.data.list_paths import inside
from topi.bench.io.escape import rich_markup
from topi.errors import ToPiError

LIST = "edit_result.json"
#: Rows that are read together, so that those of one row group are fetched once.
READ_AT_ONCE = 50
#: AnyEdit-Test says "edit" where the hub says "edit_instruction".
INSTRUCTION = ("edit_instruction", "edit instruction", "edit")


@dataclass(frozen=True)
class Key:
    """A row before it is read. `type` is as spelled in the source; `at` is where the row lies."""

    id: str
    type: str
    at: tuple

    @property
    def known_type(self) -> str | None:
        return edit_type(self.type)


@dataclass(frozen=True)
class Row:
    """A row as read: encoded images, None where there is none, or where it was not asked for.

    `visual` is the second image of visual edits. The edited image is not read by default: pruned
    runs are compared with the full-context output, and for some types its shape is another one.
    """

    instruction: str
    image: bytes | None
    visual: bytes | None
    edited: bytes | None = None


class Source(Protocol):
    """A place with rows."""

    name: str

    def keys(self, types: Collection[str] | None = None) -> list[Key]:
        """The rows; those of other types than `types` may be left out."""

    def rows(
        self, keys: Iterable[Key], edited: bool = False, visual: bool = True
    ) -> Iterator[tuple[Key, Row]]:
        """The rows of some keys, in the order of the keys."""


def _given(value: Any) -> Any:
    """None for what AnyEdit writes for nothing."""
    return None if value in (None, "", "None", "none") else value


def _writable(text: str) -> str:
    """Half of a surrogate pair, which JSON may hold and UTF-8 may not, as its escape."""
    return text.encode(errors="backslashreplace").decode()


def _instruction(row: Mapping[str, Any]) -> str:
    return str(next((v for k in INSTRUCTION if (v := _given(row.get(k)))), "")).strip()


# ------------------------------------------------------------------------------- AnyEdit-Test
class TestFolder:
    """AnyEdit-Test: `anybench/<type>/edit_result.json` somewhere below `path`, and the images.

    Images are named relative to the folder that holds `anybench`, to the type's folder, or to
    `path`; the first that exists counts. Other files are refused unless `outside` is true.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    def __init__(self, path: Path, lists: Iterable[Path], outside: bool = False):
        self.path, self.name, self.outside = path, "AnyEdit-Test", outside
        self.lists = sorted(lists)
        self._rows: dict[tuple, tuple[Path, Mapping]] = {}

    def keys(self, types: Collection[str] | None = None) -> list[Key]:
        keys = []
        for file in self.lists:
            try:
                rows = json.loads(file.read_text(encoding="utf-8-sig"))  # may begin with a mark
            except (OSError, ValueError, RecursionError):
                rows = None
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ToPiError(f"{file} is no list of edits in JSON: unpack or download it again")
            for number, row in enumerate(rows):
                kind = str(_given(row.get("edit_type")) or file.parent.name)
                stem = PurePosixPath(str(_given(row.get("image_file")) or number)).stem
                at = (str(file.relative_to(self.path)), number)
                self._rows[at] = file.parent, row
                keys.append(Key(*map(_writable, (stem, kind)), at))
        return keys

    def rows(
        self, keys: Iterable[Key], edited: bool = False, visual: bool = True
    ) -> Iterator[tuple[Key, Row]]:
        wanted = {"image_file": True, "visual_input": visual, "edited_file": edited}
        for key in keys:
            folder, row = self._rows[key.at]
            images = (
                self._bytes(folder, row.get(name)) if asked else None
                for name, asked in wanted.items()
            )
            yield key, Row(_instruction(row), *images)

    def _bytes(self, folder: Path, name: Any) -> bytes | None:
        if _given(name) is None or not isinstance(name, str):
            return None
        for base in (folder.parent.parent, folder.parent, folder, self.path):
            try:
                if (file := inside(base, name, self.outside)).is_file():  # no pipe
                    return file.read_bytes()
            except (OSError, ValueError):  # not there, a folder, or no name for a file
                continue
        return None


# ------------------------------------------------------------------------------------ parquet
class ParquetFiles:
    """Parquet files in the hub's schema; `files` are paths on the fsspec file system `system`."""

    def __init__(self, system: Any, files: Iterable[str], name: str):
        self.system, self.files, self.name = system, sorted(files), name

    def keys(self, types: Collection[str] | None = None) -> list[Key]:
        files = [f for f in self.files if types is None or _split_type(f) in (None, *types)]
        title = rich_markup(f"{self.name}: ids")
        shown = track(files, title, transient=True, disable=len(files) < 4)
        return [key for file in shown for key in self.keys_of(file)]

    def keys_of(self, file: str) -> list[Key]:
        """The rows of one file.

        Raises:
            ToPiError: it is damaged, or has other columns.
        """
        keys = []
        stem = PurePosixPath(file).name.split(".")[0]
        with self._open(file) as parquet:
            names = set(parquet.schema_arrow.names)
            if "image_file" not in names or not names & set(INSTRUCTION):
                raise ToPiError(
                    f"{file} has the columns {', '.join(sorted(names))}; AnyEdit's are image_id, "
                    "edit_instruction, edit_type, image_file, edited_file, visual_input"
                )
            wanted = [n for n in ("image_id", "edit_type") if n in names]
            for group in range(parquet.num_row_groups):
                for number, row in enumerate(self._read(parquet, file, group, wanted)):
                    # anyedit-split has one split per type, which names the file.
                    kind = str(_given(row.get("edit_type")) or stem.split("-")[0])
                    name = str(_given(row.get("image_id")) or f"{stem}-{group}-{number}")
                    keys.append(Key(name, kind, (file, group, number)))
        return keys

    def rows(
        self, keys: Iterable[Key], edited: bool = False, visual: bool = True
    ) -> Iterator[tuple[Key, Row]]:
        images = {"image_file": True, "visual_input": visual, "edited_file": edited}
        columns = [*INSTRUCTION, *(name for name, asked in images.items() if asked)]
        for keys_of_a_read in batched(keys, READ_AT_ONCE):
            found: dict[tuple, Row] = {}
            places = sorted({key.at[:2] for key in keys_of_a_read})
            for file, groups in groupby(places, key=lambda place: place[0]):
                with self._open(file) as parquet:
                    known = [name for name in columns if name in parquet.schema_arrow.names]
                    for _, group in groups:
                        table = self._read(parquet, file, group, known)
                        for key in keys_of_a_read:
                            if key.at[:2] == (file, group):
                                found[key.at] = _row(table[key.at[2]], images)
            yield from ((key, found[key.at]) for key in keys_of_a_read)

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with ExitStack() as stack:
            try:
                # Columns lie apart: reading ahead would fetch the images between them.
                handle = stack.enter_context(self.system.open(file, "rb", cache_type="none"))
                parquet = pq.ParquetFile(handle)
            except Exception as error:  # of Arrow, of the disk, or of the network
                raise ToPiError(
                    f"{file} is no whole parquet file ({_first_line(error)}): download it again; "
                    "`topi data check FOLDER` finds all such files"
                ) from error
            yield parquet

    def _read(self, parquet: Any, file: str, group: int, columns: list[str]) -> list[dict]:
        try:
            return parquet.read_row_group(group, columns=columns).to_pylist()
        except Exception as error:
            raise ToPiError(
                f"row group {group} of {file} cannot be read ({_first_line(error)}): download it "
                "again"
            ) from error


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of up to `size` items; as lazy as that allows."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _split_type(file: str) -> str | None:
    """The type of all rows, where a file is of a split that has one type: anyedit-split."""
    return edit_type(PurePosixPath(file).name.split(".")[0].split("-")[0])


def _row(row: Mapping[str, Any], images: Mapping[str, bool]) -> Row:
    return Row(_instruction(row), *(_encoded(row.get(name)) for name in images))


def _encoded(image: Any) -> bytes | None:
    """Of the hub's {bytes, path}, or of plain bytes."""
    if isinstance(image, Mapping):
        image = image.get("bytes")
    return image if isinstance(image, bytes) else None


def open_source(path: str | Path, revision: str | None = None, outside: bool = False) -> Source:
    """The source at a local folder or parquet file, or at a hub id.

    A hub id is `owner/name`, or `owner/name/<glob>`. `outside`: see `TestFolder`.

    Raises:
        ToPiError: there is nothing of the kind, or the revision of a hub id is not pinned.
    """
    folder = Path(path)
    if folder.is_dir() or folder.is_file():
        if lists := list(filter(Path.is_file, folder.rglob(LIST))):  # no pipe
            return TestFolder(folder, lists, outside)
        files = [folder] if folder.is_file() else filter(Path.is_file, folder.rglob("*.parquet"))
        if files := [str(f) for f in files if f.suffix == ".parquet" and f.name[0] != "."]:
            from fsspec.implementations.local import LocalFileSystem

            return ParquetFiles(LocalFileSystem(), files, "parquet")
        raise ToPiError(
            f"{folder} holds neither anybench/<type>/{LIST} (AnyEdit-Test) nor *.parquet files"
        )
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/(.+))?", str(path))
    if not match or folder.is_absolute():
        raise ToPiError(f"there is no folder {path}")
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ToPiError(
            f"there is no folder {path}; if it is a data set on the hub, pin it: "
            "data.revision=<the 40 hex digits of a commit>"
        )
    return _hub(match[1], revision, match[2] or "**/*.parquet")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _hub(name: str, revision: str, pattern: str) -> ParquetFiles:
    from huggingface_hub import HfFileSystem

    system = HfFileSystem()
    try:
        files = system.glob(f"datasets/{name}@{revision}/{pattern}")
    except Exception as error:  # whatever the network has in store
        raise ToPiError(
            f"{name}@{revision[:8]} cannot be reached on the hub ({_first_line(error)}): go online "
            f"or fetch it with `hf download --repo-type dataset {name}` and give data.path the "
            "folder"
        ) from error
    if not files:
        raise ToPiError(f"{name}@{revision[:8]} has no file {pattern}")
    return ParquetFiles(system, files, f"{name}@{revision}")
