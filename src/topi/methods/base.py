"""The base of all methods."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from torch import Tensor

from topi.engine import BlockInput, Call, CallRecord, Merge, Session
from topi.methods.parameters import check_layers, check_one_of, check_share, check_whole, plain
from topi.models import ModelFacts, adapter_for
from topi.models.held import held
from topi.models.rope import take_rows

__all__ = ["BlockInput", "Call", "CallRecord", "Merge", "Method"]
__all__ += ["check_layers", "check_one_of", "check_share", "check_whole"]

IN_USE = "This {} object is in use; leave its `with` block first or make another one."


@dataclass
class Method:
    """A way to run a pipeline with less work: `with method(pipe): pipe(...)`.

    Two methods stack, as `ToPi() + TeaCache()`, if one of them is a temporal cache. Subclasses are
    dataclasses and override the callbacks they need; a callback that is not overridden costs
    nothing. They know nothing of the model but `ModelFacts`.

    Attributes:
        trace: one record per transformer call of the latest pipeline call.
        variants: the names under which the method is found -> the parameters each name fixes.
        front_layers: the first layers, which always see all reference tokens (section 4.3).
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    front_layers: ClassVar[int] = 0
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

    @property
    def observes(self) -> bool:
        """Does it want to see attention, or to weigh it?"""
        cls = type(self)
        return cls.attend is not Method.attend or cls.text_weight is not Method.text_weight

    @property
    def merges(self) -> bool:
        """Can it merge tokens?"""
        return type(self).merge is not Method.merge

    @property
    def reuses(self) -> bool:
        """Does it keep keys and values for later steps?"""
        return type(self).stored is not Method.stored

    @property
    def freezes(self) -> bool:
        """Can it leave target tokens out?"""
        return type(self).active is not Method.active

    @property
    def decides_before(self) -> Collection[int]:
        """The layers before which it decides whether they and all later ones need to run."""
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

    def reduce(self, call: Call) -> Tensor | None:
        """Reference tokens to keep after the front layers: ascending indices, None for all.

        [K], or [B, K] if each sample of the batch keeps its own.
        A method that `reuses` has those in store: where it returns indices, no reference token but
        the `live_tokens` is computed.
        """

    def active(self, call: Call) -> Tensor | None:
        """Target tokens to compute where references are in store: ascending indices, None for all.

        `complete` has to make up for the others.
        """

    def live_tokens(self, call: Call) -> Tensor | None:
        """Reference tokens to compute although others come from a store: ascending, None for none.

        They stand at the end of a layer's sequence; `stored` must leave them out.
        """

    def runs_alone(self, call: Call) -> bool:
        """Are the reference tokens first run on their own?

        They then run at timestep 0 and attend to each other only, and `attend` sees them in a call
        that says `alone`.
        """
        return False

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """The target states [B, G, D] after the last block, if `layer` and on need not run."""

    def remember(self, call: Call, states: Tensor) -> None:
        """The target states [B, G, D] after the last block of a call that skipped nothing.

        Like `skip`, only called if there are layers in `decides_before`.
        """

    def gather(self, call: Call, states: Tensor, rows: Tensor) -> Tensor:
        """States [B, N, D] of the image stream to those of its kept rows [n] or [B, n]."""
        return take_rows(states, rows)

    def merge(self, call: Call, layer: int, states: Tensor) -> Merge | None:
        """How `layer` merges its image tokens, given their normed states [B, N, D]; None: not."""

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Look at query, key, value [B, S, H, D] after norm and RoPE, and at the mask, if any."""

    def text_weight(self, call: Call, layer: int) -> float:
        """How many times its own weight each text key has in `layer`'s attention; asked last."""
        return 1.0

    def stored(
        self, call: Call, layer: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Keys and values [B, n, H, D] that `layer` attends to beside its own [B, S, H, D]."""

    def complete(self, call: Call, output: Tensor) -> Tensor:
        """The transformer's output [B, n, C] with a row for every target token."""
        return output

    def watches(self, call: Call, layer: int) -> bool:
        """Is `attend` to be called for this layer? What is not watched can run compiled."""
        return True

    def end(self, call: Call) -> None:
        """After each transformer call that did not fail."""
