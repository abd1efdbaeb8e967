"""Samples to edit: a reference, an instruction and, where known, the true edited image."""

from topi.data.anyedit import AnyEdit
from topi.data.folder import EditFolder
from topi.data.mini_edit import MiniEdit
from topi.data.mini_edit_plus import MiniEditPlus
from topi.data.sample import CATEGORIES, VISUAL, EditSample

Dataset = MiniEdit | MiniEditPlus | AnyEdit | EditFolder
"""What has a length, samples by index, and `fingerprint()`."""

__all__ = [
    "CATEGORIES",
    "VISUAL",
    "AnyEdit",
    "Dataset",
    "EditFolder",
    "EditSample",
    "MiniEdit",
    "MiniEditPlus",
]
