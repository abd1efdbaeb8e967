"""Is a cell what its manifest says? A few of its samples, run again and compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from topi.bench.io.escape import one_line
from topi.bench.results import Cell, Store
from topi.bench.results.files import read_image
from topi.bench.results.provenance import differences
from topi.bench.runs.work import config_of, matching
from topi.errors import ToPiError

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

SCORES = ("psnr", "ssim", "lpips", "keep_ratio", "flop_speedup")


@dataclass(frozen=True)
class SampleCheck:
    """One sample run again.

    Args:
        sample: its id.
        pixels: the largest difference of a channel of the method's output, of 255.
        full_pixels: the same of the full-context output.
        scores: by name, as stored and as found now.
    """

    sample: str
    pixels: int
    full_pixels: int
    scores: dict[str, tuple[float, float]]

    def same(self, tolerance: int = 0) -> bool:
        """True if the pictures are equal up to `tolerance`, and at 0 the scores exactly."""
        exact = all(before == now for before, now in self.scores.values())
        return max(self.pixels, self.full_pixels) <= tolerance and (exact or tolerance > 0)


@dataclass(frozen=True)
class Verification:
    """The checks of a cell, and what differs between its conditions and those here."""

    cell: Cell
    checks: list[SampleCheck]
    conditions: list[str]


def verify(root: Path, name: str, count: int = 3) -> Verification:
    """Run some samples of a cell again, spread evenly over its rows, away from its store.

    Args:
        root: of the store.
        name: the key of the cell, or its beginning.
        count: of samples.

    Raises:
        ToPiError: there is no such cell or it has no rows, or its weights, data or parameters are
            not to be had here.
    """
    found = matching(Store(root).find_cells(), name)
    if len(found) > 1:
        raise ToPiError(f"{name} begins several keys: {', '.join(cell.key for cell in found)}.")
    (cell,) = found
    rows = cell.rows
    if not rows:
        raise ToPiError(f"{cell.key} has no rows to verify yet.")
    places = np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))
    return Verification(cell, *_run_again(cell, [rows[place] for place in places]))


def _run_again(cell: Cell, rows: list[dict[str, Any]]) -> tuple[list[SampleCheck], list[str]]:
    from topi.bench.runs.assemble import assemble  # loads torch
    from topi.bench.runs.cell import run_quality
    from topi.bench.runs.compute import bench_of
    from topi.bench.runs.identify import identify

    config = config_of(cell)
    parts = assemble(config)
    manifest = identify(parts)
    bench = bench_of(parts, manifest)
    conditions = _conditions(cell.manifest, manifest)
    samples = [bench.data[row["index"]] for row in rows]
    if [sample.id for sample in samples] != [row["sample"] for row in rows]:
        raise ToPiError(f"The data of {cell.key} has other samples here.")
    with TemporaryDirectory() as folder:
        again = Store(folder)
        full = again.full(manifest["full_key"])
        target = again.cell(cell.key)
        target.start(manifest)
        here = replace(bench, data=samples, full=full)
        run_quality(here, parts.method, target, f"verifying {manifest['label']}")
        before = Store(cell.path.parents[1]).full(cell.manifest["full_key"])
        checks = [
            SampleCheck(
                row["sample"],
                _difference(_image(cell, row["sample"]), _image(target, row["sample"])),
                _difference(before.image(row["sample"]), full.image(row["sample"])),
                {name: (row[name], now[name]) for name in SCORES if name in row and name in now},
            )
            for row, now in zip(rows, target.rows, strict=True)
        ]
    return checks, conditions


def _conditions(known: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs but need not change a number.

    Raises:
        ToPiError: what must be the same differs.
    """
    fixed = ("weights", "data", "seed", "steps", "params")
    wrong = [
        f"{name} {known.get(name)} are now {here.get(name)}"
        for name in fixed
        if _plain(known.get(name)) != _plain(here.get(name))
    ]
    if wrong:
        raise ToPiError(f"{known.get('key')} cannot be verified here: {'; '.join(wrong)}.")
    found = differences({**known, "created": None}, here)
    before, now = known["device"].get("name"), here["device"]["name"]
    return found + ([f"{before} is now {now}"] if before != now else [])


def _plain(content: Any) -> Any:
    from topi.bench.results.keys import canonical

    return canonical(content)


def _image(cell: Cell, sample: str) -> Image.Image:
    return read_image(cell.path / "images" / f"{sample}.png")


def _difference(before: Image.Image | None, now: Image.Image | None) -> int:
    if before is None or now is None or before.size != now.size:
        return 255
    return int(np.abs(np.asarray(before, np.int16) - np.asarray(now, np.int16)).max())


def verification_table(found: Verification, tolerance: int) -> Table:
    """A line per sample."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("sample", "pixels", "full", *SCORES, ""):
        table.add_column(heading)
    for check in found.checks:
        scores = [_pair(*check.scores[name]) if name in check.scores else "" for name in SCORES]
        verdict = "same" if check.same(tolerance) else "DIFFERS"
        pixels = (f"{check.pixels}", f"{check.full_pixels}")
        table.add_row(one_line(check.sample), *pixels, *scores, verdict)
    return table


def _pair(before: float, now: float) -> str:
    return f"{now:.4f}" if before == now else f"{before:.4f} -> {now:.4f}"
