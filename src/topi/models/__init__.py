"""Architectures: one adapter per transformer class."""

from topi.models.adapter import ADAPTERS, Adapter, Layout, MergePoints, ModelFacts, adapter_for
from topi.models.flux import FluxAdapter
from topi.models.flux2 import Flux2Adapter
from topi.models.qwen import QwenAdapter

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Flux2Adapter",
    "FluxAdapter",
    "Layout",
    "MergePoints",
    "ModelFacts",
    "QwenAdapter",
    "adapter_for",
]
