"""Generated blocks of Markdown pages: README.md and docs/ show what a store holds.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`, each on a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from topi.bench.report.leaderboard import block as leaderboard
from topi.bench.report.paper.claims.claim_list import CLAIMS
from topi.bench.report.paper.claims.claims_text import claims_table
from topi.bench.report.paper.claims.evidence import gather_evidence, judge_all
from topi.bench.report.paper.overview import paper_beside_ours
from topi.bench.report.tables.text_table import to_markdown
from topi.bench.results import files
from topi.bench.results import validation as schema
from topi.bench.results.store import Store
from topi.errors import ToPiError


def claims(store: Store) -> str:
    """A row per claim of the paper with its verdict on each stand-in of the store."""
    return to_markdown(claims_table(judge_all(CLAIMS, gather_evidence(store)))).strip()


AGAIN = "name a Markdown file."

BLOCKS: dict[str, Callable[[Store], str]] = {
    "claims": claims,
    "leaderboard": leaderboard,
    "paper-beside-ours": paper_beside_ours,
}
"""Name -> the function that writes the block from a store."""


def write_blocks(pages: Iterable[Path], store: Store) -> list[Path]:
    """Write every block of these pages anew; returns the pages that have one.

    Raises:
        ToPiError: a mark names no block, or a block does not end.
    """
    written = []
    for page in pages:
        content = schema.read_text(page, AGAIN)
        names = re.findall(r"^<!-- begin (\S+) -->$", content, re.MULTILINE)
        for name in names:
            if name not in BLOCKS:
                raise ToPiError(f"{page}: {name!r} is not a block; use {', '.join(BLOCKS)}.")
            before, _, after = _split(page, content, name)
            marks = f"<!-- begin {name} -->\n\n{BLOCKS[name](store)}\n\n<!-- end {name} -->"
            content = f"{before}{marks}{after}"
        if names:
            files.write_text(page, content)
            written.append(page)
    return written


def read_block(page: Path, name: str) -> str:
    """The text of a block.

    Raises:
        ToPiError: the page does not have it.
    """
    return _split(page, schema.read_text(page, AGAIN), name)[1].strip("\n")


def _split(page: Path, content: str, name: str) -> tuple[str, str, str]:
    """What stands before, in and behind a block."""
    parts = re.split(rf"^<!-- (?:begin|end) {re.escape(name)} -->$", content, flags=re.MULTILINE)
    if len(parts) != 3:
        raise ToPiError(
            f"{page} needs the lines <!-- begin {name} --> and <!-- end {name} --> once each."
        )
    before, inside, after = parts
    return before, inside, after
