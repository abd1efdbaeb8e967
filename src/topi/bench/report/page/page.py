"""One self-contained HTML page, and the files beside it, from a store of results."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from topi.bench.io.escape import console, csv, printable
from topi.bench.report.drawing.plots import save
from topi.bench.report.page.gallery import gather, keep_ratios, on_curve, shown_labels
from topi.bench.report.page.groups import Content, contents, once, split_facts
from topi.bench.report.page.page_figures import (
    grid,
    keep_ratio_by_step,
    quality_against_speed,
)
from topi.bench.report.paper.build import Paper, build_paper
from topi.bench.report.paper.claims.claims_text import (
    RULES,
    claim_models,
    read_notes,
    to_rich_claims,
)
from topi.bench.report.tables.columns import ALL, CATEGORIES, COLUMNS, category_title, timing_note
from topi.bench.report.tables.quality_table import difference_table, notes, quality_text, to_rich
from topi.bench.report.tables.text_table import Text, TextTable, to_latex, to_markdown
from topi.bench.results import files
from topi.bench.results.store import Store
from topi.errors import ToPiError

STAND_IN = (
    "This model is a stand-in: a small network of the real architecture, trained from scratch on "
    "drawn edits. Numbers of a stand-in are never numbers of FLUX or Qwen."
)
TINY = (
    "This model has random weights, for tests: its pictures are noise and its scores mean nothing."
)
SHOWN = 8
"""Labels in the first table of a model; a folded table has all labels."""


@dataclass(frozen=True)
class Shown:
    """A figure on the page: its PNG as a data URI, what it shows, and its only model."""

    title: str
    source: str
    caption: str
    wide: bool = False
    model: str = ""


def build(
    store_root: Path | str,
    out_dir: Path | str,
    per_category: int = 2,
    labels: Mapping[str, Collection[str]] | None = None,
) -> Path:
    """Write tables (`.md`, `.csv`, `.tex`), figures (`.png`, `.pdf`) and the page, print tables.

    Args:
        store_root: the folder of a `Store`.
        out_dir: where the files go; made if need be.
        per_category: how many samples of each category the picture grids show.
        labels: by model, of the cells that are printed, without claims. By default the first of
            every model, and the claims.

    Returns:
        The path of the page.

    Raises:
        ToPiError: the store holds no rows yet.
    """
    store = Store(store_root)
    cells = [cell for cell in store.load_cells() if cell.done]
    if not cells:
        raise ToPiError(f"There are no results in {store_root} yet: run `python run.py` first.")
    out, screen, models = Path(out_dir), console(None), []
    for content in contents(store, cells):
        group, table = content.group, content.table
        text = quality_text(table)
        files.write_text(out / f"{group.stem}.md", to_markdown(text))
        files.write_text(out / f"{group.stem}.tex", to_latex(text))
        files.write_text(out / f"{group.stem}.csv", csv(table))
        printed = shown_labels(content.rows, SHOWN) if labels is None else labels.get(group.model)
        if len(few := table[table["label"].isin(printed or ())]):
            screen.print(to_rich(few, f"{group.title}: against its own full-context output"))
        models.append(_section(store, content, out / "figures", per_category))
    paper = build_paper(store_root, out)
    page = out / "index.html"
    content = {"models": models, "columns": COLUMNS, **_paper(paper)}
    content["categories"] = _category_titles(models, paper)
    files.write_text(page, _template().render(content))
    if labels is None:
        screen.print(to_rich_claims(paper.judged))
    screen.print(f"Page: {page}")
    return page


def _template() -> Any:
    """The template of the page; strings that it prints are escaped and printable."""
    environment = Environment(
        loader=PackageLoader("topi.bench.report.page", "."),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # no macro's
    )
    return environment.get_template("page.html.j2")


def _paper(paper: Paper) -> dict[str, Any]:
    """What the template needs of the paper's artefacts; what lacks cells is set apart."""
    looked_into = read_notes()
    judged = [(each, looked_into.get(each.claim.name, "")) for each in paper.judged]
    return {
        "rules": RULES,
        "claims": judged,
        "decided": [pair for pair in judged if pair[0].decided],
        "undecided": [pair for pair in judged if not pair[0].decided],
        "claim_models": claim_models(paper.judged),
        "tables": [_rows_of(table) for table in paper.tables if table.complete],
        "incomplete": [_rows_of(table) for table in paper.tables if not table.complete],
        "paper_figures": [
            Shown(figure.title, data_uri(figure.path), figure.caption, figure.wide, figure.model)
            for figure in paper.figures
        ],
        "missing": paper.missing,
    }


def _category_titles(models: Sequence[Mapping[str, Any]], paper: Paper) -> list[str]:
    """The categories that tables of the page have rows of, as the filter offers them."""
    tables = [table for table in paper.tables if table.headings[0] == "Category"]
    tables += [model["by_category"][0] for model in models]
    present = {row[0].text for table in tables for row in table.rows}
    ends = [*map(category_title, CATEGORIES), category_title(ALL)]
    others = sorted(present - {*ends, ""})
    return [title for title in [*ends[:-1], *others, ends[-1]] if title in present]


def _rows_of(table: TextTable) -> tuple[TextTable, list[tuple[str, str, tuple[Text, ...]]]]:
    """The table with `(first, second, fields)` of each row; an empty first is the one above."""
    rows, first = [], ""
    for fields in table.rows:
        first = fields[0].text or first
        rows.append((first, fields[1].text, fields))
    return table, rows


def data_uri(path: Path) -> str:
    """A PNG as a page holds it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _section(store: Store, content: Content, folder: Path, per_category: int) -> dict[str, Any]:
    """Everything the template needs of one group."""
    group, rows, table = content.group, content.rows, content.table
    chosen = shown_labels(rows, SHOWN)
    shown = once(rows[rows["label"].isin(chosen)])
    pooled = table[(table["category"] == ALL) & table["label"].isin(chosen)]
    first, *pictures = [*_pictures(store, content, folder, per_category)] or [None]
    return {
        "name": group.title,
        "stem": group.stem,
        "model": group.model,
        "warning": _warning(group.model),
        "samples": number_range(shown.groupby("label")["sample"].nunique()),
        "pictures": first,
        "curves": _curves(content, folder),
        "overview": _rows_of(quality_text(pooled)),
        "by_category": _rows_of(quality_text(table)),
        "notes": [*notes(table), *content.remarks],
        "differences": [_difference(line) for _, line in difference_table(shown).iterrows()],
        "figures": [*pictures, *_kept(store, content, folder)],
        **_run(content),
    }


def _warning(model: str) -> str:
    if "standin" in model:
        return STAND_IN
    return TINY if model.startswith("tiny") else ""


def _run(content: Content) -> dict[str, Any]:
    """What was run: the facts and the configuration that cells share, and each cell's own."""
    keys = set(content.rows["cell"])
    manifests = {cell.key: cell.manifest for cell in content.group.cells if cell.key in keys}
    common, own = split_facts(manifests)
    labels = content.rows.drop_duplicates("cell").set_index("cell")["label"]
    counts = content.rows["cell"].value_counts()
    return {
        "facts": {n: v for n, v in common.items() if not n.startswith(("config.", "full."))},
        "config": {n: v for n, v in common.items() if n.startswith("config.")},
        "cells": [
            (key, label, counts[key], {n: v for n, v in own[key].items() if "config." not in n})
            for key, label in labels.items()
        ],
    }


def number_range(numbers: pd.Series) -> str:
    """`24`, or `24 to 64` where they differ."""
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _difference(line: pd.Series) -> dict[str, str]:
    """One paired comparison in words; a side is ahead only if the interval excludes zero."""
    if not line["n"]:
        verdict = "no samples in common"
    elif line["low"] > 0:
        verdict = f"{line['label']} is closer to full"
    elif line["high"] < 0:
        verdict = f"{line['other']} is closer to full"
    else:
        verdict = "not significantly different"
    return {
        "pair": f"{line['label']} − {line['other']}",
        "value": f"{line['value']:+.2f} dB [{line['low']:+.2f}, {line['high']:+.2f}]",
        "n": str(line["n"]),
        "verdict": verdict,
    }


def _shown(figure: Figure, path: tuple[Path, str], title: str, caption: str, wide: bool) -> Shown:
    """Save a figure under (folder, name) and hold it for the page."""
    return Shown(title, data_uri(save(figure, *path)), caption, wide)


def _pictures(store: Store, content: Content, folder: Path, per_category: int) -> Iterator[Shown]:
    """The picture grid of each category."""
    pictures = gather(store, once(content.rows), per_category)
    for category in dict.fromkeys(picture.category for picture in pictures):
        inside = [picture for picture in pictures if picture.category == category]
        masks = (
            " For pruning methods, the rows below show the reference tokens kept (gold) and "
            "dropped (dark) at the first and the last anchor."
        )
        yield _shown(
            grid(inside),
            (folder, f"{content.group.stem}_grid_{category}"),
            f"{category_title(category)}: outputs and masks",
            "Reference, full-context output and the output of each method with its PSNR to the "
            "full-context output; below, the absolute difference of the two."
            f"{masks if any(p.anchors for p in inside) else ''}",
            wide=True,
        )


def _curves(content: Content, folder: Path) -> Shown | None:
    """Quality against speed; None if no method was run."""
    table = content.table
    swept = table[(table["category"] == ALL) & table["label"].map(on_curve)]
    if not (swept["method"] != "full").any():
        return None
    return _shown(
        quality_against_speed(swept),
        (folder, f"{content.group.stem}_quality_speed"),
        "Quality against speed",
        "All categories pooled; one line per method through its sweep; bars are 95 % bootstrap "
        "intervals. The dotted line marks the speed of the full run. "
        + timing_note(swept["pairs"], swept["timed"]),
        wide=False,
    )


def _kept(store: Store, content: Content, folder: Path) -> Iterator[Shown]:
    """The share of tokens kept at each step, where masks were stored."""
    rows = once(content.rows)
    steps = keep_ratios(store, rows[rows["label"].isin(shown_labels(rows))])
    if not steps.empty:
        yield _shown(
            keep_ratio_by_step(steps),
            (folder, f"{content.group.stem}_keep_ratio"),
            "Tokens kept, step by step",
            "Mean over samples; the band is the range from the 10th to the 90th percentile. "
            "Anchor steps use the full context.",
            wide=False,
        )
