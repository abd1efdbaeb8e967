"""DaTo's search: which layers run in each step, and which share is pruned, with NSGA-II.

Two objectives, as in the paper (arXiv 2501.00375): quality, here the PSNR to the full-context
output, and cost, here counted FLOPs, which unlike the time of a run does not depend on the machine.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from topi.bench.data import EditSample
from topi.bench.editors.editor import Editor
from topi.bench.results import files
from topi.bench.studies.held_out import psnr
from topi.engine.flops import FlopCounter
from topi.errors import ToPiError
from topi.methods import make_method
from topi.models import adapter_for

log = logging.getLogger(__name__)

RATIOS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares to choose from; those of the released code, and none."""
PERIODS = (2, 3, 4)
"""Of the periodic schedules that the search starts from."""

Code = tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """One choice per step, with its scores.

    Args:
        ratio: share of tokens that is pruned from attention.
        depths: how many layers run.
        psnr: to the full-context output in dB, mean over samples; speedup: FLOP-ideal.
    """

    ratio: tuple[float, ...]
    depths: tuple[int, ...]
    psnr: float
    speedup: float


@dataclass(frozen=True)
class Space:
    """Schedules as vectors of whole numbers: a depth for each step, then a ratio for each step.

    Args:
        steps: denoising steps.
        depths: to choose from, ascending; the last is all layers.
    """

    steps: int
    depths: tuple[int, ...]

    @classmethod
    def of(cls, steps: int, depth: int, choices: int = 4) -> "Space":
        """Depths in equal distances up to the depth of the model."""
        return cls(
            steps, tuple(sorted({max(1, depth * i // choices) for i in range(1, choices + 1)}))
        )

    @property
    def upper(self) -> np.ndarray:
        """The largest number at every place [2 steps]."""
        return np.repeat([len(self.depths) - 1, len(RATIOS) - 1], self.steps)

    def decode(self, code: Code) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """(ratio, depths) of each step; the first step always runs in full."""
        depths = [self.depths[i] for i in code[: self.steps]]
        ratio = [RATIOS[i] for i in code[self.steps :]]
        return tuple(ratio), (self.depths[-1], *depths[1:])

    def first_population(self, size: int, seed: int) -> np.ndarray:
        """Full context, periods from gentle to bold, and random schedules: [size, 2 steps]."""
        step, last = np.arange(self.steps), len(self.depths) - 1
        known = [np.repeat([last, 0], self.steps)]
        for ratio in (0, RATIOS.index(0.4)):
            for shallow in range(last - 1, -1, -1):
                for period in PERIODS:
                    cached = np.where(step % period, shallow, last)
                    known.append(np.concatenate([cached, np.full(self.steps, ratio)]))
        drawn = np.random.default_rng(seed).integers(self.upper + 1, size=(size, 2 * self.steps))
        return np.concatenate([np.array(known)[: size // 2 + 1], drawn])[:size]


class Judge:
    """Scores schedules on samples. The file `rows` keeps the scores for a later process."""

    def __init__(
        self, editor: Editor, samples: Sequence[EditSample], seed: int, method: str, rows: Path
    ) -> None:
        self.editor, self.samples, self.seed = editor, samples, seed
        self.method, self._rows = method, rows
        self.space = Space.of(editor.steps, adapter_for(editor.pipe).facts.depth)
        self._counter = FlopCounter(editor.transformer)
        self._full: list[np.ndarray] = []
        known = files.resume_lines(rows)
        self._known = {tuple(row["code"]): (row["psnr"], row["speedup"]) for row in known}

    def __call__(self, code: Code) -> Schedule:
        """The schedule with its scores; it runs on all samples unless `rows` has its scores."""
        ratio, depths = self.space.decode(code)
        if code not in self._known:
            self._known[code] = self._run(ratio, depths)
            quality, speedup = self._known[code]
            files.append(self._rows, {"code": code, "psnr": quality, "speedup": speedup})
        return Schedule(ratio, depths, *self._known[code])

    def _run(self, ratio: tuple[float, ...], depths: tuple[int, ...]) -> tuple[float, float]:
        if not self._full:
            self._full = [self._edit(sample) for sample in self.samples]
        method = make_method(self.method, ratio=ratio, depths=depths)
        scores, speedups = [], []
        for sample, full in zip(self.samples, self._full, strict=True):
            with method(self.editor.pipe):
                scores.append(psnr(self._edit(sample), full))
            speedups.append(self._counter.run(method.trace).speedup)
        return fmean(scores), fmean(speedups)

    def _edit(self, sample: EditSample) -> np.ndarray:
        return np.asarray(self.editor.edit(sample, self.seed).convert("RGB"))


def search(
    judge: Callable[[Code], Schedule], space: Space, population: int, generations: int, seed: int
) -> list[Schedule]:
    """The Pareto front of quality and speed among the schedules that were tried, slowest first.

    Args:
        judge: scores a schedule of the space.
        population: schedules of a generation; the first one holds `Space.first_population`.
        seed: of the search; the same seed gives the same search.

    Raises:
        ToPiError: too few of either number, or pymoo is not installed.
    """
    if population < 4 or generations < 1:
        raise ToPiError("The search needs --population 4 or more and --generations 1 or more.")
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import ElementwiseProblem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.optimize import minimize
    except ImportError as error:
        raise ToPiError("The search needs pymoo. Install it: pip install pymoo") from error

    class Problem(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=2 * space.steps, n_obj=2, xl=0, xu=space.upper, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict, *args: object, **kwargs: object) -> None:
            schedule = judge(tuple(map(int, x)))
            out["F"] = [-schedule.psnr, 1 / schedule.speedup]

    algorithm = NSGA2(  # operators and their settings are those of the released search
        pop_size=population,
        sampling=space.first_population(population, seed),
        crossover=SBX(prob=0.7, eta=7, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=0.4, eta=15, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )

    def report(algorithm: NSGA2) -> None:
        fastest = 1 / min(algorithm.opt.get("F")[:, 1])
        size, number = len(algorithm.opt), algorithm.n_gen
        log.info("generation %d: a front of %d up to %.2fx", number, size, fastest)

    result = minimize(Problem(), algorithm, ("n_gen", generations), seed=seed, callback=report)
    front = {judge(tuple(map(int, code))) for code in np.atleast_2d(result.X)}
    return sorted(front, key=lambda schedule: schedule.speedup)
