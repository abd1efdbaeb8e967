"""Fidelity against ideal speed, pair by pair, of whatever a store holds: a Markdown table.

`topi compare --store STORE` prints it, after `experiment=selection` or `experiment=checks`. With
`--questions FILE`, a line per question of a CSV: the paired difference of two labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import isinf
from pathlib import Path

import numpy as np
import pandas as pd
from typing_extensions import TypedDict

from topi.bench.io.escape import code, markdown
from topi.bench.report.tables.columns import STAR
from topi.bench.report.tables.text_table import markdown_lines
from topi.bench.results import validation as schema
from topi.bench.results.statistics import LEVEL, bootstrap, holm, paired_difference, signed_rank
from topi.bench.results.store import Cell, Store
from topi.errors import ToPiError


class Question(TypedDict):
    """A line of a CSV of questions: see `questions_tables`."""

    section: str
    question: schema.Text
    one: schema.Text
    other: schema.Text
    decided: str


def selection_table(rows: pd.DataFrame, *rivals: str) -> str:
    """A line per label in the order of ideal speed: PSNR, and its paired differences to rivals.

    A star marks a difference that holds at 5 % (signed ranks) after correction for the number of
    comparisons in the table.

    Args:
        rows: of `Store.rows`, one model.
        rivals: labels to compare with; those that are not there are left out.

    Raises:
        ToPiError: none of the rivals is in the store.
    """
    labels = list(rows["label"].unique())
    if rivals and not set(rivals) & set(labels):
        raise ToPiError(f"No cell is labelled {rivals[0]!r}; there are: {', '.join(labels)}.")
    rivals = [rival for rival in rivals if rival in labels]
    facts = rows.groupby("label")[["flop_speedup", "keep_ratio"]].mean()
    categories = sorted(rows["category"].unique())
    heads = ["method", "n", "ideal ×", "kept", "PSNR", *(f"− {rival}" for rival in rivals)]
    heads = [markdown(head) for head in [*heads, *categories]]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    pairs = [(label, rival) for rival in rivals for label in labels if label != rival]
    holds = _holding(rows, pairs)
    for label, (speed, kept) in facts.sort_values("flop_speedup").iterrows():
        own = rows[rows["label"] == label]
        cells = [markdown(label), f"{len(own)}", f"{speed:.2f}", f"{kept:.2f}", _mean(own, 2)]
        for rival in rivals:
            gain = paired_difference(rows, label, rival, "psnr")
            interval = f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]" if gain.n else "–"
            interval += " *" if (label, rival) in holds else ""
            cells.append("" if label == rival else interval)
        cells += [_mean(own[own["category"] == category], 1) for category in categories]
        lines.append(cells)
    star = f"\n{markdown(STAR)}\n" if np.isinf(rows["psnr"]).any() else ""
    return markdown_lines(lines) + "\n" + star


def _mean(rows: pd.DataFrame, digits: int) -> str:
    """Mean PSNR as the report has it: of finite values, a star at it if there are others."""
    psnr = bootstrap(rows["psnr"])
    if isinf(psnr.value):
        return "∞"
    return f"{psnr.value:.{digits}f}" + r"\*" * bool(psnr.infinite) if psnr.n else "–"


def questions_tables(models: Mapping[str, pd.DataFrame], questions: pd.DataFrame) -> str:
    """A table per section: every question with its answer on each model.

    An answer is the paired difference in PSNR, with the two ideal speeds where they differ; a star
    as in `selection_table`, corrected for all questions of a model.

    Args:
        models: name -> rows of `Store.rows`.
        questions: the columns of `Question`; `section` empty: that of the line before; `one` and
            `other` are labels: the difference is that of the first to the second.

    Raises:
        ToPiError: a label is not in the rows of a model.
    """
    questions = questions.assign(section=questions["section"].replace("", None).ffill())
    pairs = list(zip(questions["one"], questions["other"], strict=True))
    columns = {}
    for model, rows in models.items():
        if missing := {label for pair in pairs for label in pair} - {*rows["label"]}:
            raise ToPiError(f"No cell of {model} is labelled {', '.join(map(repr, missing))}.")
        holds = _holding(rows, pairs)
        columns[model] = [_answer(rows, *pair, pair in holds) for pair in pairs]
    shown = questions[["section", "question"]].assign(**columns, decided=questions["decided"])
    heads = [code(name) if name in models else name for name in shown.columns[1:]]
    shown[["question", "decided"]] = shown[["question", "decided"]].map(markdown)
    parts = []
    for section, lines in shown.groupby("section", sort=False):
        table = [heads, ["---", *("---:" for _ in models), "---"], *lines.values[:, 1:]]
        parts.append(f"## {markdown(section)}\n\n{markdown_lines(table)}\n")
    return "\n".join(parts)


def _answer(rows: pd.DataFrame, one: str, other: str, holds: bool) -> str:
    gain = paired_difference(rows, one, other, "psnr")
    speeds = rows.groupby("label")["flop_speedup"].mean()
    told = [f"{speeds[label]:.2f}×" for label in (one, other)]
    at = f" at {told[0]} and {told[1]}" if told[0] != told[1] else ""
    if not gain.n:
        return f"–{at}"
    return f"{gain.value:+.1f} [{gain.low:.1f}, {gain.high:.1f}]{' *' * holds}{at}"


def _holding(rows: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Pairs of labels whose difference holds at 5 % after correction for the number of pairs."""
    p_values = holm([signed_rank(rows, *pair, "psnr") for pair in pairs])
    return {pair for pair, p in zip(pairs, p_values, strict=True) if p < 1 - LEVEL}


def comparison(store: Store, rivals: Sequence[str]) -> str:
    """A `selection_table` for each group of cells that share what they are of.

    Raises:
        ToPiError: the store has no cells, or none of the rivals.
    """
    cells = _cells(store)
    return "\n".join(
        f"{markdown(heading)}:\n\n{selection_table(store.rows(group), *rivals)}"
        for heading, group in itertools.groupby(sorted(cells, key=heading_of), key=heading_of)
    )


def answers(store: Store, questions: Path) -> str:
    """`questions_tables` over the models of a store.

    Raises:
        ToPiError: the CSV cannot be read, or asks for a label that is not in the store.
    """
    again = f"give a CSV with the columns {', '.join(Question.__annotations__)}."
    asked = schema.read_csv(questions, Question, again)
    if not asked or not asked[0]["section"]:
        raise ToPiError(f"{questions} needs at least one question, the first with a section.")
    rows = store.rows(_cells(store))
    return questions_tables(dict(iter(rows.groupby("model"))), pd.DataFrame(asked))


def _cells(store: Store) -> list[Cell]:
    if cells := store.load_cells():
        return cells
    raise ToPiError(f"No cells in {store.root}: run python run.py experiment=selection first.")


def heading_of(cell: Cell) -> str:
    """What cells of one table share."""
    told = cell.manifest
    return (
        f"{told['model']} {told['weights']}, {told['count']} samples of {told['data']}, "
        f"{told['steps']} steps, noise seed {told['seed']}"
    )
