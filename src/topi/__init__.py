"""Token pruning for in-context generation in diffusion transformers.

`from topi import ToPi`: every class of `topi.methods` that has a name is exported, and `compile`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topi.engine.compiling import compile
    from topi.methods.ours.topi_cover import ToPiCover
    from topi.methods.ours.topi_kv import ToPiKV
    from topi.methods.paper.topi import ToPi

__all__ = ["ToPi", "ToPiCover", "ToPiKV", "compile"]


def __getattr__(name: str) -> Any:
    """Import methods when one is asked for, so that `import topi` alone is quick."""
    if name == "compile":
        return import_module("topi.engine.compiling").compile
    if not name.startswith("_") and name[:1].isupper():
        classes = import_module("topi.methods").CLASSES
        if name in classes:
            return classes[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The exported names."""
    return ["compile", *import_module("topi.methods").CLASSES]
