"""The claims written as Markdown, CSV and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path

from topi.bench.io.escape import csv
from topi.bench.report.paper.claims.claims_text import claims_frame, claims_markdown, read_notes
from topi.bench.report.paper.claims.evidence import Judged
from topi.bench.report.paper.claims.verdicts import Comparison
from topi.bench.results import files


def write_claims(judged: list[Judged], out: Path) -> None:
    """Write `claims.md`, `claims.csv` and `claims.json` into a folder."""
    files.write_text(out / "claims.md", claims_markdown(judged))
    files.write_text(out / "claims.csv", csv(claims_frame(judged)))
    notes = read_notes()
    content = [
        {
            name: getattr(each.claim, name)
            for name in ("name", "statement", "where", "test", "remark")
        }
        | {"looked_into": notes.get(each.claim.name, "")}
        | {
            "findings": {
                model: {
                    "verdict": finding.verdict,
                    "reason": finding.reason,
                    "comparisons": list(map(_plain, finding.comparisons)),
                }
                for model, finding in each.findings.items()
            }
        }
        for each in judged
    ]
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    files.write_text(out / "claims.json", text)


def _plain(comparison: Comparison) -> dict[str, object]:
    """A comparison as JSON has it, which knows neither NaN nor infinity."""
    numbers = asdict(comparison.estimate).items()
    estimate = {name: value if isfinite(value) else None for name, value in numbers}
    return {**asdict(comparison), "estimate": estimate, "outcome": comparison.verdict}
