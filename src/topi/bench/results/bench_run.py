"""What `topi bench` leaves on disk: how fast a model is in full and under each method.

    bench/<model>-<key>/manifest.json   model, weights, sizes, device, versions; written first.
                                        `refused`: lines that cannot run there, and why
                        rows.jsonl      one line per timed pair of runs, appended as they come

Seconds in a row are those of one run of the pipeline; `_full` of the unmodified model, `_method` of
the method right after it. `total` is end to end with the VAE, `transformer` what all calls of the
transformer took. `peak_bytes` is the most device memory held at once in a run,
`peak_bytes_transformer` that while the transformer ran; None on a CPU. `keep` is the share that the
method really keeps; `uncompiled` the share of a compiled model's blocks that ran uncompiled.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from topi.bench.results import files
from topi.bench.results.links import linked
from topi.bench.results.mend import mend_lines
from topi.bench.results.packed import store_folder
from topi.bench.results.records import BenchManifest, BenchRow
from topi.bench.results.study_folder import StudyFolder
from topi.errors import ToPiError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchRun(StudyFolder):
    """One benchmark."""

    MANIFEST, ROW = BenchManifest, BenchRow
    SCHEMA = 2
    AGAIN = "run `topi bench` again, which sets it aside."

    @property
    def frame(self) -> pd.DataFrame:
        """The same as a frame."""
        return pd.DataFrame(self.rows)

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, once; set aside what is damaged."""
        self.begin({**manifest, "refused": {}})
        mend_lines(self.path, self.rows_file.name, BenchRow, id)

    def refuse(self, label: str, reason: str) -> None:
        """Note in the manifest that a line cannot be measured, and why."""
        refused = {**self.manifest["refused"], label: reason}
        self.write_manifest(self.manifest | {"refused": refused})

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a timed pair."""
        files.append(self.rows_file, row)


def bench_run(store: Path | str, key: str) -> BenchRun:
    """The benchmark of this key, there or not."""
    return BenchRun(store_folder(store) / "bench" / key)


def load_benches(store: Path | str) -> list[BenchRun]:
    """All benchmarks with rows, by their keys; damaged ones are left out."""
    paths = [
        p.parent for p in sorted(store_folder(store).glob("bench/*/manifest.json")) if not linked(p)
    ]
    runs = []
    for run in map(BenchRun, paths):
        try:
            if run.manifest and run.rows:
                runs.append(run)
        except ToPiError as error:
            log.warning("left out: %s", error)
    return runs
