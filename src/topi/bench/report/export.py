"""`topi export`: what the report shows, and a few pictures, small enough to be committed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from topi.bench.report.paper.artefacts import FIG5, FIG10, OURS, TEACACHE
from topi.bench.report.paper.build import NEEDS, labels_of, suites_of
from topi.bench.report.paper.entries import Run
from topi.bench.report.paper.paper_figures import SEVERAL, shown_samples
from topi.bench.report.paper.suite import suites
from topi.bench.results import files
from topi.bench.results.bench_run import load_benches
from topi.bench.results.keys import digest
from topi.bench.results.packed import pack
from topi.bench.results.probe_run import load_probes
from topi.bench.results.store import Cell, Store
from topi.errors import ToPiError

RECORDS = ("manifest.json", "rows.jsonl", "latency.jsonl", "complete.json")
PICTURED = [*FIG5.values(), *FIG10.values(), *TEACACHE.values()]
"""The labels whose pictures Figures 5, 6, 7, 9 and 10 show."""
MARK = "export.json"
"""The file that marks an export; it holds the number of the other files and a hash of their names.
"""


def export(root: Path | str, out: Path | str, per_category: int = 1) -> Path:
    """Write the complete cells of the paper and the leaderboard as a few Parquet files.

    Only cells of the newest data and weights count. Rows and timed runs are whole, manifests as
    `published`. Masks are those of the cells that Figure 7 shows. Pictures are those of
    `per_category` samples of each category, of the cells that figures show, and `SEVERAL` times as
    many for Figure 9. Probes have the references of their first sample. Benchmarks are whole. The
    files are those of `topi.bench.results.packed`; every command that reads a store reads them.

    Args:
        root: the folder of a `Store`.
        out: a folder that is not there yet, an empty one, or an earlier export, which is replaced.

    Raises:
        ToPiError: there is nothing to export, `out` holds anything else than an earlier export, or
            one of the two folders is in the other.
    """
    out = Path(os.path.realpath(out))
    _check_apart(Path(os.path.realpath(root)), out)
    check_replaceable(out)
    store = Store(root)
    runs, pictured = _chosen(store, per_category)
    if not runs:
        raise ToPiError(f"{root} has no complete cell of the paper: see experiments/README.md.")
    paths = [path for key in runs for path in _records(store.cell(key))]
    paths += [p for key, samples in pictured for p in _pictures(store, store.cell(key), samples)]
    paths += _studies(store.root)
    chosen = sorted({path for path in paths if path.is_file()})
    with _replacing(out) as part:
        pack({str(path.relative_to(store.root)): _content(path) for path in chosen}, part)
        files.write_json(part / MARK, {"schema": 2, **_names(part)})
    return out


def _check_apart(root: Path, out: Path) -> None:
    """Raise a ToPiError if one of two resolved folders is the other or holds it."""
    if root == out or root in out.parents or out in root.parents:
        raise ToPiError(
            f"The store {root} and --out {out} are one folder, or one is in the other: name a "
            "folder apart from the store with --out."
        )


def check_replaceable(out: Path) -> None:
    """Raise a ToPiError unless this folder is absent, empty, or exactly what an export wrote."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MARK).is_file():
        raise ToPiError(
            f"{out} is not an export: it holds no {MARK}. Name another folder with --out, or "
            "remove it yourself."
        )
    mark = files.read_json(out / MARK)
    if {name: mark.get(name) for name in ("files", "names")} != _names(out):
        raise ToPiError(
            f"{out} does not hold the files that `topi export` wrote there: some were added or "
            "removed. Name another folder with --out, or remove it yourself."
        )


def _names(folder: Path) -> dict[str, Any]:
    """What the mark of an export says of its other files: their number, a hash of their names."""
    names = []
    for place, folders, plain in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        empty = [""] if not folders and not plain else []
        names += [(Path(place) / name).relative_to(folder) for name in (*plain, *links, *empty)]
    others = sorted(name.as_posix() for name in names if name != Path(MARK))
    return {"files": len(others), "names": digest(others)}


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place once it is filled.

    Raises:
        ToPiError: it cannot be written; an earlier export is whole then.
    """
    part, old = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("part", "old"))
    try:
        part.mkdir(parents=True)
        yield part
        if out.exists():
            check_replaceable(out)
            out.rename(old)
        part.rename(out)
    except OSError as error:
        raise ToPiError(
            f"Cannot write {out} ({error.strerror or error}): free some space or name another "
            "folder with --out."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _chosen(store: Store, per_category: int) -> tuple[dict[str, Run], list[tuple[str, list[str]]]]:
    """The cells to export by their keys, and the keys of those with pictures, with the samples."""
    models = suites(store)
    runs: dict[str, Run] = {}
    pictured: list[tuple[str, list[str]]] = []
    for name in (*NEEDS, "leaderboard"):
        for suite in suites_of(name, models):
            whole = {x: run for x in labels_of(name, [suite]) if (run := suite.run(x)).complete}
            runs |= {key: run for run in whole.values() for key in run.keys}
            shown = [run for label, run in whole.items() if label in PICTURED]
            if name.startswith("fig") and shown:
                count = SEVERAL * per_category if name == "fig9" else per_category
                samples = shown_samples(store, shown, count)
                pictured += [(key, samples) for run in shown for key in run.keys]
    return runs, pictured


def _records(cell: Cell) -> Iterator[Path]:
    """Its records, and its masks if Figure 7 shows it."""
    yield from (cell.path / name for name in RECORDS)
    if OURS in cell.labels:
        yield from (cell.path / "masks").glob("*.json")


def _pictures(store: Store, cell: Cell, samples: list[str]) -> Iterator[Path]:
    """The outputs of a cell, and the full-context outputs and references beside them."""
    full = store.full(cell.manifest["full_key"])
    yield full.path / "manifest.json"
    for sample in samples:
        yield cell.path / "images" / f"{sample}.png"
        yield full.image_file(sample)
        yield from full.reference_files(sample)


def _studies(root: Path) -> Iterator[Path]:
    """All benchmarks, and the latest probe of each model."""
    for bench in load_benches(root):
        yield from (bench.path / "manifest.json", bench.path / "rows.jsonl")
    for probe in load_probes(root):
        yield from (probe.path / "manifest.json", probe.rows_file)
        yield from probe.path.glob("maps/*.npz")
        yield from files.numbered(probe.path / "references", probe.rows[0]["sample"])


def _content(path: Path) -> bytes:
    """What is published of a file: JSON as `published`, lines without checksums.

    Raises:
        ToPiError: it is damaged.
    """
    if path.suffix == ".jsonl":
        return files.plain_lines(path)
    if path.suffix != ".json":
        return files.read_bytes(path)
    content = files.read_json(path)
    if path.name == "complete.json":  # most pictures stay behind
        content["pictures"] = False
    return json.dumps(published(content)).encode()


def published(content: Any) -> Any:
    """Plain data without names of hosts and without folders of a machine."""
    if isinstance(content, dict):
        return {name: published(value) for name, value in content.items() if name != "host"}
    if isinstance(content, list):
        return [published(value) for value in content]
    if isinstance(content, str) and Path(content).is_absolute():
        return Path(content).name
    return content
