"""The base of all methods."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self, TypeVar

from topi.engine import FULL, BlockInput, Call, CallRecord, Merge, Plan, Session, capable
from topi.methods.parameters import check_layers, check_one_of, check_share, check_whole, plain
from topi.models import ModelFacts, adapter_for
from topi.models.held import held

__all__ = ["BlockInput", "Call", "CallRecord", "Merge", "Method", "Plan"]
__all__ += ["check_layers", "check_one_of", "check_share", "check_whole"]

C = TypeVar("C")
IN_USE = "This {} object is in use; leave its `with` block first or make another one."


@dataclass
class Method:
    """A way to run a pipeline with less work: `with method(pipe): pipe(...)`.

    Two methods stack, as `ToPi() + TeaCache()`, if one of them is a temporal cache. Subclasses are
    dataclasses. They override `prepare`, `reset`, `begin`, `plan` and `end` as they need, and
    inherit from the capabilities of `topi.engine.interface` for what goes beyond a plan: to merge
    tokens, skip layers, watch attention or reuse keys and values. They know nothing of the model
    but `ModelFacts`.

    Attributes:
        trace: one record per transformer call of the latest pipeline call.
        variants: the names under which the method is found -> the parameters each name fixes.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    trace: list[CallRecord] = field(default_factory=list, init=False, repr=False, compare=False)
    _seed: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Turn numbers of NumPy and torch into Python's own; subclasses check them then.

        Raises:
            ToPiError: of a subclass: a value is of another type or out of range.
        """
        for each in fields(self):
            if each.init:
                setattr(self, each.name, plain(getattr(self, each.name)))

    @contextmanager
    def __call__(self, model: Any, seed: int = 0, trim_last: bool = False) -> Iterator[Self]:
        """Attach to a pipeline or its transformer for the length of a `with` block.

        Whoever calls the transformer directly gets rows in number and order as without a method. In
        calls in which not all reference tokens are computed, the rows of references are zero.

        An attempt that fails changes nothing. Copies and pickles of the pipeline that are made
        inside are without the method, and a copy of the method can be attached elsewhere.

        Args:
            seed: at least 0; what the method draws at random depends on it.
            trim_last: a gain that is free with any method that does not merge: in the last block
                compute only what is read, that is the target tokens and the references' keys and
                values. The output is the same up to rounding.

        Raises:
            ToPiError: the model is not supported or does not fit the parameters, this object is in
                use already, or another method holds the model.
        """
        parts = self.parts
        with held(parts, IN_USE):
            seed = check_whole("seed", seed, least=0)
            adapter, attached = adapter_for(model), False
            before = [(vars(part), dict(vars(part))) for part in parts]
            try:
                self.prepare(adapter.facts)
                with self.around(model), Session(adapter, self, model, trim_last).attached():
                    for part in parts:
                        part._seed = seed
                    attached = True
                    yield self
            finally:
                for now, then in () if attached else before:
                    now.clear()
                    now.update(then)

    def __add__(self, other: "Method") -> "Method":
        """Both at once; one of them must be a temporal cache.

        Raises:
            ToPiError: they cannot work together.
        """
        from topi.methods.stack import stack  # which builds on this class

        return stack(self, other) if isinstance(other, Method) else NotImplemented

    @property
    def parts(self) -> tuple["Method", ...]:
        """The methods it consists of."""
        return (self,)

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

    def part(self, capability: type[C]) -> C | None:
        """The part that has a capability, such as `MergesTokens`; None if none has it."""
        return capable(self.parts, capability)

    @property
    def drops_from(self) -> int | None:
        """The first layer that may run without some reference tokens; None: all run with all."""
        return None

    @property
    def plans_before(self) -> Collection[int]:
        """Layers before which `plan` is asked again inside a call."""
        return ()

    def around(self, model: Any) -> AbstractContextManager[Any]:
        """What holds the pipeline, beside the hooks on its transformer, while attached."""
        return nullcontext()

    def prepare(self, model: ModelFacts) -> None:
        """At attach: check the parameters against the model, plan by depth."""

    def reset(self) -> None:
        """Drop the state of a pipeline call; also runs after an exception."""

    def begin(self, call: Call) -> None:
        """Before each transformer call that has references."""

    def numbered(self, call: Call) -> Call:
        """The call with its `turn`; a stack with a cache counts computed steps."""
        return call

    def plan(self, call: Call, layer: int = 0) -> Plan:
        """What the call keeps, computes and takes from a store; before a later layer: from there.

        Args:
            layer: 0 at the beginning of a call, or one of `plans_before`.
        """
        return FULL

    def end(self, call: Call) -> None:
        """After each transformer call that did not fail."""
