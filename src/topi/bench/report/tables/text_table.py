"""A table as text: Markdown, LaTeX (booktabs) and the frame behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from topi.bench.io.escape import code, latex, markdown, one_line


@dataclass(frozen=True)
class Text:
    """One field: what it says, whether it is the best, whether it is the paper's."""

    text: str
    best: bool = False
    paper: bool = False


@dataclass(frozen=True)
class TextTable:
    """A table ready to be written.

    Args:
        name: the artefact, `table1`; part of file names.
        title: what a reader sees above it.
        headings: of the columns; the first `words` of them hold words, the others numbers.
        rows: the fields; a row whose first field is empty belongs to the section above.
        frame: the numbers behind it with intervals and cell keys, one line per number.
        notes: what a reader must know.
        keys: what stands in the rows -> the keys of the cells it came from.
    """

    name: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    frame: pd.DataFrame
    words: int = 2
    notes: tuple[str, ...] = ()
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """False if cells of one of its rows are missing or not complete."""
        return "state" not in self.frame or bool((self.frame["state"] == "complete").all())


def to_markdown(table: TextTable) -> str:
    """Best values bold, the paper's in italics; the notes and the cells below."""
    align = ["---"] * table.words + ["---:"] * (len(table.headings) - table.words)
    heads = [markdown(heading) for heading in table.headings]
    lines = [heads, align, *([_markdown(t) for t in row] for row in table.rows)]
    notes = [f"- {markdown(note)}" for note in table.notes]
    for what, keys in table.keys.items():
        notes.append(f"- {markdown(what)}: " + ", ".join(map(code, keys)))
    title = f"### {markdown(table.title)}\n\n" if table.title else ""
    return f"{title}{markdown_lines(lines)}\n\n" + "\n".join(notes) + "\n"


def markdown_lines(lines: Iterable[Sequence[str]]) -> str:
    """The lines of a Markdown table, head and alignment first; fields are escaped already."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown(field: Text) -> str:
    text = markdown(field.text)
    if not text:
        return text
    return f"**{text}**" if field.best else f"*{text}*" if field.paper else text


def to_latex(table: TextTable) -> str:
    """A LaTeX `tabular` (needs `booktabs`, and `textcomp` for fractions)."""
    lines = []
    for row in table.rows:
        if row[0].text:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_latex, row)) + r" \\")
    columns = "l" * table.words + "r" * (len(table.headings) - table.words)
    heading = " & ".join(map(latex, table.headings)) + r" \\"
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", heading, *lines]
    comments = [one_line(f"% {what}: {', '.join(keys)}") for what, keys in table.keys.items()]
    body += [r"\bottomrule", r"\end{tabular}"]
    title = [one_line(f"% {table.title}")] if table.title else []
    text = "\n".join([*title, *comments, *body]) + "\n"
    return text.replace("τ", "tau").replace("½", "1/2")


def _latex(field: Text) -> str:
    text = latex(field.text)
    if not text:
        return text
    return rf"\textbf{{{text}}}" if field.best else rf"\textit{{{text}}}" if field.paper else text
