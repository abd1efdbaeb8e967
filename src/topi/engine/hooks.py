"""The hooks that take hold of a transformer, on diffusers' own registry."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from functools import cache
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from torch import Tensor, nn

from topi.engine.compiling import eager_forward
from topi.errors import ToPiError
from topi.models.adapter import MergePoints
from topi.models.held import clean_copies
from topi.models.rebind import rebind
from topi.models.rope import per_sample

if TYPE_CHECKING:
    from topi.engine.session import Session

HOOK = "topi"
ROTATIONS = ("apply_rotary_emb", "apply_rotary_emb_qwen")
"""Functions by which attention processors rotate queries and keys."""


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
            self.session.run_references_alone(kwargs, forward)
            return self.session.completed(forward(**kwargs))

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget the pipeline call."""
        self.session.pipeline_call_ended()
        self.branches.reset()
        return module


class BlockHook(ModelHook):
    """On every block: says which layer runs, if it runs; from `front_layers` on on kept tokens."""

    def __init__(self, session: "Session", layer: int) -> None:
        super().__init__()
        self.session, self.layer = session, layer

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Hand on what was predicted, or run the block on the tokens that are left."""
        session, forward = self.session, self.fn_ref.original_forward
        session.layer, session.open_merge = self.layer, None
        if session.call is None:
            return forward(*args, **kwargs)
        adapter, n_text = session.adapter, session.call.layout.n_text
        kwargs = adapter.separated(self.layer, keywords(module, args, kwargs), n_text)
        session.ask_skip(kwargs)
        if session.predicted is not None:
            return adapter.joined(self.layer, kwargs["encoder_hidden_states"], session.predicted)
        session.ask_plan()
        if session.rows is not None and self.layer >= session.call.record.front_layers:
            kwargs = self._gathered(kwargs)
        if session.trims(kwargs["hidden_states"]):
            kwargs = session.trimmed(kwargs)
        if session.looks_inside():
            forward = eager_forward(forward)
        before = _running.set(session)
        try:
            text, image = forward(**kwargs)
        finally:
            _running.reset(before)
        session.ran(image)
        return adapter.joined(self.layer, text, image)

    def _gathered(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Gather states, rotary rows and whatever else comes per token."""
        session = self.session
        if self.layer == session.call.record.front_layers:
            kwargs["hidden_states"] = session.gathered(kwargs["hidden_states"])
        kwargs["image_rotary_emb"] = session.kept_rope(kwargs["image_rotary_emb"])
        return session.adapter.gather_extras(kwargs, session.rows)


class MergeAttentionHook(ModelHook):
    """On a block's attention: runs it on merged image tokens."""

    def __init__(self, session: "Session", points: MergePoints) -> None:
        super().__init__()
        self.session, self.points = session, points

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the attention on the merged image tokens."""
        session, forward = self.session, self.fn_ref.original_forward
        if session.call is None:
            return forward(*args, **kwargs)
        kwargs = keywords(module, args, kwargs)
        states, text = kwargs["hidden_states"], session.call.layout.n_text
        joint, fused = self.points.joint, self.points.fused  # joint: text rows come first
        if joint and not fused:
            merge = session.open_merge  # which the norm before has asked for
        else:
            merge = session.ask_merge(states[:, text:] if joint else states)
        if merge is None or merge.scope == "mlp":
            return forward(**kwargs)
        if merge.rows is not None:
            rope = kwargs["image_rotary_emb"]
            kwargs["image_rotary_emb"] = session.adapter.gather_rope(rope, merge.rows, text)
        # the norm before has merged for the whole block, the projection behind will unmerge
        if merge.scope == "block" and not fused:
            return forward(**kwargs)
        if joint:
            kwargs["hidden_states"] = on_image_rows(merge.merge, states, text)
            return on_image_rows(merge.unmerge, forward(**kwargs), text)
        kwargs["hidden_states"] = merge.merge(states)
        image, text, *more = forward(**kwargs)
        # an IP-Adapter's attention yields another output for each image token
        both = merge.unmerge(torch.cat([image, *more], dim=-1) if more else image)
        image, *more = both.split(image.shape[-1], dim=-1)
        return image, text, *more


class MergeMLPHook(ModelHook):
    """On a block's MLP, or its first half: runs it on merged image tokens."""

    def __init__(self, session: "Session", points: MergePoints) -> None:
        super().__init__()
        self.session, self.points = session, points

    def new_forward(self, module: nn.Module, states: Tensor) -> Tensor:
        """Run the MLP as the layer's merge, which is decided before the attention, says."""
        session, forward = self.session, self.fn_ref.original_forward
        merge = session.open_merge
        if session.call is None or merge is None or merge.scope not in ("mlp", "both"):
            return forward(states)
        if not self.points.joint:
            return merge.unmerge_mlp(forward(merge.merge(states)))
        text = session.call.layout.n_text
        return on_image_rows(
            merge.unmerge_mlp, forward(on_image_rows(merge.merge, states, text)), text
        )


class MergeNormHook(ModelHook):
    """On a single-stream block's norm: decides on merging, and merges for the whole block."""

    def __init__(self, session: "Session") -> None:
        super().__init__()
        self.session = session

    def post_forward(
        self, module: nn.Module, output: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Ask for a merge; apply it here if it spans the block."""
        session = self.session
        if session.call is None:
            return output
        states, gate = output
        text = session.call.layout.n_text
        merge = session.ask_merge(states[:, text:])
        if merge is None or merge.scope != "block":
            return output
        return on_image_rows(merge.merge, states, text), gate


class MergeProjectionHook(ModelHook):
    """On a single-stream block's output projection: unmerges before gate and residual."""

    def __init__(self, session: "Session") -> None:
        super().__init__()
        self.session = session

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        """Undo a merge that spans the block."""
        merge = self.session.open_merge
        if merge is None or merge.scope != "block":
            return output
        return on_image_rows(merge.unmerge, output, self.session.call.layout.n_text)


def on_image_rows(operator: Callable[[Tensor], Tensor], states: Tensor, n_text: int) -> Tensor:
    """Apply `operator` to the image rows of `[text | image]` states [B, S, D]."""
    return torch.cat([states[:, :n_text], operator(states[:, n_text:])], dim=1)


@contextmanager
def tapped(processor: Any) -> Iterator[None]:
    """Let `Session.at_attention` say what key, value and mask an attention processor attends to.

    Or what comes of it, where a look at the layer has computed that.

    Inside, the processor's class is a subclass that runs the same code with `dispatch_attention_fn`
    rebound. Copies are of the class itself.

    Raises:
        ToPiError: the processor does not attend through `dispatch_attention_fn`.
    """
    stock = getattr(processor, "stock", type(processor))  # what is made from a tapped one is tapped
    processor.__class__ = tapped_class(stock)
    try:
        yield
    finally:
        processor.__class__ = stock


def is_tapped(processor: Any) -> bool:
    """Is it of a class made by `tapped_class`?"""
    return "stock" in vars(type(processor))


@cache
def tapped_class(cls: type) -> type:
    """The subclass, one for each class of processors: compiled blocks depend on which it is."""
    dispatch = getattr(cls.__call__, "__globals__", {}).get("dispatch_attention_fn")
    if dispatch is None:
        raise ToPiError(
            f"The attention processor {cls.__name__} is not supported; "
            "restore diffusers' default processor."
        )

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any
    ) -> Tensor:
        # a compiled block is one that nobody looks into
        if not torch.compiler.is_compiling() and (session := _running.get()) is not None:
            key, value, attn_mask, output = session.at_attention(query, key, value, attn_mask, rest)
            if output is not None:
                return output
        return dispatch(query, key, value, attn_mask=attn_mask, **rest)

    def reduce(self: Any, protocol: int) -> tuple:
        _, (_, *arguments), *rest = cls.__reduce_ex__(self, protocol)
        return cls.__new__, (cls, *arguments), *rest

    known = cls.__call__.__globals__
    rotations = {name: per_sample(known[name]) for name in ROTATIONS if name in known}
    call = rebind(cls.__call__, dispatch_attention_fn=attend, **rotations)
    changed = {"__call__": call, "__reduce_ex__": reduce, "stock": cls}
    return type(cls.__name__, (cls,), {**changed, "__module__": cls.__module__})


def running_session() -> "Session | None":
    """The session whose block runs in this thread, if one does."""
    return _running.get()


_running: ContextVar["Session | None"] = ContextVar("session whose block runs", default=None)
