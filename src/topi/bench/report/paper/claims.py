"""How a claim of the paper is decided: comparisons with intervals, and the verdict they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text as Words
from typing_extensions import TypedDict

from topi.bench.io.escape import code, markdown
from topi.bench.report.paper.suite import Run, Suite, best_suites, suites, weights_of
from topi.bench.report.text_table import Text, TextTable, to_markdown
from topi.bench.results import validation as schema
from topi.bench.results.probe_run import ProbeRun, load_probes
from topi.bench.results.statistics import LEVEL, Estimate, holm
from topi.bench.results.store import Store

REPRODUCED, CONTRADICTED, INCONCLUSIVE, UNTESTABLE = (
    "reproduced",
    "contradicted",
    "inconclusive",
    "not testable here",
)
VERDICTS = (REPRODUCED, CONTRADICTED, INCONCLUSIVE, UNTESTABLE)
STYLES = {REPRODUCED: "green", CONTRADICTED: "bold red", INCONCLUSIVE: "yellow", UNTESTABLE: "dim"}
FEWEST = 4
"""With fewer samples than this nothing is decided: a bootstrap cannot estimate their spread."""
ARITHMETIC = "arithmetic, no model"
"""In place of a model, for claims that follow from formulas."""


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


@dataclass(frozen=True)
class Evidence:
    """What there is of one model.

    Args:
        model: its name.
        suites: its cells.
        probe: how it attends to its references, if that was looked at.
    """

    model: str
    suites: tuple[Suite, ...] = ()
    probe: ProbeRun | None = None

    @property
    def stand_in(self) -> bool:
        """True if it is a small network in place of a real one."""
        if self.suites:
            return self.suites[-1].stand_in
        return self.probe is not None and self.probe.manifest.get("source") != "hub"

    @property
    def several(self) -> bool:
        """True if the model takes several references."""
        return any(suite.kind == "qwen_edit_plus" for suite in self.suites)

    def suite(self, labels: Sequence[str]) -> Suite | None:
        """The suite that has most of these cells."""
        return next(iter(best_suites(self.suites, labels)), None)

    def runs(self, *labels: tuple[str, ...] | str) -> list[Run]:
        """The runs of these labels, all from one suite; a run may have several labels."""
        each = [(label,) if isinstance(label, str) else label for label in labels]
        suite = self.suite([label for group in each for label in group])
        if suite is None:
            return [Run(group, (), dict.fromkeys(group, "missing")) for group in each]
        return [suite.run(*group) for group in each]


@dataclass(frozen=True)
class Claim:
    """Something that the paper says.

    Args:
        name: short and stable.
        statement: what the paper says.
        where: in which section.
        test: what decides it here.
        judge: from the evidence of a model to a finding.
        remark: what else a reader should know, such as where the paper contradicts itself.
        arithmetic: it needs no model.
        several: it is about models that take several references; the others are not.
    """

    name: str
    statement: str
    where: str
    test: str
    judge: Callable[[Evidence], Finding]
    remark: str = ""
    arithmetic: bool = False
    several: bool = False


@dataclass(frozen=True)
class Judged:
    """A claim with its finding for each model."""

    claim: Claim
    findings: dict[str, Finding]

    @property
    def decided(self) -> bool:
        """False if no model of the store can test it."""
        return any(finding.verdict != UNTESTABLE for finding in self.findings.values())


def gather_evidence(store: Store) -> list[Evidence]:
    """What a store knows of each model, by name; random weights say nothing and are left out."""
    groups: dict[str, list[Suite]] = {}
    found = suites(store)
    for suite in found:
        if not suite.random:
            groups.setdefault(suite.model, []).append(suite)
    runs = load_probes(store.root, weights_of(found))
    probes = {r.manifest["model"]: r for r in runs if r.manifest.get("source") != "tiny"}
    return [
        Evidence(model, tuple(groups.get(model, ())), probes.get(model))
        for model in sorted({*groups, *probes})
    ]


NO_SEVERAL = Finding(
    UNTESTABLE, reason="It is about models that take several references: run experiment=fig9."
)


def judge_all(claims: Iterable[Claim], evidence: Sequence[Evidence]) -> list[Judged]:
    """Every claim on every model."""
    judged = []
    for claim in claims:
        if claim.arithmetic:
            findings = {ARITHMETIC: claim.judge(Evidence(ARITHMETIC))}
        else:
            about = [each for each in evidence if each.several == claim.several]
            findings = {each.model: claim.judge(each) for each in about}
            if claim.several and not about:
                findings = {each.model: NO_SEVERAL for each in evidence}
        judged.append(Judged(claim, findings))
    return judged


def claims_frame(judged: Iterable[Judged]) -> pd.DataFrame:
    """One line per comparison, and one for a finding without any."""
    lines = []
    for each in judged:
        for model, finding in each.findings.items():
            about = {"claim": each.claim.name, "model": model, "verdict": finding.verdict}
            for comparison in finding.comparisons or (None,):
                line = dict(about, reason=finding.reason)
                if comparison is not None:
                    line |= {"comparison": comparison.what, "outcome": comparison.verdict}
                    line |= asdict(comparison.estimate)
                    line |= {"unit": comparison.unit.strip(), "margin": comparison.margin}
                    line |= {"cells": " ".join(comparison.cells)}
                lines.append(line)
    return pd.DataFrame(lines)


def claim_models(judged: Iterable[Judged]) -> list[str]:
    """Everything that a claim has a finding on: the models, then arithmetic."""
    found = dict.fromkeys(model for each in judged for model in each.findings)
    return sorted(found, key=lambda name: name == ARITHMETIC)


def claims_table(judged: Sequence[Judged]) -> TextTable:
    """The overview: a line per claim, a column per model."""
    models = claim_models(judged)
    rows = tuple(
        (
            Text(each.claim.name),
            Text(each.claim.statement),
            *(Text(each.findings[m].verdict if m in each.findings else "–") for m in models),
        )
        for each in judged
    )
    return TextTable(
        name="claims",
        title="Claims of the paper and verdicts here",
        headings=("Claim", "The paper says", *models),
        rows=rows,
        frame=claims_frame(judged),
        words=2 + len(models),
    )


def to_rich_claims(judged: Sequence[Judged]) -> Table:
    """The overview for the console: what the store decides, and how much it does not."""
    models = claim_models(judged)
    n_open = sum(not each.decided for each in judged)
    caption = f"{n_open} more claims need other cells; the page lists them." if n_open else None
    view = Table(
        title="Claims of the paper",
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("Claim", *models):
        view.add_column(heading)
    for each in judged:
        if not each.decided:
            continue
        verdicts = (each.findings[m].verdict if m in each.findings else "" for m in models)
        view.add_row(each.claim.name, *(Words(v, style=STYLES.get(v, "")) for v in verdicts))
    return view


def claims_markdown(judged: Sequence[Judged], notes_file: Path | None = None) -> str:
    """The claims page: the overview, then every claim with its test and its numbers."""
    notes = read_notes(notes_file)
    parts = ["# Claims of the paper\n", RULES, to_markdown(claims_table(judged))]
    for each in judged:
        claim = each.claim
        parts.append(f"## {claim.name}\n\n{claim.statement} ({claim.where})\n\nTest: {claim.test}")
        if claim.remark:
            parts.append(f"Remark: {claim.remark}")
        if claim.name in notes:
            parts.append(f"Looked into: {notes[claim.name]}")
        for model, finding in each.findings.items():
            words = [f"- **{markdown(model)}: {finding.verdict}.**"]
            words += map(markdown, (finding.reason, finding.tally))
            lines = [" ".join(filter(None, words))]
            lines += [f"  - {markdown(str(comparison))}" for comparison in finding.telling]
            if finding.cells:
                lines.append("  - cells: " + ", ".join(map(code, finding.cells)))
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


RULES = (
    "A claim is *reproduced* if every comparison behind it holds with its whole 95 % interval "
    "(paired bootstrap over samples), *contradicted* if one is significantly reversed (over all "
    "categories, or in any category after Holm's correction), *inconclusive* otherwise, and *not "
    "testable here* if the store lacks its cells or its kind of model. A verdict is about the "
    "model named; a verdict on a stand-in is not a verdict on FLUX or Qwen."
)


class Note(TypedDict):
    """A line of `experiments/findings.csv`."""

    claim: schema.Text
    finding: schema.Text


def read_notes(path: Path | None = None) -> dict[str, str]:
    """Claim -> what was looked into when it failed, from `experiments/findings.csv`."""
    from topi.bench.report.paper.printed_values import EXPERIMENTS

    path = path or EXPERIMENTS / "findings.csv"
    if not path.is_file():
        return {}
    found = schema.read_csv(path, Note, "give it the columns claim and finding.")
    return {each["claim"]: each["finding"] for each in found}
