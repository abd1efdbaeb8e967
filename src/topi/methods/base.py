"""The base of all methods."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from torch import Tensor

from topi.engine import Call, CallRecord, Merge, Session
from topi.errors import ToPiError
from topi.models import ModelFacts, adapter_for

__all__ = ["Call", "CallRecord", "Merge", "Method", "check_layers", "check_share"]


def check_share(name: str, value: Any) -> None:
    """Raise a ToPiError unless `value` is a number in [0, 1]."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ToPiError(f"{name}={value!r} must be a number in [0, 1].")


def check_layers(layers: Iterable[int], model: ModelFacts) -> frozenset[int]:
    """The layers as a set; raise a ToPiError unless the model has them all."""
    layers = frozenset(layers)
    if outside := sorted(layers - set(range(model.depth))):
        raise ToPiError(
            f"layers {outside} do not exist; this {model.name} has layers 0 to {model.depth - 1}."
        )
    return layers


@dataclass
class Method:
    """A way to run a pipeline on fewer reference tokens: `with method(pipe): pipe(...)`.

    Subclasses are dataclasses and override the callbacks they need; a callback that is not
    overridden costs nothing. They know nothing of the model but `ModelFacts`.

    Attributes:
        trace: one record per transformer call of the latest pipeline call.
        variants: the names under which the method is found -> the parameters each name fixes.
        front_layers: the first layers, which always see all reference tokens (section 4.3).
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    front_layers: ClassVar[int] = 0
    trace: list[CallRecord] = field(default_factory=list, init=False, repr=False, compare=False)
    _attached: bool = field(default=False, init=False, repr=False, compare=False)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Self]:
        """Attach to a pipeline or its transformer for the length of a `with` block.

        Raises:
            ToPiError: the model is not supported or does not fit the parameters, this object is in
                use already, or another method holds the model.
        """
        if self._attached:
            raise ToPiError(
                f"This {type(self).__name__} object is in use; "
                "leave its `with` block first or make another one."
            )
        adapter = adapter_for(model)
        self.prepare(adapter.facts)
        with Session(adapter, self).attached():
            self._attached = True
            try:
                yield self
            finally:
                self._attached = False

    @property
    def name(self) -> str:
        """The name in `variants` whose parameters this object has."""
        for name, fixed in self.variants.items():
            if all(getattr(self, key) == value for key, value in fixed.items()):
                return name
        return type(self).__name__

    @property
    def params(self) -> dict[str, Any]:
        """The parameters this object was built with."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @property
    def observes(self) -> bool:
        """Does it want to see attention?"""
        return type(self).attend is not Method.attend

    @property
    def merges(self) -> bool:
        """Can it merge tokens?"""
        return type(self).merge is not Method.merge

    def prepare(self, model: ModelFacts) -> None:
        """At attach: check the parameters against the model, plan by depth."""

    def reset(self) -> None:
        """Drop the state of a pipeline call; also runs after an exception."""

    def begin(self, call: Call) -> None:
        """Before each transformer call that has references."""

    def reduce(self, call: Call) -> Tensor | None:
        """Reference tokens to keep after the front layers: ascending indices [K], None for all."""

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """How `layer` merges its image tokens, given their normed states [B, N, D]; None: not."""

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Look at query, key, value [B, S, H, D] after norm and RoPE, and at the mask, if any."""

    def end(self, call: Call) -> None:
        """After each transformer call that did not fail."""
