"""The hooks on a transformer's blocks and on what is in them, wherever these are at the moment."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from diffusers.hooks import ModelHook
from torch import nn

from topi.engine.hooks import BlockHook, hooked
from topi.engine.merge_hooks import (
    MergeAttentionHook,
    MergeMLPHook,
    MergeNormHook,
    MergeProjectionHook,
)
from topi.engine.taps import is_tapped, tapped
from topi.errors import ToPiError
from topi.models.held import held

if TYPE_CHECKING:
    from topi.engine.session import Session

HELD = (
    "Another method is attached to a transformer with which this one shares a {}; "
    "leave its `with` block first."
)


def wanted(session: "Session") -> tuple[list[tuple[nn.Module, ModelHook]], list[Any]]:
    """The modules to hook, each with its hook, and the attention processors to tap."""
    hooks: list[tuple[nn.Module, ModelHook]] = []
    processors: dict[int, Any] = {}
    adapter, layers = session.adapter, session.layers
    taps = layers.watcher is not None or layers.trim_last
    for layer, block in enumerate(adapter.blocks):
        hooks.append((block, BlockHook(layers, layer)))
        points = adapter.known_points(layer)
        if taps:
            processors[id(points.attention.processor)] = points.attention.processor
        if layers.merger is not None:
            hooks.append((points.attention, MergeAttentionHook(layers, points)))
            if points.mlp is not None:
                hooks.append((points.mlp, MergeMLPHook(layers, points)))
            if points.norm is not None and points.projection is not None:
                hooks.append((points.norm, MergeNormHook(layers)))
                hooks.append((points.projection, MergeProjectionHook(layers)))
    return hooks, list(processors.values())


class Inside:
    """Hooks of a session below its transformer, from `attach` on.

    Args:
        undo: once closed, everything is as it was before.
    """

    def __init__(self, session: "Session", undo: ExitStack) -> None:
        self._session, self._facts, self._undo = session, session.adapter.facts, undo
        self._hooked: list[nn.Module] = []

    def attach(self) -> None:
        """Hook everything.

        Raises:
            ToPiError: a part is held by another method, or not supported.
        """
        hooks, processors = wanted(self._session)
        modules = [module for module, _ in hooks]
        self._undo.enter_context(held([*modules, *processors], HELD))
        for module, hook in hooks:
            self._undo.enter_context(hooked(module, hook))
        for processor in processors:
            self._undo.enter_context(tapped(processor))
        self._hooked = modules

    def follow(self) -> None:
        """Move the hooks if modules have been exchanged, as a LoRA does with linear layers.

        Raises:
            ToPiError: the model has other layers now, or a part that is not supported.
        """
        adapter = self._session.adapter
        vars(adapter).pop("blocks", None)
        hooks, processors = wanted(self._session)
        in_place = self._hooked == [module for module, _ in hooks] and all(
            "forward" in vars(module) for module in self._hooked
        )
        if in_place and all(map(is_tapped, processors)):
            return
        self._hooked = []
        self._undo.close()
        vars(adapter).pop("facts", None)
        if adapter.facts != self._facts:
            raise ToPiError(
                f"The layers of this {self._facts.name} have changed since "
                f"{type(self._session.method).__name__} was attached; leave the `with` block and "
                "attach it again."
            )
        self.attach()
