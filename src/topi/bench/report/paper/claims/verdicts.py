"""Verdicts on a claim: comparisons with intervals, and what they decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from topi.bench.results.statistics import LEVEL, Estimate, holm

REPRODUCED, CONTRADICTED, INCONCLUSIVE, UNTESTABLE = (
    "reproduced",
    "contradicted",
    "inconclusive",
    "not testable here",
)
VERDICTS = (REPRODUCED, CONTRADICTED, INCONCLUSIVE, UNTESTABLE)
FEWEST = 4
"""With fewer samples than this nothing is decided: a bootstrap cannot estimate their spread."""


@dataclass(frozen=True)
class Comparison:
    """A number that the claim says is above zero, with its 95 % interval.

    Args:
        what: what was subtracted from what.
        estimate: of the difference; no samples if it could not be computed.
        unit: printed after the numbers.
        margin: how far below zero still counts as equal, for a claim of "at least as good".
        cells: keys behind it.
        headline: whether a reader should see it in any case.
        exact: it was computed, not estimated from samples.
    """

    what: str
    estimate: Estimate
    unit: str = ""
    margin: float = 0.0
    cells: tuple[str, ...] = ()
    headline: bool = True
    exact: bool = False

    @property
    def verdict(self) -> str:
        """Reproduced if the whole interval is above minus the margin, contradicted if below."""
        if not self.estimate.n:
            return UNTESTABLE
        if self.estimate.n < FEWEST and not self.exact:
            return INCONCLUSIVE
        if self.estimate.low > -self.margin:
            return REPRODUCED
        return CONTRADICTED if self.estimate.high < -self.margin else INCONCLUSIVE

    def __str__(self) -> str:
        """In words."""
        e = self.estimate
        if not e.n:
            return f"{self.what}: no numbers"
        digits = 2 if max(abs(e.value), abs(e.low), abs(e.high)) >= 0.1 else 4
        value = f"{self.what}: {e.value:+.{digits}f}{self.unit}"
        return (
            value if self.exact else f"{value} [{e.low:+.{digits}f}, {e.high:+.{digits}f}], n={e.n}"
        )


@dataclass(frozen=True)
class Finding:
    """What one model says of one claim."""

    verdict: str
    comparisons: tuple[Comparison, ...] = ()
    reason: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The keys of all cells behind it."""
        return tuple(dict.fromkeys(key for c in self.comparisons for key in c.cells))

    @property
    def telling(self) -> list[Comparison]:
        """The comparisons to show: the headlines, and the worst of the others that do not hold."""
        shown = [c for c in self.comparisons if c.headline and c.estimate.n]
        others = [c for c in self.comparisons if not c.headline and c.estimate.n]
        for verdict in (CONTRADICTED, INCONCLUSIVE):
            if worst := [c for c in others if c.verdict == verdict]:
                return [*shown, min(worst, key=lambda c: c.estimate.value)]
        return shown

    @property
    def tally(self) -> str:
        """How many comparisons came out how; empty where that decides nothing."""
        if self.verdict == UNTESTABLE or len(self.comparisons) < 2:
            return ""
        counts = {v: sum(c.verdict == v for c in self.comparisons) for v in VERDICTS}
        words = ("hold", "reversed", "unclear", "without numbers")
        parts = [f"{n} {word}" for n, word in zip(counts.values(), words, strict=True) if n]
        return f"{len(self.comparisons)} comparisons: {', '.join(parts)}."


def decide(comparisons: Iterable[Comparison], reason: str = "") -> Finding:
    """The verdict of a claim that says that every one of these comparisons holds.

    One that is clearly reversed contradicts it, whatever the others say: a headline, or any other
    that is so after correction for the number of comparisons.
    """
    comparisons = tuple(comparisons)
    verdicts = {comparison.verdict for comparison in comparisons} or {UNTESTABLE}
    if CONTRADICTED in verdicts and not any(reversed_for_sure(comparisons)):
        verdicts = verdicts - {CONTRADICTED} | {INCONCLUSIVE}
    for verdict in (CONTRADICTED, UNTESTABLE, INCONCLUSIVE):
        if verdict in verdicts:
            if verdict == UNTESTABLE and not reason:
                reason = "Its cells are missing or not complete."
            return Finding(verdict, comparisons, reason)
    return Finding(REPRODUCED, comparisons, reason)


def reversed_for_sure(comparisons: Sequence[Comparison]) -> list[bool]:
    """Which are reversed, and headlines or so unlikely by chance among all of them (Holm)."""
    p_values = holm([(c.estimate + c.margin).p_below for c in comparisons])
    return [
        c.verdict == CONTRADICTED and (c.headline or p < (1 - LEVEL) / 2)
        for c, p in zip(comparisons, p_values, strict=True)
    ]
