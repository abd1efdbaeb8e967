"""A store small enough to be committed: what the report shows, and a few pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from topi.bench.report.paper.artefacts import FIG5, FIG10, OURS, TEACACHE
from topi.bench.report.paper.build import NEEDS, labels_of, suites_of
from topi.bench.report.paper.paper_figures import SEVERAL, shown_samples
from topi.bench.report.paper.suite import Run, suites
from topi.bench.results import files
from topi.bench.results.bench_run import load_benches
from topi.bench.results.keys import digest
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
    """Copy the complete cells of the paper and the leaderboard, newest data and weights only.

    Rows and timed runs are copied whole, and manifests as `published`; masks of the cells that
    Figure 7 shows; pictures of `per_category` samples of each category, of the cells that figures
    show, and `SEVERAL` times as many for Figure 9; probes with the references of their first
    sample; benchmarks whole.

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
    with _replacing(out) as part:
        for key in runs:
            _copy_cell(store.cell(key), part)
        for key, samples in pictured:
            _copy_pictures(store, store.cell(key), samples, part)
        _copy_studies(root, part)
        files.write_json(part / MARK, _mark(part))
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
    if files.read_json(out / MARK) != _mark(out):
        raise ToPiError(
            f"{out} does not hold the files that `topi export` wrote there: some were added or "
            "removed. Name another folder with --out, or remove it yourself."
        )


def _mark(folder: Path) -> dict[str, Any]:
    """What the mark of an export says of its other files."""
    names = []
    for place, folders, found in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        empty = [""] if not folders and not found else []
        names += [(Path(place) / name).relative_to(folder) for name in (*found, *links, *empty)]
    others = sorted(name.as_posix() for name in names if name != Path(MARK))
    return {"schema": 1, "files": len(others), "names": digest(others)}


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
    found = suites(store)
    runs: dict[str, Run] = {}
    pictured: list[tuple[str, list[str]]] = []
    for name in (*NEEDS, "leaderboard"):
        for suite in suites_of(name, found):
            whole = {x: run for x in labels_of(name, [suite]) if (run := suite.run(x)).complete}
            runs |= {key: run for run in whole.values() for key in run.keys}
            shown = [run for label, run in whole.items() if label in PICTURED]
            if name.startswith("fig") and shown:
                each = SEVERAL * per_category if name == "fig9" else per_category
                samples = shown_samples(store, shown, each)
                pictured += [(key, samples) for run in shown for key in run.keys]
    return runs, pictured


def _copy_cell(cell: Cell, out: Path) -> None:
    """Its records, and its masks if Figure 7 shows it."""
    masks = (cell.path / "masks").glob("*.json") if OURS in cell.labels else ()
    records = (cell.path / name for name in RECORDS)
    _copy([*records, *masks], cell.path, out / "cells" / cell.key)


def _copy_pictures(store: Store, cell: Cell, samples: list[str], out: Path) -> None:
    """The outputs of a cell, and the full-context outputs and references beside them."""
    full = store.full(cell.manifest["full_key"])
    outputs = [cell.path / "images" / f"{sample}.png" for sample in samples]
    _copy(outputs, cell.path, out / "cells" / cell.key)
    shared = [full.image_file(sample) for sample in samples]
    shared += [path for sample in samples for path in full.reference_files(sample)]
    _copy([full.path / "manifest.json", *shared], full.path, out / "full" / full.key)


def _copy_studies(root: Path | str, out: Path) -> None:
    """All benchmarks, and the latest probe of each model."""
    for bench in load_benches(root):
        records = [bench.path / "manifest.json", bench.path / "rows.jsonl"]
        _copy(records, bench.path, out / "bench" / bench.key)
    for probe in load_probes(root):
        first = probe.rows[0]["sample"]
        records = [probe.path / "manifest.json", probe.rows_file, *probe.path.glob("maps/*.npz")]
        records += files.numbered(probe.path / "references", first)
        _copy(records, probe.path, out / "probe" / probe.key)


def _copy(paths: Iterable[Path], base: Path, out: Path) -> None:
    """Copy the files that are there to the same place under `out`, manifests as `published`."""
    for path in paths:
        if path.is_file():
            to = out / path.relative_to(base)
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "manifest.json":
                files.write_json(to, published(files.read_json(path)))
            elif path.name == "complete.json":  # most pictures stay behind
                files.write_json(to, files.read_json(path) | {"pictures": False})
            else:
                to.write_bytes(files.read_bytes(path))


def published(content: Any) -> Any:
    """Plain data without what is nobody's business: names of hosts, and folders of a machine."""
    if isinstance(content, dict):
        return {name: published(value) for name, value in content.items() if name != "host"}
    if isinstance(content, list):
        return [published(value) for value in content]
    if isinstance(content, str) and Path(content).is_absolute():
        return Path(content).name
    return content
