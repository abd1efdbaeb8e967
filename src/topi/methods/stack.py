"""Two methods at once: fewer tokens in the steps that run, and fewer steps that run."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from topi.engine import FreezesTargets, SkipsLayers
from topi.errors import ToPiError
from topi.methods.base import Call, Method, Plan
from topi.methods.floors.full import Full
from topi.methods.parts.temporal import TemporalCache
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
    if method.part(SkipsLayers) is not None:
        raise ToPiError(
            f"{type(method).__name__} brings a cache of its own, which does not go with "
            f"{type(cache).__name__}; turn it off first (cache_every=1 of DaTo)."
        )
    if method.part(FreezesTargets) is not None:
        raise ToPiError(
            f"{type(method).__name__} computes a part of the target tokens only, so that no "
            f"temporal cache can remember what a step did; leave {type(cache).__name__} out."
        )
    cache.check_beside(method)
    return Stack(method, cache)


@dataclass
class Stack(Method):
    """A spatial method inside the steps that a temporal cache lets run.

    A step that the method scores in (an anchor of ToPi) is always computed. The method counts
    computed steps as its own, unless the cache's `schedule` says otherwise; the trace has the true
    ones. What goes beyond the plan of a call is the members' own, see `parts`.
    """

    method: Method
    cache: TemporalCache
    _computed: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

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
    def plans_before(self) -> Collection[int]:
        """Those of the method."""
        return self.method.plans_before

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
        self._computed = {}

    def numbered(self, call: Call) -> Call:
        """The turn is the number of computed steps before, or the step."""
        computed = self.cache.schedule == "computed"
        return replace(call, turn=self._computed.get(call.branch, 0)) if computed else call

    def begin(self, call: Call) -> None:
        """The method says whether this is an anchor."""
        self.method.begin(call)
        self.cache.begin(call)

    def plan(self, call: Call, layer: int = 0) -> Plan:
        """By the method."""
        return self.method.plan(call, layer)

    def end(self, call: Call) -> None:
        """The method does not learn of a skipped call."""
        if not call.record.skipped:
            self._computed[call.branch] = self._computed.get(call.branch, 0) + 1
            self.method.end(call)
        self.cache.end(call)
