"""torch.compile with methods: blocks are compiled, hooks stay outside.

A hook inside a compiled region is run once, when it is traced: a transformer that is compiled as a
whole would take every step for the first one and never drop a token. So each block is compiled
inside its hook, with dynamic lengths, and one graph serves every number of tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from topi.errors import ToPiError
from topi.models.adapter import Adapter, adapter_for, is_compiled_whole
from topi.models.held import is_held

ADVICE = "its hooks would be frozen into the graph; compile with `topi.compile(pipe)` instead"


class CompiledForward:
    """A block's forward, compiled; `eager` is for calls in which a method looks inside.

    Args:
        forward: of the block.
        options: of `torch.compile`.
    """

    def __init__(self, forward: Callable[..., Any], **options: Any) -> None:
        self.eager, self._options = forward, options
        self.compiled = torch.compile(forward, **options)

    def __reduce__(self) -> tuple:
        """A copy compiles the forward of the block's copy."""
        return partial(CompiledForward, **self._options), (self.eager,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.compiled(*args, **kwargs)


def compile(model: Any, dynamic: bool = True, **options: Any) -> Any:
    """Compile the blocks of a pipeline's transformer so that methods can be attached afterwards.

    At most one graph per kind of block and attention processor, whatever numbers of tokens come.
    Methods that merge tokens, and the steps and layers at which a method scores, run uncompiled.
    Blocks whose `forward` is compiled already are compiled anew, with these options.

    Args:
        model: a pipeline or its transformer; compiling it again changes nothing.
        dynamic: one graph for all lengths; False: one for each, which pays if they repeat
            (`round_to=64`).
        options: others of `torch.compile`, such as `mode` and `backend`.

    Returns:
        `model`.

    Raises:
        ToPiError: a method is attached, or the transformer or its blocks are compiled already in a
            way that methods cannot be used with.
    """
    adapter = adapter_for(model)
    if is_held(adapter.transformer):
        raise ToPiError(
            "A method is attached; leave its `with` block, compile, and attach it again."
        )
    refuse_frozen_hooks(adapter)
    for block in adapter.blocks:
        if not isinstance(block.forward, CompiledForward):
            eager = eager_forward(block.forward)
            block.forward = CompiledForward(eager, dynamic=dynamic, **options)
    return model


def eager_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """What `forward` runs without compilation."""
    if isinstance(forward, CompiledForward):
        return forward.eager
    return cast(Any, forward)._torchdynamo_orig_callable if _is_compiled(forward) else forward


def refuse_frozen_hooks(adapter: Adapter, pipeline: Any = None, attached: bool = False) -> None:
    """Make sure that hooks on the transformer and its blocks are run at every call.

    Args:
        attached: the hooks are in place; until then the `forward` of a block may be compiled, as
            they will be outside of it.

    Raises:
        ToPiError: they would be traced.
    """
    transformer = adapter.transformer
    current = getattr(pipeline, "transformer", transformer)
    whole = is_compiled_whole(current) or _compiles_its_call(transformer)
    whole = whole or any(map(_is_compiled, _forwards(transformer)))
    if whole:
        raise ToPiError(
            f"The {type(adapter.transformer).__name__} is compiled as a whole: {ADVICE}."
        )
    around = any(map(_compiles_its_call, adapter.blocks))
    if attached:
        around = around or any(_is_compiled(block.forward) for block in adapter.blocks)
    if around:
        raise ToPiError(
            f"The blocks of this {type(adapter.transformer).__name__} are compiled around their "
            f"hooks (`compile_repeated_blocks`, or `block.forward = torch.compile(block.forward)` "
            f"with a method attached): {ADVICE}."
        )


def _compiles_its_call(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def _forwards(module: nn.Module) -> list[Callable[..., Any]]:
    """Its own `forward`, and that inside accelerate's offloading, if they are not the class's."""
    return [vars(module)[name] for name in ("forward", "_old_forward") if name in vars(module)]


def _is_compiled(forward: Callable[..., Any]) -> bool:
    """True if it is what `torch.compile` made of a function.

    The wrappers of diffusers' and accelerate's hooks copy the attributes of what is inside them,
    and `torch.compiler.disable` leaves the same mark.
    """
    wraps = isinstance(forward, partial) or getattr(forward, "_torchdynamo_disable", False)
    return not wraps and hasattr(forward, "_torchdynamo_orig_callable")
