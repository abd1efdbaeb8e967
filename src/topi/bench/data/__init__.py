"""Samples to edit: a reference, an instruction and, where known, the true edited image."""

from collections.abc import Sequence

from topi.bench.data.anyedit import AnyEdit
from topi.bench.data.folder import EditFolder
from topi.bench.data.mini_edit import MiniEdit
from topi.bench.data.mini_edit_plus import MiniEditPlus
from topi.bench.data.sample import CATEGORIES, VISUAL, EditSample

Dataset = MiniEdit | MiniEditPlus | AnyEdit | EditFolder
"""What has a length, samples by index, their `ids`, and `fingerprint()`."""


def ids_of(data: Sequence[EditSample]) -> list[str]:
    """The ids of all samples. A `Dataset` knows them without reading a picture."""
    known = getattr(data, "ids", None)
    return [sample.id for sample in data] if known is None else known


__all__ = [
    "CATEGORIES",
    "VISUAL",
    "AnyEdit",
    "Dataset",
    "EditFolder",
    "EditSample",
    "MiniEdit",
    "MiniEditPlus",
    "ids_of",
]
