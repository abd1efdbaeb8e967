"""The store of results: per-sample rows, manifests, pictures. Imports no torch."""

from topi.results.store import Cell, FullOutputs, Store

__all__ = ["Cell", "FullOutputs", "Store"]
