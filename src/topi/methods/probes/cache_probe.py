"""Watch how a model changes from step to step, for the fits of temporal caches."""

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor

from topi.engine import SkipsLayers
from topi.methods.base import BlockInput, Call, Method
from topi.methods.caches.magcache import magnitude_ratio
from topi.methods.parts.temporal import relative_change


@dataclass
class CacheProbe(Method, SkipsLayers):
    """Record what TeaCache and MagCache go by, of one pipeline call; no step is skipped.

    No method to compare, so it has no `variants`. The model's output is not the engine's to see:
    whoever runs the probe calls `see_output` after each transformer call.

    Attributes:
        inputs: branch -> relative change of the first block's modulated input over all image
            tokens, from step 1 on.
        outputs: the same of the model's output, over target tokens.
        ratios: the same of the blocks' residual, as mean ||now|| / ||before|| over target tokens.
    """

    inputs: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    outputs: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    ratios: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    _before: dict[tuple[str, str], Tensor] = field(default_factory=dict, init=False, repr=False)
    _start: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def decides_before(self) -> Collection[int]:
        """It looks where a cache would decide."""
        return (0,)

    def reset(self) -> None:
        """Forget the tensors; what was measured stays until the next pipeline call begins."""
        self._before, self._start = {}, None

    def begin(self, call: Call) -> None:
        """A pipeline call begins a new record."""
        if call.step == 0 and not self._before:
            self.inputs, self.outputs, self.ratios = {}, {}, {}

    def skip(self, call: Call, layer: int, block: BlockInput) -> None:
        """Note the change of the modulated input."""
        self._start = block.states[:, : call.layout.n_target]
        self._compare("input", self.inputs, call.branch, block.normed())

    def remember(self, call: Call, states: Tensor) -> None:
        """Note the change of the residual."""
        self._compare("residual", self.ratios, call.branch, states - self._start)

    def see_output(self, output: Tensor) -> None:
        """Note the change of the latest transformer call's output [B, N, C]."""
        record = self.trace[-1]
        self._compare("output", self.outputs, record.branch, output[:, : record.layout.n_target])

    def _compare(self, what: str, into: dict[str, list[float]], branch: str, now: Tensor) -> None:
        before, self._before[what, branch] = self._before.get((what, branch)), now
        if before is not None:
            measure = magnitude_ratio if what == "residual" else relative_change
            into.setdefault(branch, []).append(measure(now, before))
