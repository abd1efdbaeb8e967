"""Token pruning for in-context generation in diffusion transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topi.methods.checker import Checkerboard
    from topi.methods.first_block_cache import FirstBlockCache
    from topi.methods.full import Full
    from topi.methods.magcache import MagCache
    from topi.methods.random_tokens import RandomTokens
    from topi.methods.taylorseer import TaylorSeer
    from topi.methods.teacache import TeaCache
    from topi.methods.toma import ToMA
    from topi.methods.tomesd import ToMeSD
    from topi.methods.topi import ToPi

_HOMES = {
    "Checkerboard": "checker",
    "FirstBlockCache": "first_block_cache",
    "Full": "full",
    "MagCache": "magcache",
    "RandomTokens": "random_tokens",
    "TaylorSeer": "taylorseer",
    "TeaCache": "teacache",
    "ToMA": "toma",
    "ToMeSD": "tomesd",
    "ToPi": "topi",
}
__all__ = ["Checkerboard", "FirstBlockCache", "Full", "MagCache", "RandomTokens", "TaylorSeer"]
__all__ += ["TeaCache", "ToMA", "ToMeSD", "ToPi"]


def __getattr__(name: str) -> Any:
    """Import a method when it is asked for, so that `import topi` alone is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"topi.methods.{_HOMES[name]}"), name)
