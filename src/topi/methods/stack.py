"""Two methods at once: fewer tokens in the steps that run, and fewer steps that run."""

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
        ToPiError: not exactly one of them is a temporal cache.
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
    _call: Call | None = field(default=None, init=False, repr=False, compare=False)

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
    def decides_before(self) -> tuple[int, ...]:
        """Where the cache decides."""
        return tuple(self.cache.decides_before)

    def prepare(self, model: ModelFacts) -> None:
        """Both check the model."""
        self.method.prepare(model)
        self.cache.prepare(model)

    def reset(self) -> None:
        """Both forget, and steps count from 0 again."""
        self.method.reset()
        self.cache.reset()
        self._computed, self._call = {}, None

    def begin(self, call: Call) -> None:
        """Settle which step this is to the method, which then says whether it is an anchor."""
        self._call = call
        if self.cache.schedule == "computed":
            self._call = replace(call, step=self._computed.get(call.branch, 0))
        self.method.begin(self._call)
        self.cache.begin(call)

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """By the cache."""
        return self.cache.skip(call, layer, block)

    def remember(self, call: Call, states: Tensor) -> None:
        """By the cache."""
        self.cache.remember(call, states)

    def reduce(self, call: Call) -> Tensor | None:
        """By the method."""
        return self.method.reduce(self._call)

    def gather(self, call: Call, states: Tensor, rows: Tensor) -> Tensor:
        """By the method."""
        return self.method.gather(self._call, states, rows)

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """By the method."""
        return self.method.merge(self._call, layer, states)

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """By the method."""
        self.method.attend(self._call, layer, query, key, value, mask)

    def end(self, call: Call) -> None:
        """A skipped call is none to the method."""
        if not call.record.skipped:
            self._computed[call.branch] = self._computed.get(call.branch, 0) + 1
            self.method.end(self._call)
        self.cache.end(call)
