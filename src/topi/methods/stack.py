"""Two methods at once: fewer tokens in the steps that run, and fewer steps that run."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from topi.errors import ToPiError
from topi.methods.base import BlockInput, Call, Merge, Method
from topi.methods.full import Full
from topi.methods.temporal import TemporalCache
from topi.models import ModelFacts


def stack(one: Method, other: Method) -> Method:
    """Both methods at once, in any order; `Full` adds nothing to the other.

    Raises:
        ToPiError: not exactly one of them is a temporal cache, or it cannot work with the other.
    """
    if isinstance(one, Full) or isinstance(other, Full):
        return other if isinstance(one, Full) else one
    method, cache = (other, one) if isinstance(one, TemporalCache) else (one, other)
    if isinstance(method, TemporalCache):
        raise ToPiError(
            f"{type(one).__name__} and {type(other).__name__} both skip steps; use one of them."
        )
    if not isinstance(cache, TemporalCache) or isinstance(method, Stack):
        raise ToPiError(
            f"{type(one).__name__} and {type(other).__name__} cannot be stacked; a method that "
            "changes the tokens of a step stacks with one temporal cache, such as TeaCache."
        )
    if method.decides_before:
        raise ToPiError(
            f"{type(method).__name__} brings a cache of its own, which does not go with "
            f"{type(cache).__name__}; turn it off first (cache_every=1 of DaTo)."
        )
    if method.freezes:
        raise ToPiError(
            f"{type(method).__name__} computes a part of the target tokens only, so that no "
            f"temporal cache can remember what a step did; leave {type(cache).__name__} out."
        )
    cache.check_beside(method)
    return Stack(method, cache)


@dataclass
class Stack(Method):
    """A spatial method inside the steps that a temporal cache lets run.

    The order is skip, then reduce or merge. A step that the method scores in (an anchor of ToPi) is
    always computed. The method counts computed steps as its own, unless the cache's `schedule` says
    otherwise; the trace has the true ones.
    """

    method: Method
    cache: TemporalCache
    _computed: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _step: int = field(default=0, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.method.name}+{self.cache.name}"

    @property
    def params(self) -> dict[str, Any]:
        """The method's parameters, and under `cache` those of the cache with its name."""
        return {**self.method.params, "cache": {"name": self.cache.name, **self.cache.params}}

    @property
    def parts(self) -> tuple[Method, ...]:
        """The stack and what it consists of."""
        return (self, self.method, self.cache)

    @property
    def front_layers(self) -> int:
        """Those of the method."""
        return self.method.front_layers

    @property
    def observes(self) -> bool:
        """Does the method?"""
        return self.method.observes

    @property
    def merges(self) -> bool:
        """Does the method?"""
        return self.method.merges

    @property
    def reuses(self) -> bool:
        """Does the method?"""
        return self.method.reuses

    @property
    def decides_before(self) -> tuple[int, ...]:
        """Where the cache decides."""
        return tuple(self.cache.decides_before)

    def around(self, model: Any) -> AbstractContextManager[Any]:
        """By the method."""
        return self.method.around(model)

    def prepare(self, model: ModelFacts) -> None:
        """Both check the model."""
        self.method.prepare(model)
        self.cache.prepare(model)

    def reset(self) -> None:
        """Both forget, and steps count from 0 again."""
        self.method.reset()
        self.cache.reset()
        self._computed, self._step = {}, 0

    def begin(self, call: Call) -> None:
        """Settle which step this is to the method, which then says whether it is an anchor."""
        computed = self.cache.schedule == "computed"
        self._step = self._computed.get(call.branch, 0) if computed else call.step
        self.method.begin(self._own(call))
        self.cache.begin(call)

    def _own(self, call: Call) -> Call:
        """The call as the method counts steps."""
        return replace(call, step=self._step)

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """By the cache."""
        return self.cache.skip(call, layer, block)

    def remember(self, call: Call, states: Tensor) -> None:
        """By the cache."""
        self.cache.remember(call, states)

    def reduce(self, call: Call) -> Tensor | None:
        """By the method."""
        return self.method.reduce(self._own(call))

    def active(self, call: Call) -> Tensor | None:
        """By the method."""
        return self.method.active(self._own(call))

    def live_tokens(self, call: Call) -> Tensor | None:
        """By the method."""
        return self.method.live_tokens(self._own(call))

    def runs_alone(self, call: Call) -> bool:
        """By the method."""
        return self.method.runs_alone(self._own(call))

    def gather(self, call: Call, states: Tensor, rows: Tensor) -> Tensor:
        """By the method."""
        return self.method.gather(self._own(call), states, rows)

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """By the method."""
        return self.method.merge(self._own(call), layer, states)

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """By the method."""
        self.method.attend(self._own(call), layer, query, key, value, mask)

    def stored(
        self, call: Call, layer: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """By the method."""
        return self.method.stored(self._own(call), layer, key, value)

    def complete(self, call: Call, output: Tensor) -> Tensor:
        """By the method."""
        return self.method.complete(self._own(call), output)

    def text_weight(self, call: Call, layer: int) -> float:
        """By the method."""
        return self.method.text_weight(self._own(call), layer)

    def watches(self, call: Call, layer: int) -> bool:
        """Does the method?"""
        return self.method.watches(self._own(call), layer)

    def end(self, call: Call) -> None:
        """A skipped call is none to the method."""
        if not call.record.skipped:
            self._computed[call.branch] = self._computed.get(call.branch, 0) + 1
            self.method.end(self._own(call))
        self.cache.end(call)
