"""What cannot share a transformer with a method, or cannot be given to it."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from topi.engine.compiling import refuse_frozen_hooks
from topi.errors import ToPiError
from topi.models.adapter import Adapter

CHANGE_NOTHING = ("group_offloading", "layerwise_casting", "context_parallel")
"""Modules of `diffusers.hooks` whose hooks run every block as it is."""
RESIDUALS = ("controlnet_block_samples", "controlnet_single_block_samples")


def refuse_what_cannot_work(adapter: Adapter, trim_last: bool) -> None:
    """Before anything is attached.

    Raises:
        ToPiError: the transformer is compiled, offloaded or distributed in a way that no method can
            work with, or a cache holds it.
    """
    transformer = adapter.transformer
    refuse_frozen_hooks(adapter)
    refuse_other_holders(adapter)
    parallel = getattr(transformer, "_parallel_config", None)
    if getattr(parallel, "context_parallel_config", None) is not None:
        raise ToPiError(
            "context parallel inference is not supported: each rank holds a part of the sequence. "
            "Use the transformer without `enable_parallelism`, one GPU per picture."
        )
    if trim_last and offloaded_by_group(transformer):
        raise ToPiError(
            "trim_last=True reads the last block's weights before group offloading has loaded "
            "them; leave it off, or use another kind of offloading."
        )


def offloaded_by_group(transformer: nn.Module) -> bool:
    """True if diffusers' group offloading moves its weights."""
    registries = (getattr(part, "_diffusers_hook", None) for part in transformer.modules())
    return any(each is not None and each.get_hook("group_offloading") for each in registries)


def refuse_other_holders(adapter: Adapter, attached: bool = False) -> None:
    """Make sure that no cache decides which blocks are computed.

    Args:
        attached: look no deeper than at blocks and their attention, as this is done at every call.

    Raises:
        ToPiError: one does.
    """
    transformer = adapter.transformer
    if getattr(transformer, "_is_cached", False):
        raise ToPiError(
            f"cache-dit holds the blocks of this {type(transformer).__name__}; call "
            "`cache_dit.disable_cache(pipe)`, or leave the method out."
        )
    outer = [transformer, *adapter.blocks, *(block.attn for block in adapter.blocks)]
    if (name := _holder(outer if attached else transformer.modules())) is not None:
        raise ToPiError(
            f"diffusers' {name} holds blocks of this {type(transformer).__name__}, which a method "
            "must run itself. Call `transformer.disable_cache()`, or leave the method out; caches "
            "that go with a method are TeaCache, MagCache, TaylorSeer and FirstBlockCache: "
            "`ToPi() + TeaCache()`."
        )


def _holder(modules: Iterable[nn.Module]) -> str | None:
    """The module of `diffusers.hooks` that has put hooks on some of the modules, if any."""
    for module in modules:
        registry = getattr(module, "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            package, _, name = type(hook).__module__.rpartition(".")
            if package == "diffusers.hooks" and name not in (*CHANGE_NOTHING, "hooks"):
                return name
    return None


def refuse_residuals(kwargs: Mapping[str, Any]) -> None:
    """Make sure that nothing is added to the states between the blocks.

    Raises:
        ToPiError: the arguments of the transformer have residuals of a ControlNet.
    """
    if given := [name for name in RESIDUALS if kwargs.get(name) is not None]:
        raise ToPiError(
            f"The residuals of a ControlNet ({', '.join(given)}) cannot be added to tokens that "
            "are left out or merged; run calls that have both references and a ControlNet "
            "without a method."
        )
