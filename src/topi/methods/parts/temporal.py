"""Methods that skip steps: what the blocks would compute is predicted from earlier steps.

Only target tokens are remembered. The outputs of reference tokens are never used, and how many of
them there are may change from step to step when a spatial method is stacked (`stack.py`).
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from topi.engine import SkipsLayers
from topi.errors import ToPiError
from topi.methods.base import BlockInput, Call, Method
from topi.methods.parameters import check_one_of
from topi.models import ModelFacts

CFG_DECISIONS = ("shared", "separate")
SCHEDULES = ("computed", "all")


def relative_change(now: Tensor, before: Tensor) -> float:
    """mean |now - before| / mean |before|; 0 where nothing changed, infinite where all was zero."""
    before = before.float()
    change, scale = (now.float() - before).abs().mean(), before.abs().mean()
    return 0.0 if change == 0 else float(change / scale)


@dataclass
class Memory:
    """What a temporal cache remembers of one CFG branch; each cache adds its own.

    Args:
        start: [B, G, D] target states before the blocks that may be skipped, of the running call.
        residual: [B, G, D] what those blocks added at the latest computed step.
    """

    start: Tensor | None = None
    residual: Tensor | None = None


@dataclass
class TemporalCache(Method, SkipsLayers):
    """A step whose blocks are not run, if they would change little: `ToPi() + TeaCache()`.

    A subclass says when (`may_skip`), and if that is not by the residual of the latest computed
    step, what is put in place of the blocks (`predict`). A call that scores reference tokens is
    always computed, as it needs their attention.

    Args:
        cfg_decision: "shared": the first branch of a step decides for all, as guidance amplifies
            what only one branch gets wrong; "separate": each branch for itself. What is remembered
            is each branch's own in both cases.
        schedule: which steps the schedule of a stacked method counts, such as the anchors of ToPi:
            "computed" steps only, so that a skipped step uses up none of an interval, or "all".

    Attributes:
        fitted: parameters that are fitted for each model; None stands for the model's own fit.
        unfitted: what some of them are where no fit tells them.
        ends: the first and the last step are always computed.
        needs_steps: it must be told how many steps there are.
    """

    fitted: ClassVar[tuple[str, ...]] = ()
    unfitted: ClassVar[Mapping[str, Any]] = {}
    ends: ClassVar[bool] = False
    needs_steps: ClassVar[bool] = False

    cfg_decision: Literal["shared", "separate"] = "shared"
    schedule: Literal["computed", "all"] = "computed"
    _fit: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _memory: dict[str, Memory] = field(default_factory=dict, init=False, repr=False, compare=False)
    _decided: tuple[int, bool] = field(default=(-1, False), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ToPiError: a value is out of range.
        """
        super().__post_init__()
        check_one_of("cfg_decision", self.cfg_decision, CFG_DECISIONS)
        check_one_of("schedule", self.schedule, SCHEDULES)

    def check_beside(self, method: Method) -> None:
        """Refuse a method that it cannot be stacked with.

        Raises:
            ToPiError: it cannot, as it is set.
        """

    @property
    def decides_before(self) -> Collection[int]:
        """The first layer: all blocks are skipped or none."""
        return (0,)

    def prepare(self, model: ModelFacts) -> None:
        """Settle what is fitted.

        Raises:
            ToPiError: it is neither given nor known for this model, or what is known is not valid.
        """
        known = {**self.unfitted, **model.temporal_cache.get(self.name, {})}
        given = {name: getattr(self, name) for name in self.fitted}
        self._fit = {k: known.get(k) if value is None else value for k, value in given.items()}
        if missing := [name for name, value in self._fit.items() if value is None]:
            raise ToPiError(
                f"{type(self).__name__} is not fitted for this {model.name} of {model.depth} "
                f"layers; run `topi fit-cache` on it and give {', '.join(missing)}, or cache.fit= "
                "on the command line."
            )
        checked = replace(self, **self._fit)
        self._fit = {name: getattr(checked, name) for name in self.fitted}

    def reset(self) -> None:
        """Drop what is remembered."""
        self._memory, self._decided = {}, (-1, False)

    def begin(self, call: Call) -> None:
        """Make sure that the last step can be told.

        Raises:
            ToPiError: nobody knows how many steps there are.
        """
        if call.n_steps is None and (self.ends or self.needs_steps):
            raise ToPiError(
                f"{type(self).__name__} must know how many steps there are; attach it to the "
                "pipeline instead of its transformer."
            )

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """Decide, and predict the target states [B, G, D] after the last block if it is to skip."""
        memory = self._memory.setdefault(call.branch, self.new_memory())
        memory.start = block.states[:, : call.layout.n_target]
        wanted = self.may_skip(call, block, memory) and not self._must_compute(call)
        if self.cfg_decision == "shared":
            if self._decided[0] == call.step:
                wanted = self._decided[1]
            self._decided = (call.step, wanted)
        return self.predict(call, memory) if wanted and self.can_predict(memory) else None

    def _must_compute(self, call: Call) -> bool:
        at_end = self.ends and call.step in (0, call.n_steps - 1)
        return call.record.anchor or at_end

    def remember(self, call: Call, states: Tensor) -> None:
        """Keep what a computed step's blocks did."""
        self.computed(call, self._memory[call.branch], states)

    def new_memory(self) -> Memory:
        """Of a branch, at the begin of a pipeline call."""
        return Memory()

    def can_predict(self, memory: Memory) -> bool:
        """True if there is anything to predict from."""
        return memory.residual is not None

    @abstractmethod
    def may_skip(self, call: Call, block: BlockInput, memory: Memory) -> bool:
        """Would the blocks change little? Asked at every call, also when it must be computed."""

    def predict(self, call: Call, memory: Memory) -> Tensor:
        """What stands for the blocks' output: the input plus the remembered residual."""
        return memory.start + memory.residual

    def computed(self, call: Call, memory: Memory, states: Tensor) -> None:
        """The blocks have run and yielded target states [B, G, D]."""
        memory.residual = states - memory.start
