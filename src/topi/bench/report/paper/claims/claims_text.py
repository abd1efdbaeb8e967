"""The claims as a frame, as tables and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text as Words
from typing_extensions import TypedDict

from topi.bench.io.escape import code, markdown
from topi.bench.report.paper.claims.evidence import ARITHMETIC, Judged
from topi.bench.report.paper.claims.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    REPRODUCED,
    UNTESTABLE,
)
from topi.bench.report.tables.text_table import Text, TextTable, to_markdown
from topi.bench.results import validation as schema

STYLES = {REPRODUCED: "green", CONTRADICTED: "bold red", INCONCLUSIVE: "yellow", UNTESTABLE: "dim"}


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
