"""Nasty texts, drawn at random, through every writer: they stay text."""

import csv
import io
import logging
import random
import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from rich.table import Table

from topi.bench.io import escape

PIECES = ["[/x]", "[bold]", "\x1b[31m", "\x1b]0;a\x07", "\r", "\n", "\t", "\x9b2J", "\0", "|", "`"]
PIECES += ["``", "<script>", "</td>", "&lt;", "![a](b:c)", "[a]: b", "\\", "\\\\", "\\input{a}"]
PIECES += ["\\end{tabular}", "%", "#", "&", "$9.99 and $5", "{", "}", "^", "~~", "_a_", "**", "-x"]
PIECES += [
    "=cmd()",
    "+1",
    "@SUM(A1)",
    "＝1",
    ",",
    '"',
    "'",
    ":smile:",
    "\u202e",
    "\u2028",
    "\ud800",
]
PIECES += [
    "ü",
    "日本",
    "word",
    " ",
    "  ",
    "1. ",
    "- ",
    "# ",
    "> ",
    "---",
    "<a@b.c>",
    "_",
    "*",
    "](",
]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")
LATEX = re.compile(
    r"""([^\\{}$&\#%_^~\n]|\\[{}$&\#%_]|\\\^\{\}|\\text[a-z]+\{\}|\{\[\}
    |\$(-|\^\*|\^\\dagger|\\[A-Za-z]+)\$)*""",
    re.VERBOSE,
)


def nasty():
    dice = random.Random(0)
    yield from PIECES
    for _ in range(300):
        yield "".join(dice.choices(PIECES, k=dice.randint(2, 6)))


def test_nothing_reaches_a_terminal_that_steers_it(capsys):
    for text in nasty():
        table = Table(text, title=text, caption=text)
        table.add_row(text)
        screen = io.StringIO()
        escape.console(10_000, screen).print(table, text)
        escape.say(text)
        shown = screen.getvalue() + capsys.readouterr().out
        assert not CONTROL.search(shown)
        assert "\U0001f604" not in shown  # the picture that rich knows as :smile:
        assert escape.printable(escape.printable(text)) == escape.printable(text)
        first = escape.printable(text).split()[:1] or [""]
        assert shown.count(first[0]) >= 3


def test_rich_shows_a_title_of_a_bar_as_it_is():
    from rich.text import Text

    for text in nasty():
        shown = Text.from_markup(escape.rich_markup(text), emoji=False).plain
        assert shown.rstrip("\\") == escape.one_line(text).rstrip("\\")


def test_a_log_message_is_one_line():
    for text in nasty():
        record = escape.PlainRecord("topi.x", logging.INFO, "", 0, "%s done", (text,), None)
        assert not re.search("[\n\t]", record.getMessage())
        assert not CONTROL.search(record.getMessage())


def test_latex_has_no_command_of_the_text_and_no_further_field():
    for text in nasty():
        assert LATEX.fullmatch(escape.latex(text)), text
    assert escape.latex("[1] 50% of $9 & \\input{x_1}#") == (
        r"{[}1] 50\% of \$9 \& \textbackslash{}input\{x\_1\}\#"
    )


def cells_of(line):
    """The inline tokens of the fields of a table of one line, in Markdown with HTML and strokes."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(f"| a | b |\n|---|---|\n{line}\n")
    assert [t.type for t in tokens if t.nesting == 1].count("tr_open") == 2
    assert tokens[-1].type == "table_close"
    return [t.children for t in tokens if t.type == "inline"][2:]


def test_markdown_has_words_and_code_and_nothing_else():
    for text in nasty():
        words, code = cells_of(f"| {escape.markdown(text)} | {escape.code(text)} |")
        assert {token.type for token in words} <= {"text", "code_inline"}
        if "`" not in text:
            shown = "".join(token.content for token in words)
            assert shown == escape.one_line(text).strip()
        assert [token.type for token in code] == ["code_inline"]
        assert code[0].content.strip() == escape.one_line(text).strip()
        alone = MarkdownIt("commonmark").parse(f"- x {escape.markdown(text)}\n")
        assert [token.type for token in alone].count("list_item_open") == 1
    own = "topi_cover ratio=0.5 [+1.0, +2.0]"
    assert escape.markdown(own) == own


def test_negative_numbers_and_percentages_are_no_formulas():
    frame = pd.DataFrame({"share": ["-41.5%", "+3", "-2e5", "-a", "=1%"]})
    assert escape.csv(frame).splitlines()[1:] == ["-41.5%", "+3", "-2e5", "'-a", "'=1%"]


def test_a_spreadsheet_finds_no_formula():
    texts = [text for text in nasty() if not re.fullmatch(r"\s*", text)]
    frame = pd.DataFrame({"=head": pd.Series(texts, dtype=object), "n": -1.5, "text": "-2.5"})
    (head, *_), *lines = csv.reader(io.StringIO(escape.csv(frame), newline=""))
    assert head == "'=head"
    assert len(lines) == len(texts)
    for text, (field, number, word) in zip(texts, lines, strict=True):
        assert not CONTROL.search(field)
        assert (number, word) == ("-1.5", "-2.5")
        assert not re.match(r"\s*[=+@＝-]", field) or re.fullmatch(r"[+-]?\d+", field), text
        assert field.lstrip("'") == escape.printable(text.replace("\r\n", "\n")).lstrip("'")


@pytest.mark.parametrize("shown", [True, False], ids=["terminal", "log"])
def test_a_bar_shows_any_label_and_sample(shown, monkeypatch, caplog):
    from topi.bench.runs import cell

    screen = io.StringIO()
    console = escape.console(10_000, screen)
    console._force_terminal = shown
    monkeypatch.setattr(cell, "console", lambda width, file: console)
    caplog.set_level(logging.INFO)
    with cell.progress("[/x]\x1b]0;a\x07", 2, 0) as advance:
        advance("[/y]\n\x1b[2J: 1 dB")
    text = screen.getvalue() if shown else caplog.text
    assert "[/x]\\x1b]0;a\\x07" in text
    assert "[/y] \\x1b[2J: 1 dB" in text


def test_a_figure_shows_dollars_and_no_control_characters(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    from topi.bench.report.drawing import plots

    drawn = []
    monkeypatch.setattr(plots, "write", lambda path, content: drawn.append(content))
    dice = random.Random(1)
    with plt.style.context(plots.STYLE):
        figure, axes = plt.subplots(2, 4)
        for ax in axes.flat:
            text = "".join(dice.choices([piece for piece in PIECES if piece != "日本"], k=3))
            ax.set_title(text)
        axes[0, 0].set_title("$9.99 and $5 \\frac{ $x_$")
        axes[0, 1].plot([0, 1], label="\x1b $a$ ^ $b")
        axes[0, 1].legend()
    plots.save(figure, tmp_path, "x")
    assert [content[:4] for content in drawn] == [b"%PDF", b"\x89PNG"]
    assert axes[0, 0].get_title() == "$9.99 and $5 \\frac{ $x_$"
    assert axes[0, 1].get_legend_handles_labels()[1] == ["\x1b $a$ ^ $b"]
    assert not any(CONTROL.search(ax.get_title()) for ax in axes.flat)
