"""The claims of the paper, and the cells and probes of each model that decide them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from topi.bench.report.paper.claims.verdicts import UNTESTABLE, Finding
from topi.bench.report.paper.entries import Run
from topi.bench.report.paper.suite import Suite, best_suites, suites, weights_of
from topi.bench.results.probe_run import ProbeRun, load_probes
from topi.bench.results.store import Store

ARITHMETIC = "arithmetic, no model"
"""In place of a model, for claims that follow from formulas."""


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
