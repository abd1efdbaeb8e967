"""The masks of a cell: which reference tokens each anchor kept."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from topi.bench.results import files
from topi.bench.results.records import Masks
from topi.errors import ToPiError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Anchor:
    """What one anchor step kept of each reference: a boolean grid `(rows, cols)`."""

    step: int
    branch: str
    kept: tuple[np.ndarray, ...]

    @property
    def keep_ratio(self) -> float:
        """Kept tokens over all reference tokens."""
        return sum(mask.sum() for mask in self.kept) / sum(mask.size for mask in self.kept)


def read_anchors(path: Path) -> list[Anchor]:
    """The anchors of one masks file by step; indices count through all references.

    There are none without a file, or if it is damaged, which the log says.
    """
    if not os.path.lexists(path):
        return []
    try:
        content = files.read_json(path, Masks)
    except ToPiError as error:
        log.warning("left out: %s", error)
        return []
    grids = content["grids"]
    ends = np.cumsum([rows * cols for rows, cols in grids])
    anchors = []
    for record in sorted(content["anchors"], key=lambda record: record["step"]):
        flat = np.zeros(ends[-1], dtype=bool)
        flat[slice(None) if record["kept"] is None else record["kept"]] = True
        parts = np.split(flat, ends[:-1])
        kept = tuple(part.reshape(grid) for part, grid in zip(parts, grids, strict=True))
        anchors.append(Anchor(record["step"], record["branch"], kept))
    return anchors
