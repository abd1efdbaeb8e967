"""What a sweep leaves on disk.

    cells/<key>/manifest.json     what the cell is and where it comes from; written first
                rows.jsonl        one line per sample, appended as they come
                latency.jsonl     one line per timed pair of runs
                images/<sample>.png, masks/<sample>.json
                failed.json       why the latest attempt ended, if it did
                complete.json     written last
                quarantine/<n>/   what was found damaged, and has been computed again
    shards/<key>/<i>of<n>/        a cell's samples that one of n processes computed, until taken in
    parquet/                      finished cells by columns, for large stores: see `compact`
    full/<key>/manifest.json, images/<sample>.png, references/<sample>_<i>.png
               full-context outputs, shared by all cells of a model, its data and a seed

A picture and a mask are on disk before their row, so a row says that its sample is done.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from topi.bench.results import files
from topi.bench.results.cell_folder import Cell
from topi.bench.results.compact import compact
from topi.bench.results.full_outputs import FullOutputs
from topi.bench.results.links import export_of
from topi.bench.results.mend import contents
from topi.bench.results.packed import store_folder
from topi.bench.results.segments import Segments, concat, moments
from topi.errors import ToPiError

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and no list of cells needs it

log = logging.getLogger(__name__)

CELL_COLUMNS = ("cell", "model", "method", "label", "params")
ROW_COLUMNS = ("sample", "index", "category", "task", "instruction", "seed")
ROW_COLUMNS += ("psnr", "ssim", "lpips", "keep_ratio", "flop_speedup")
LATENCY_COLUMNS = ("cell", "sample", "repeat", "seconds_full", "seconds_method")
WORTH_WHILE = 1000
"""Finished cells from which on a reader of a store compacts them first."""


def _holds_anything(cell: Path) -> bool:
    """Whether an entry of `cells` is more than a folder that was locked, or made room, so far."""
    return cell.is_symlink() or (cell / "manifest.json").is_file() or bool(contents(cell))


def _readable(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Those that can be read; of the others the log says why not."""
    for cell in cells:
        done, state = cell.progress
        if done is not None:
            yield cell
        else:
            log.warning("left out: %s is %s", cell.key, state)


class Store:
    """The results under one folder; it is made when something is written.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = store_folder(root)

    def cell(self, key: str) -> Cell:
        """The cell of this key, there or not."""
        return Cell(self.root / "cells" / files.checked_name(key))

    def full(self, key: str) -> FullOutputs:
        """The full-context outputs of this key, there or not."""
        return FullOutputs(self.root / "full" / files.checked_name(key))

    def compact(self, at_least: int = 1) -> int:
        """Put finished cells into Parquet files, see the function `compact`; returns how many."""
        return compact(self.root, at_least)

    def load_cells(self, tidy: bool = False) -> list[Cell]:
        """All cells that have a readable manifest, oldest first.

        Args:
            tidy: compact the store before, if there is much to gain and it takes files.
        """
        return self._load(self._segments(tidy))

    def find_cells(self, tidy: bool = False) -> list[Cell]:
        """All cells, damaged ones too, by key; `tidy`: see `load_cells`."""
        return self._find(self._segments(tidy))

    def tally(self) -> tuple[Counter[str], list[Cell]]:
        """How many compacted cells each model has, and the other cells; the store is tidied before.

        As `find_cells`, without an object for each of very many cells.
        """
        segments = self._segments(tidy=True)
        held = (about for cells in segments.cells.values() for about in cells.values())
        return Counter(about.model for about in held), self._others(segments)

    def _others(self, segments: Segments) -> list[Cell]:
        others = (Cell(self.root / "cells" / key) for key in segments.others)
        return [cell for cell in others if _holds_anything(cell.path)]

    def _segments(self, tidy: bool = False) -> Segments:
        segments = Segments(self.root)
        try:
            writable = export_of(self.root) is None
            if tidy and writable and compact(self.root, WORTH_WHILE, segments):
                return Segments(self.root)
        except ToPiError as error:
            log.warning("%s", error)
        return segments

    def _load(self, segments: Segments) -> list[Cell]:
        cells = []
        for cell in self._find(segments):
            try:
                cells.append((cell.created, cell.key, cell))
            except ToPiError as error:
                log.warning("left out: %s: %s", cell.key, error)
        return [cell for *_, cell in sorted(cells, key=lambda entry: entry[:2])]

    def _find(self, segments: Segments) -> list[Cell]:
        folder = self.root / "cells"
        held = (pair for cells in segments.cells.values() for pair in cells.items())
        cells = [Cell(folder / key, summary) for key, summary in held]
        return sorted([*cells, *self._others(segments)], key=lambda cell: cell.key)

    def rows(self, cells: Iterable[Cell] | None = None) -> "pd.DataFrame":
        """One line per cell and sample: `CELL_COLUMNS`, `ROW_COLUMNS`, and what else rows hold.

        Args:
            cells: a few of this store; None: all.
        """
        return self._frame("rows", cells, (*CELL_COLUMNS, *ROW_COLUMNS))

    def latency(self, cells: Iterable[Cell] | None = None) -> "pd.DataFrame":
        """One line per timed pair: `LATENCY_COLUMNS`; seconds. `cells`: as for `rows`."""
        return self._frame("latency", cells, LATENCY_COLUMNS)

    def _frame(
        self, name: str, cells: Iterable[Cell] | None, columns: Sequence[str]
    ) -> "pd.DataFrame":
        """The records of cells in the given columns and then what else there is."""
        import pandas as pd

        segments = self._segments()
        chosen = self._load(segments) if cells is None else list(cells)
        logged = chosen
        if cells is None:
            logged = list(_readable(cell for cell in chosen if cell.compacted is None))
            chosen = [*(cell for cell in chosen if cell.compacted is not None), *logged]
        lines = [{"cell": cell.key, **row} for cell in logged for row in getattr(cell, name)]
        frames = [pd.DataFrame(lines)]
        if cells is None and (tables := list(segments.scan(name))):
            frames.insert(0, concat(tables).to_pandas(split_blocks=True, self_destruct=True))
        frame = pd.concat([part for part in frames if len(part)] or frames)
        if "label" in columns and len(frame):
            about = {cell.key: {n: cell.manifest[n] for n in CELL_COLUMNS[1:]} for cell in chosen}
            keys = frame["cell"].astype(object)  # a category cannot be mapped to dicts
            for column in CELL_COLUMNS[1:]:
                known = {key: facts[column] for key, facts in about.items()}
                frame[column] = (keys if column == "params" else frame["cell"]).map(known.get)
        more = [column for column in frame.columns if column not in columns]
        return frame.reindex(columns=[*columns, *more])

    def moments(self, names: Sequence[str]) -> "pd.DataFrame":
        """Sums over the samples of each cell and category, from which means of any group follow.

        Returns:
            One line per cell and category: `cell, category, n`, and for each of `names` the number
            of finite values, their sum and the sum of their squares, and the number of infinite
            ones, as `<name>_n`, `<name>_sum`, `<name>_squares`, `<name>_infinite`.
        """
        segments = self._segments()
        wanted = ("category", *names)
        tables = segments.scan("rows", wanted)
        logged = (cell for cell in self._load(segments) if cell.compacted is None)
        others = self.rows(_readable(logged))
        others = pa.Table.from_pandas(others[["cell", *wanted]], preserve_index=False)
        sums = [moments(table, names) for table in (*tables, others) if len(table)]
        return pa.concat_tables(sums).to_pandas()
