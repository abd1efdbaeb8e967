"""FirstBlockCache: let the first block tell whether the others are worth running.

ParaAttention's First Block Cache, in the form of diffusers' hook, with target-only residuals; with
more than one first block it is the F part of cache-dit's DBCache.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from topi.errors import ToPiError
from topi.methods.base import BlockInput, Call, Method
from topi.methods.parameters import check_number, check_one_of, check_whole
from topi.methods.parts.temporal import Memory, TemporalCache, relative_change
from topi.models import ModelFacts

ROWS = ("image", "target")


@dataclass
class FirstBlockMemory(Memory):
    """Also the input of the first blocks, what they added now and at the computed step, and skips.

    Args:
        skips: in a row, up to now.
    """

    first: Tensor | None = None
    change: Tensor | None = None
    reference: Tensor | None = None
    skips: int = 0


@dataclass
class FirstBlockCache(TemporalCache):
    """Skip the other blocks where the first adds nearly what it did at the latest computed step.

    The change is not accumulated, and no step is computed just for being the last.

    Args:
        threshold: of the relative change of what the first blocks add; a negative one computes
            every step.
        first_blocks: how many blocks always run and are looked at.
        warmup: compute this many first steps.
        max_skips: at most this many steps in a row, as cache-dit's max_continuous_cached_steps;
            None: any number.
        rows: the change is over all "image" tokens, as in diffusers, or over "target" tokens.
    """

    variants: ClassVar = {"first_block_cache": {}}

    threshold: float = 0.05
    first_blocks: int = 1
    warmup: int = 0
    max_skips: int | None = None
    rows: Literal["image", "target"] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, "", lambda number: True)
        check_whole("first_blocks", self.first_blocks, least=1)
        check_whole("warmup", self.warmup, least=0)
        if self.max_skips is not None:
            check_whole("max_skips", self.max_skips, least=0)
        check_one_of("rows", self.rows, ROWS)

    @property
    def decides_before(self) -> Collection[int]:
        """Before the first block it looks, behind the first blocks it decides."""
        return (0, self.first_blocks)

    def prepare(self, model: ModelFacts) -> None:
        """Some blocks must be left to skip."""
        super().prepare(model)
        if self.first_blocks >= model.depth:
            raise ToPiError(
                f"first_blocks={self.first_blocks} leaves none of the {model.depth} layers of this "
                f"{model.name} to skip."
            )

    def new_memory(self) -> FirstBlockMemory:
        """Without any computed step."""
        return FirstBlockMemory()

    def check_beside(self, method: Method) -> None:
        """All tokens that it compares must run in the first blocks of every step.

        Raises:
            ToPiError: the method drops tokens before these blocks have run.
        """
        first = method.drops_from
        if first is not None and self.rows == "image" and first < self.first_blocks:
            raise ToPiError(
                f"{type(self).__name__} compares all image tokens after first_blocks="
                f"{self.first_blocks}, of which {type(method).__name__} drops some from layer "
                f"{first} on; use rows=target (cache.rows=target) or fewer first "
                "blocks."
            )

    def skip(self, call: Call, layer: int, block: BlockInput) -> Tensor | None:
        """Before the first block, only look."""
        if layer > 0:
            return super().skip(call, layer, block)
        memory = self._memory.setdefault(call.branch, self.new_memory())
        memory.first = self._looked_at(block.states, call)
        return None

    def may_skip(self, call: Call, block: BlockInput, memory: FirstBlockMemory) -> bool:
        """True if the first blocks add nearly the same."""
        memory.change = self._looked_at(block.states, call) - memory.first
        if memory.reference is None or call.step < self.warmup:
            return False
        memory.skips += 1
        if self.max_skips is not None and memory.skips > self.max_skips:
            return False
        return relative_change(memory.change, memory.reference) <= self.threshold

    def _looked_at(self, states: Tensor, call: Call) -> Tensor:
        return states if self.rows == "image" else states[:, : call.layout.n_target]

    def computed(self, call: Call, memory: FirstBlockMemory, states: Tensor) -> None:
        """This step is what the next ones are compared with."""
        super().computed(call, memory, states)
        memory.reference, memory.skips = memory.change, 0
