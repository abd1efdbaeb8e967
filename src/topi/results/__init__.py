"""The store of results: per-sample rows, manifests, pictures. Imports no torch."""

from topi.results.full import FullOutputs
from topi.results.store import Cell, Store

__all__ = ["Cell", "FullOutputs", "Store"]
