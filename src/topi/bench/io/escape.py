"""Text from data sets and stores in each kind of output: one function per kind, used by all.

Labels, instructions, ids and model names come from other people. In an output they are plain text:
they cannot change its structure or run anything. HTML is escaped by Jinja; there
`printable` does the rest.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for tab and line feed; what turns the direction of text; surrogates."""
_SPACES = re.compile(r"\s*[\t\n]\s*")
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?%?", re.IGNORECASE)
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\^{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "`": r"\textasciigrave{}",
        "*": r"$^*$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "×": r"$\times$",
        "∞": r"$\infty$",
        "Δ": r"$\Delta$",
        "τ": r"$\tau$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "–": "--",
        "−": "$-$",
        "½": r"\textonehalf{}",
        "†": r"$^\dagger$",
    }
)


def printable(text: str) -> str:
    """Text without control characters: they stand there as escapes, such as `\\x1b`.

    Tabs and line feeds stay.
    """
    return _UNPRINTABLE.sub(lambda match: ascii(match.group())[1:-1], text)


def one_line(text: str) -> str:
    """`printable`, with a space in place of a line break or tab."""
    return printable(_SPACES.sub(" ", text))


def latex(text: str) -> str:
    """A field of a LaTeX table, on one line; needs `textcomp` for fractions."""
    return re.sub(r"^\[", "{[}", one_line(text).translate(_LATEX))  # no option of the `\\\\` before


def markdown(text: str) -> str:
    """Words of a Markdown table or paragraph, on one line: no markup but code in backticks."""
    text = re.sub(r"[\\*|~$]", r"\\\g<0>", one_line(text))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it is no markup
    text = re.sub(r"\](?=[(\[:])|^(?=[#+-]+\s)", r"\\\g<0>", text)
    text = re.sub(r"&(?=#|\w+;)", "&amp;", text)
    return text.replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    """Text as code in a Markdown table or paragraph, in more backticks than it has in a row."""
    text = one_line(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * (text[:1] == "`" or text[-1:] == "`")
    return f"{fence}{space}{text}{space}{fence}"


def csv(frame: pd.DataFrame) -> str:
    """A frame as CSV. Words that a spreadsheet would take for a formula begin with a quote mark."""
    words = frame.select_dtypes(exclude=["number", "bool"])
    safe = frame.assign(**{name: words[name].map(_csv_field) for name in words})
    return safe.rename(columns=_csv_field).to_csv(index=False)


def _csv_field(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = printable(value.replace("\r\n", "\n"))
    return f"'{value}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value


def say(text: object, file: TextIO | None = None) -> None:
    """Print a text or a path as it is, but for control characters."""
    print(printable(str(text)), file=file)


def rich_markup(text: str) -> str:
    """Text for where rich takes every string for markup, on one line."""
    from rich.markup import escape

    return escape(one_line(text))


def console(width: int | None = 160, file: TextIO | None = None) -> Console:
    """A rich console for tables and bars; no string is read as markup.

    Args:
        width: in a pipe, which has none of its own; None: rich's default.
        file: by default standard output.
    """
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(printable(text.replace("\t", " ")), **options)

    file = file or sys.stdout
    width = None if file.isatty() else width
    return Plain(file=file, width=width, markup=False, emoji=False, highlight=False)


class PlainRecord(logging.LogRecord):
    """A log message without control characters; those of this project are one line each."""

    def getMessage(self) -> str:
        """The message with its arguments."""
        text = super().getMessage()
        return one_line(text) if self.name.startswith("topi") else printable(text)
