"""AnyEdit (arXiv 2411.15738), the paper's benchmark: which pairs are taken, and kept."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from topi.bench.data.anyedit_source import Key, Row, Source, open_source
from topi.bench.data.anyedit_types import CATEGORY, types_of
from topi.bench.data.images import damage, read_otherwise, read_rgb
from topi.bench.data.sample import CATEGORIES, VISUAL, EditSample
from topi.bench.io.names import file_name, is_unicode
from topi.errors import ToPiError

log = logging.getLogger(__name__)

SPLITS = ("calibration", "evaluation")
SCHEMA = 2


class AnyEdit:
    """Pairs of AnyEdit, the first `per_type` of each type by image id; broken rows are left out.

    The last pairs of each type are kept for calibration: `calibration` in all, as many of each
    category, none of whose images evaluation sees. The first time, the selection is read, checked
    and written to `cache`: a manifest of ids and hashes, and a copy of the images taken. From then
    on that is the data set, and every image is held against its hash. Rows that were left out are
    logged with their reasons each time.

    Samples come in turn from the categories and, within these, from the types, so the first
    `count` are as stratified as the source allows. They have no target: see `Row`.

    Args:
        path: see `open_source`.
        cache: a folder.
        split: calibration or evaluation.
        per_type: pairs per type in evaluation; all if None.
        visual: take the visual types, with two references each, instead of those of Table 1.
        calibration: pairs for calibration.
        count: samples; all if None.
        revision: commit of a hub id.
        outside: allow lists of AnyEdit-Test to name images outside their folder.

    Raises:
        ToPiError: nothing usable is there, or it is not what the manifest says.
    """

    def __init__(
        self,
        path: str | Path,
        cache: str | Path,
        split: str = "evaluation",
        per_type: int | None = 50,
        visual: bool = False,
        calibration: int = 48,
        count: int | None = None,
        revision: str | None = None,
        outside: bool = False,
    ):
        groups = 1 if visual else len(CATEGORIES)
        if split not in SPLITS:
            raise ToPiError(f"split={split!r} is unknown; choose from {', '.join(SPLITS)}")
        if calibration < 0 or calibration % groups:
            raise ToPiError(f"calibration={calibration} must be a multiple of {groups}")
        for name, value in (("per_type", per_type), ("count", count)):
            if value is not None and value < 1:
                raise ToPiError(f"{name}={value} must be at least 1")
        settings = {
            "schema": SCHEMA,
            "path": str(path),
            "revision": revision,
            "per_type": per_type,
            "visual": visual,
            "calibration": calibration,
        }
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = Path(cache) / f"anyedit-{key}"
        self.file = self.folder / "manifest.json"
        if not self.file.is_file():
            source = open_source(path, revision, outside)
            _write_selection(source, settings, self.folder, self.file)
        manifest = _read_manifest(self.file)
        log.info("the pairs of %s; delete %s to select anew", self.file, self.folder)
        self.skipped: list[dict[str, str]] = manifest["skipped"]
        _tell(manifest["source"], self.skipped)
        self.entries = [entry for entry in manifest["entries"] if entry["split"] == split][:count]
        self._expect(split, settings, manifest)

    def _expect(self, split: str, settings: dict, manifest: dict) -> None:
        groups = (VISUAL,) if settings["visual"] else CATEGORIES
        share = settings["calibration"] // len(groups)
        found = Counter(e["category"] for e in manifest["entries"] if e["split"] == "calibration")
        short = [f"{group} ({found[group]})" for group in groups if found[group] < share]
        if split == "calibration" and (short or not share):
            raise ToPiError(
                f"{settings['path']} has not the {share} calibration pairs that data.calibration="
                f"{settings['calibration']} asks of {', '.join(short or groups)}: fetch more of "
                "it, or ask for another number"
            )
        if not self.entries:
            raise ToPiError(f"{settings['path']} has no usable pair left for {split}")

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the samples; no picture is read."""
        return [file_name(f"anyedit-{entry['id']}") for entry in self.entries]

    def __getitem__(self, index: int) -> EditSample:
        entry = self.entries[index]
        return EditSample(
            id=self.ids[index],
            category=entry["category"],
            task=entry["type"],
            instruction=entry["instruction"],
            references=tuple(self._reference(entry, image) for image in entry["images"]),
        )

    def _reference(self, entry: dict, image: dict[str, str]) -> Image.Image:
        try:
            return read_rgb(self._content(entry, image))
        except ValueError as error:
            raise ToPiError(
                f"the image {self.folder / 'images' / image['sha256']} of {entry['id']} cannot be "
                f"read ({error}): delete {self.folder} to select and check the data anew"
            ) from error

    def _content(self, entry: dict, image: dict[str, str]) -> bytes:
        file = self.folder / "images" / image["sha256"]
        content = file.read_bytes() if file.is_file() else None
        if content is None or hashlib.sha256(content).hexdigest() != image["sha256"]:
            raise ToPiError(
                f"the image {file} of {entry['id']} is {'changed' if content else 'missing'}: "
                f"delete {self.folder} to select and check the data anew"
            )
        return content

    def fingerprint(self) -> str:
        """A hash over ids, instructions and images of the samples."""
        digest = hashlib.sha256(json.dumps(self.entries, sort_keys=True).encode())
        for name in sorted(
            {image["sha256"] for entry in self.entries for image in entry["images"]}
        ):
            file = self.folder / "images" / name
            if file.is_file() and read_otherwise(file):
                digest.update(name.encode())
        return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------- selection
def _write_selection(source: Source, settings: dict, folder: Path, file: Path) -> None:
    """Select, check, keep the images, and then write the manifest, in one step."""
    log.info("%s: selecting and checking pairs; this is done once", source.name)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)

    def keep(content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        if not (images / name).is_file():
            _write(images / name, content)
        return name

    entries, skipped = select(
        source, settings["per_type"], settings["visual"], settings["calibration"], keep
    )
    if not entries:
        reasons = (
            ", ".join(sorted({row["reason"] for row in skipped})[:5]) or "no row of these types"
        )
        raise ToPiError(f"{settings['path']} has no usable pair: {reasons}")
    content = {
        "source": source.name,
        "settings": settings,
        "counts": dict(sorted(Counter(f"{e['split']}/{e['type']}" for e in entries).items())),
        "skipped": skipped,
        "entries": entries,
    }
    content["sha256"] = _digest(content)
    used = {image["sha256"] for entry in entries for image in entry["images"]}
    for stray in images.iterdir():
        if stray.name not in used and not stray.name.startswith("."):  # another process writes
            stray.unlink()
    _write(file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def select(
    source: Source, per_type: int | None, visual: bool, calibration: int, keep
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """(entries, skipped rows with their reasons) of a source.

    Args:
        source: where the rows are.
        per_type: as of AnyEdit, with `visual` and `calibration`.
        visual: likewise.
        calibration: likewise.
        keep: takes an encoded image, gives its sha256.
    """
    groups = (VISUAL,) if visual else CATEGORIES
    by_type, skipped = _by_type(source, groups)
    edits: set[tuple] = set()
    looked_at: set[tuple] = set()

    def usable(keys: Iterable[Key], wanted: int | None, split: str, taken=frozenset()):
        found: list[dict] = []
        keys = iter(keys)
        # As many at a time as are wanted still: rows that lie together are read together.
        while more := list(islice(keys, None if wanted is None else wanted - len(found))):
            for key, row in source.rows(more, visual=visual):
                reason = _broken(row, visual)
                if reason is None:
                    hashes = [keep(image) for image in _images(row, visual)]
                    edit = (key.known_type, row.instruction, *hashes)
                    if hashes[0] in taken:
                        reason = "its image is in the calibration pairs"
                    elif edit in edits:
                        reason = "the same edit occurs twice"
                    edits.add(edit)
                looked_at.add(key.at)
                if reason is None:
                    found.append(_entry(key, row, split, hashes))
                else:
                    skipped.append(_skip(key, reason))
        return found

    kept: dict[str, list[dict]] = {}
    for group in groups:
        present = [name for name in types_of(group) if by_type[name]]
        for number, name in enumerate(present):
            share = len(range(number, calibration // len(groups), len(present)))
            # At most half of a type, so that a scarce one is not lost to evaluation.
            share = min(share, len(by_type[name]) // 2)
            kept[name] = usable(reversed(by_type[name]), share, "calibration")
    taken = {entry["images"][0]["sha256"] for entries in kept.values() for entry in entries}
    shown: dict[str, list[dict]] = {}
    for name, keys in by_type.items():
        rest = [key for key in keys if key.at not in looked_at]
        shown[name] = usable(rest, per_type, "evaluation", taken)
        if per_type and 0 < len(shown[name]) < per_type:
            apart = f", {len(kept[name])} more are for calibration" if kept.get(name) else ""
            found = (len(shown[name]), per_type, name, apart)
            log.warning("%s: %d of %d pairs of %s%s", source.name, *found)
    return [*_stratified(kept, groups), *_stratified(shown, groups)], skipped


def _by_type(
    source: Source, groups: Iterable[str]
) -> tuple[dict[str, list[Key]], list[dict[str, str]]]:
    """The keys of each edit type in `groups`, with unique ids, and the rows of unknown types."""
    by_type: dict[str, list[Key]] = {name: [] for g in groups for name in types_of(g)}
    skipped: list[dict[str, str]] = []
    names: set[tuple[str, str]] = set()
    for key in sorted(source.keys(by_type), key=lambda k: (k.id, k.at)):
        if key.known_type is None:
            skipped.append(_skip(key, f"unknown edit type {key.type!r}"))
        elif key.known_type in by_type:
            # One image may have several edits of a type.
            name, number = key.id, 1
            while (key.known_type, name) in names:
                number += 1
                name = f"{key.id}-{number}"
            names.add((key.known_type, name))
            by_type[key.known_type].append(replace(key, id=name))
    return by_type, skipped


def _images(row: Row, visual: bool) -> list[bytes | None]:
    return [row.image, row.visual] if visual else [row.image]


def _broken(row: Row, visual: bool) -> str | None:
    if not row.instruction:
        return "no instruction"
    if not is_unicode(row.instruction):
        return "its instruction is no valid Unicode"
    problems = [damage(image) for image in _images(row, visual)]
    return next((p if n == 0 else f"second image: {p}" for n, p in enumerate(problems) if p), None)


def _skip(key: Key, reason: str) -> dict[str, str]:
    return {"id": f"{key.known_type or key.type}-{key.id}", "reason": reason}


def _entry(key: Key, row: Row, split: str, hashes: Sequence[str]) -> dict[str, Any]:
    return {
        "id": f"{key.known_type}-{key.id}",
        "split": split,
        "category": CATEGORY[key.known_type],
        "type": key.known_type,
        "instruction": row.instruction,
        "images": [{"sha256": name} for name in hashes],
    }


def _stratified(by_type: dict[str, list[dict]], groups: Iterable[str]) -> Iterator[dict]:
    """In turn from the categories and, within these, from the types."""
    per_group = [_in_turn([by_type.get(t, []) for t in types_of(group)]) for group in groups]
    return iter(_in_turn(per_group))


def _in_turn(lists: Iterable[list]) -> list:
    return [item for row in zip_longest(*lists) for item in row if item is not None]


# ----------------------------------------------------------------------------------- manifest
def _digest(manifest: dict) -> str:
    content = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text())
        if manifest["sha256"] == _digest(manifest):
            return manifest
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ToPiError(f"{file} was changed or damaged: delete {file.parent} to select the data anew")


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ToPiError(f"cannot write {file} ({error.strerror}): free some space") from error


def _tell(source: str, skipped: Sequence[dict[str, str]]) -> None:
    """Log what was left out, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in skipped:
        reasons.setdefault(row["reason"], []).append(row["id"])
    for reason, ids in sorted(reasons.items()):
        names = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        log.warning("%s: %d left out, %s: %s", source, len(ids), reason, names)
