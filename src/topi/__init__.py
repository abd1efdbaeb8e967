"""Token pruning for in-context generation in diffusion transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topi.engine.compiling import compile
    from topi.methods.checker import Checkerboard
    from topi.methods.dato import DaTo
    from topi.methods.downscaled_ref import DownscaledRef
    from topi.methods.fewer_steps import FewerSteps
    from topi.methods.first_block_cache import FirstBlockCache
    from topi.methods.full import Full
    from topi.methods.magcache import MagCache
    from topi.methods.random_tokens import RandomTokens
    from topi.methods.ref_kv import RefKV
    from topi.methods.regione import RegionE
    from topi.methods.sdtm import SDTM
    from topi.methods.taylorseer import TaylorSeer
    from topi.methods.teacache import TeaCache
    from topi.methods.toma import ToMA
    from topi.methods.tomesd import ToMeSD
    from topi.methods.topi import ToPi
    from topi.methods.topi_cover import ToPiCover
    from topi.methods.topi_kv import ToPiKV

_HOMES = {
    "Checkerboard": "checker",
    "DaTo": "dato",
    "DownscaledRef": "downscaled_ref",
    "FewerSteps": "fewer_steps",
    "FirstBlockCache": "first_block_cache",
    "Full": "full",
    "MagCache": "magcache",
    "RandomTokens": "random_tokens",
    "SDTM": "sdtm",
    "RefKV": "ref_kv",
    "RegionE": "regione",
    "TaylorSeer": "taylorseer",
    "TeaCache": "teacache",
    "ToMA": "toma",
    "ToMeSD": "tomesd",
    "ToPi": "topi",
    "ToPiCover": "topi_cover",
    "ToPiKV": "topi_kv",
}
__all__ = ["SDTM", "Checkerboard", "DaTo", "DownscaledRef", "FewerSteps", "FirstBlockCache"]
__all__ += ["Full", "MagCache", "RandomTokens", "RefKV", "RegionE", "TaylorSeer", "TeaCache"]
__all__ += ["ToMA", "ToMeSD", "ToPi", "ToPiCover", "ToPiKV", "compile"]


def __getattr__(name: str) -> Any:
    """Import a method when it is asked for, so that `import topi` alone is quick."""
    if name == "compile":
        return import_module("topi.engine.compiling").compile
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"topi.methods.{_HOMES[name]}"), name)
