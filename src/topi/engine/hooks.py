"""The hooks that take hold of a transformer, on diffusers' own registry."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from torch import nn

from topi.engine.compiling import eager_forward
from topi.engine.taps import running
from topi.models.held import clean_copies

if TYPE_CHECKING:
    from topi.engine.layers import Layers
    from topi.engine.session import Session

HOOK = "topi"


@contextmanager
def hooked(module: nn.Module, hook: ModelHook) -> Iterator[None]:
    """Inside, `module` carries `hook`; afterwards it is exactly as it was before.

    `HookRegistry.remove_hook` alone leaves a bound `forward` and the registry in the module's
    `__dict__`. A copy of them would run the original's hooks and weights, so copies of the module
    are made without them. accelerate's offloading keeps the forward it wraps in `_old_forward` and
    unwraps to it after every pipeline call; the hook goes there to survive that.
    """
    slots = vars(module)
    before = {*slots}
    registry = HookRegistry.check_if_exists_or_initialize(module)

    def inside_offload(action: Callable[[], None]) -> None:
        if "_old_forward" not in slots:
            return action()
        wrapper, module.forward = module.forward, module._old_forward
        try:
            action()
        finally:
            module._old_forward, module.forward = module.forward, wrapper

    def clean(state: dict[str, Any]) -> None:
        inner = hook.fn_ref.original_forward or hook.fn_ref.forward
        for name in ("forward", "_old_forward"):
            if state.get(name) is outer:
                state[name] = inner
        tidy(state, without(registry))

    def tidy(state: dict[str, Any], others: HookRegistry) -> None:
        """Drop what holds no hook any more, unless it was there before."""
        state["_diffusers_hook"] = others
        bound = () if "_old_forward" in state else ("forward",)
        for name in () if others.hooks else ("_diffusers_hook", *bound):
            if name not in before:
                state.pop(name, None)

    def remove() -> None:
        if registry.get_hook(HOOK) is hook:
            inside_offload(lambda: registry.remove_hook(HOOK, recurse=False))
        tidy(slots, registry)

    try:
        inside_offload(lambda: registry.register_hook(hook, HOOK))
        outer = slots["_old_forward" if "_old_forward" in slots else "forward"]
        with clean_copies(module, clean):
            yield
    finally:
        try:
            remove()
        except BaseException:  # it was interrupted; what is done already is not done again
            remove()
            raise


def without(registry: HookRegistry) -> HookRegistry:
    """A copy that has not our hook."""
    twin = copy(registry)
    rest = [i for i, name in enumerate(registry._hook_order) if name != HOOK]
    twin._hook_order, twin._fn_refs = (
        [every[i] for i in rest] for every in (registry._hook_order, registry._fn_refs)
    )
    twin.hooks = {name: registry.hooks[name] for name in twin._hook_order}
    twin._child_registries_cache = None
    return twin


@contextmanager
def lists_anew(transformer: nn.Module) -> Iterator[None]:
    """Afterwards diffusers forgets its list of the submodules with hooks, made inside."""
    try:
        yield
    finally:
        for part in transformer.modules():
            if (registry := getattr(part, "_diffusers_hook", None)) is not None:
                registry._child_registries_cache = None


def keywords(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of `module.forward` by name."""
    if not args:
        return kwargs
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


class BranchNames(StateManager):
    """Where `cache_context` leaves the name of the CFG branch; each thread has its own."""

    def __init__(self) -> None:
        super().__init__(BaseState)
        self._of_thread: dict[int, str] = {}

    def set_context(self, context: CacheContext | None) -> None:
        """Note or, with None, drop the name."""
        self.reset()
        if context is not None:
            self._of_thread[get_ident()] = context.name

    def current(self) -> str | None:
        """The name; None: the pipeline names no branches."""
        return self._of_thread.get(get_ident())

    def reset(self) -> None:
        """Drop the name."""
        self._of_thread.pop(get_ident(), None)


class RootHook(ModelHook):
    """On the transformer: surrounds each call; diffusers resets it when a pipeline call ends."""

    _is_stateful = True

    def __init__(self, session: "Session") -> None:
        super().__init__()
        self.session = session
        self.branches = BranchNames()

    @torch.compiler.disable(recursive=False)  # traced, it would see the first step for ever
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the transformer inside `Session.transformer_call`."""
        forward = self.fn_ref.original_forward
        if not self.session.is_attached:
            return forward(*args, **kwargs)
        kwargs = keywords(module, args, kwargs)
        with self.session.transformer_call(kwargs, self.branches.current()):
            self.session.layers.run_references_alone(kwargs, forward)
            return self.session.layers.completed(forward(**kwargs))

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget the pipeline call."""
        self.session.pipeline_call_ended()
        self.branches.reset()
        return module


class BlockHook(ModelHook):
    """On every block: says which layer runs, if it runs; from `front_layers` on on kept tokens."""

    def __init__(self, layers: "Layers", layer: int) -> None:
        super().__init__()
        self.layers, self.layer = layers, layer

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Hand on what was predicted, or run the block on the tokens that are left."""
        layers, forward = self.layers, self.fn_ref.original_forward
        layers.state.layer, layers.state.open_merge = self.layer, None
        if layers.state.call is None:
            return forward(*args, **kwargs)
        adapter, n_text = layers.adapter, layers.state.call.layout.n_text
        kwargs = adapter.separated(self.layer, keywords(module, args, kwargs), n_text)
        layers.ask_skip(kwargs)
        if layers.state.predicted is not None:
            return adapter.joined(
                self.layer, kwargs["encoder_hidden_states"], layers.state.predicted
            )
        layers.ask_plan()
        if layers.state.rows is not None and self.layer >= layers.state.call.record.front_layers:
            kwargs = self._gathered(kwargs)
        if layers.trims(kwargs["hidden_states"]):
            kwargs = layers.trimmed(kwargs)
        if layers.looks_inside():
            forward = eager_forward(forward)
        with running(layers):
            text, image = forward(**kwargs)
        layers.ran(image)
        return adapter.joined(self.layer, text, image)

    def _gathered(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Gather states, rotary rows and whatever else comes per token."""
        layers = self.layers
        if self.layer == layers.state.call.record.front_layers:
            kwargs["hidden_states"] = layers.gathered(kwargs["hidden_states"])
        kwargs["image_rotary_emb"] = layers.kept_rope(kwargs["image_rotary_emb"])
        return layers.adapter.gather_extras(kwargs, layers.state.rows)
