"""Samples to edit: a reference, an instruction and, where known, the true edited image."""

from topi.data.folder import EditFolder
from topi.data.mini_edit import MiniEdit
from topi.data.sample import CATEGORIES, EditSample

__all__ = ["CATEGORIES", "EditFolder", "EditSample", "MiniEdit"]
