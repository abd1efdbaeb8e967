"""The store of results: per-sample rows, manifests, pictures. Imports no torch."""

from topi.bench.results.full_outputs import FullOutputs
from topi.bench.results.store import Cell, Store

__all__ = ["Cell", "FullOutputs", "Store"]
