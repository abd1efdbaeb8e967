"""A store small enough to be committed: what the report shows, and a few pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from topi.errors import ToPiError
from topi.report.artefacts import FIG5, FIG10, OURS, TEACACHE
from topi.report.paper import NEEDS, labels_of, suites_of
from topi.report.paper_figures import SEVERAL, shown_samples
from topi.report.suite import Run, suites
from topi.results import files
from topi.results.bench import load_benches
from topi.results.probe import load_probes
from topi.results.store import Store

RECORDS = ("manifest.json", "rows.jsonl", "latency.jsonl", "complete.json")
PICTURED = [*FIG5.values(), *FIG10.values(), *TEACACHE.values()]
"""The labels whose pictures Figures 5, 6, 7, 9 and 10 show."""


def export(root: Path | str, out: Path | str, per_category: int = 1) -> Path:
    """Copy the complete cells of the paper and the leaderboard, newest data and weights only.

    Rows and timed runs are copied whole, and manifests as `published`; masks of the cells that
    Figure 7 shows; pictures of `per_category` samples of each category, of the cells that figures
    show, and `SEVERAL` times as many for Figure 9; probes with the references of their first
    sample; benchmarks whole.

    Args:
        root: the folder of a `Store`.
        out: a folder that is not there yet, or an earlier export, which is replaced.

    Raises:
        ToPiError: there is nothing to export, or `out` holds something else.
    """
    store, out = Store(root), Path(out)
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
    if not runs:
        raise ToPiError(f"{root} has no complete cell of the paper: see experiments/README.md.")
    if out.exists() and not (out / "cells").is_dir():
        raise ToPiError(f"{out} is not an export: name another folder with --out.")
    shutil.rmtree(out, ignore_errors=True)
    for key in runs:
        cell = store.cell(key)
        _copy([cell.path / name for name in RECORDS], cell.path, out / "cells" / key)
        if OURS in cell.labels:
            masks = (cell.path / "masks").glob("*.json")
            _copy(masks, cell.path, out / "cells" / key)
    for key, samples in pictured:
        cell = store.cell(key)
        full = store.full(cell.manifest["full_key"]).path
        outputs = [cell.path / "images" / f"{sample}.png" for sample in samples]
        _copy(outputs, cell.path, out / "cells" / key)
        shared = [full / "images" / f"{sample}.png" for sample in samples]
        shared += [p for sample in samples for p in (full / "references").glob(f"{sample}_*.png")]
        _copy([full / "manifest.json", *shared], full, out / "full" / full.name)
    for bench in load_benches(root):
        records = [bench.path / "manifest.json", bench.path / "rows.jsonl"]
        _copy(records, bench.path, out / "bench" / bench.key)
    for probe in load_probes(root):
        first = probe.rows[0]["sample"]
        records = [probe.path / "manifest.json", probe.rows_file, *probe.path.glob("maps/*.npz")]
        records += (probe.path / "references").glob(f"{first}_*.png")
        _copy(records, probe.path, out / "probe" / probe.key)
    return out


def _copy(paths: Iterable[Path], base: Path, out: Path) -> None:
    """Copy the files that are there to the same place under `out`, manifests as `published`."""
    for path in paths:
        if path.is_file():
            to = out / path.relative_to(base)
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "manifest.json":
                files.write_json(to, published(files.read_json(path)))
            else:
                shutil.copyfile(path, to)


def published(content: Any) -> Any:
    """Plain data without what is nobody's business: names of hosts, and folders of a machine."""
    if isinstance(content, dict):
        return {name: published(value) for name, value in content.items() if name != "host"}
    if isinstance(content, list):
        return [published(value) for value in content]
    if isinstance(content, str) and Path(content).is_absolute():
        return Path(content).name
    return content
