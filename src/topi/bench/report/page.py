"""One self-contained HTML page, and the files beside it, from a store of results."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from topi.bench.io.escape import console, csv, printable
from topi.bench.io.names import file_names
from topi.bench.report import figures
from topi.bench.report.gallery import gather, keep_ratios, on_curve, shown_labels
from topi.bench.report.paper.build import Paper, build_paper
from topi.bench.report.paper.claims import RULES, claim_models, read_notes, to_rich_claims
from topi.bench.report.tables import (
    ALL,
    CATEGORIES,
    COLUMNS,
    SCORES,
    category_title,
    difference_table,
    measured_text,
    notes,
    quality_table,
    sections,
    table_of_many,
    timing_note,
    to_latex,
    to_markdown,
    to_rich,
)
from topi.bench.report.text_table import Text
from topi.bench.results import files
from topi.bench.results.keys import canonical
from topi.bench.results.store import Cell, Store
from topi.errors import ToPiError

STAND_IN = (
    "This model is a stand-in: a small network of the real architecture, trained from scratch on "
    "drawn edits. Numbers of a stand-in are never numbers of FLUX or Qwen."
)
TINY = (
    "This model has random weights, for tests: its pictures are noise and its scores say nothing."
)


OTHERS = ("index", "claims", "figures", "tables")
"""What else the folder of a page holds."""
SHOWN = 8
"""Labels that a model's overview has room for; the table on the page has them all."""


@dataclass(frozen=True)
class Shown:
    """A figure on the page: its PNG as a data URI, what there is to see, and its only model."""

    title: str
    source: str
    caption: str
    wide: bool = False
    model: str = ""


MANY = 100_000
"""Rows from which on tables are made of sums, and pictures and differences of one cell a label."""


@dataclass(frozen=True)
class Group:
    """Cells that may be compared, with a title and the stem of their file names."""

    title: str
    stem: str
    model: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Content:
    """What a page says of a group: rows of the cells it shows, a table of all, remarks on that."""

    group: Group
    rows: pd.DataFrame
    table: pd.DataFrame
    remarks: tuple[str, ...] = ()


def build(store_root: Path | str, out_dir: Path | str, per_category: int = 2) -> Path:
    """Write tables (`.md`, `.csv`, `.tex`), figures (`.png`, `.pdf`) and the page, print tables.

    Args:
        store_root: the folder of a `Store`.
        out_dir: where the files go; made if need be.
        per_category: how many samples of each category the picture grids show.

    Returns:
        The path of the page.

    Raises:
        ToPiError: the store holds no rows yet.
    """
    store = Store(store_root)
    cells = [cell for cell in store.load_cells() if cell.done]
    if not cells:
        raise ToPiError(f"There are no results in {store_root} yet: run `python run.py` first.")
    out = Path(out_dir)
    screen = console(None)
    models = []
    for content in contents(store, cells):
        group, table = content.group, content.table
        files.write_text(out / f"{group.stem}.md", to_markdown(table))
        files.write_text(out / f"{group.stem}.tex", to_latex(table))
        files.write_text(out / f"{group.stem}.csv", csv(table))
        few = table[table["label"].isin(shown_labels(content.rows, SHOWN))]
        screen.print(to_rich(few, f"{group.title}: against its own full-context output"))
        models.append(_section(store, content, out / "figures", per_category))
    paper = build_paper(store_root, out)
    environment = Environment(
        loader=PackageLoader("topi.bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
    )
    page = out / "index.html"
    content = {"models": models, "columns": COLUMNS, **_paper(paper)}
    content["categories"] = _category_titles(models, paper)
    files.write_text(page, environment.get_template("page.html.j2").render(content))
    screen.print(to_rich_claims(paper.judged))
    screen.print(f"Page: {page}")
    return page


def contents(store: Store, cells: Sequence[Cell]) -> Iterator[Content]:
    """The rows and the table of each group of comparable cells; of very many rows, from sums."""
    many = sum(cell.done for cell in cells) > MANY
    moments = store.moments(SCORES) if many else None
    latency = store.latency() if many else None
    for group in comparable(cells):
        if moments is None or latency is None:
            rows = told_apart(store.rows(group.cells))
            yield Content(group, rows, quality_table(once(rows), store.latency(group.cells)))
            continue
        labels = {cell.key: cell.labels[0] for cell in group.cells}
        methods = {cell.key: cell.method for cell in group.cells}
        shown = {cell.labels[0]: cell for cell in reversed(group.cells)}  # the oldest of each
        rows = store.rows(shown.values())
        categories = dict(zip(rows["sample"], rows["category"], strict=True))
        sums = moments[moments["cell"].isin(labels)]
        sums = sums.assign(label=sums["cell"].map(labels), method=sums["cell"].map(methods))
        timed = latency[latency["cell"].isin(labels)].astype({"cell": str, "sample": str})
        timed = timed.assign(
            label=timed["cell"].map(labels), category=timed["sample"].map(categories)
        )
        remark = (
            f"The table is of all {len(group.cells)} cells, with normal intervals of means and "
            "order-statistic intervals of medians. Differences, pictures and the list of cells are "
            f"of one cell a label, {len(shown)}."
        )
        yield Content(group, rows, table_of_many(sums, timed), (remark,))


def told_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the end of its key in the label of a cell that shares it with other settings.

    Such are those that a model brings along: its layers, or what is fitted for a cache.
    """
    cells = rows.drop_duplicates("cell").set_index("cell")
    settings = cells["method"] + cells["params"].map(canonical)
    shared = settings.groupby(cells["label"]).transform("nunique") > 1
    labels = cells["label"].where(~shared, cells["label"] + " #" + cells.index.str[-4:])
    return rows.assign(label=rows["cell"].map(labels))


def once(rows: pd.DataFrame) -> pd.DataFrame:
    """Each sample of a setting once: cells that differ in how many samples they have share some."""
    return rows.drop_duplicates(["label", "seed", "sample"])


def comparable(cells: Sequence[Cell]) -> Iterator[Group]:
    """Split cells into groups whose full-context outputs agree in everything but the seed.

    Retrained weights, another number of steps, other data or another device make a group of
    their own, titled by what is different; pooled, they would pass for one experiment.
    """
    found: dict[str, dict[str, list[Cell]]] = {}
    settings = {}
    for text in dict.fromkeys(cell.settings for cell in cells):
        full = {k: v for k, v in json.loads(text).items() if k not in ("seed", "count")}
        settings[text] = json.dumps(full, sort_keys=True)
    for cell in cells:
        parts = found.setdefault(cell.model, {})
        parts.setdefault(settings[cell.settings], []).append(cell)
    groups = [(number, model) for model, parts in found.items() for number in range(len(parts))]
    groups.sort(key=lambda group: group[0])  # the first of a model has its name
    texts = [model if number == 0 else f"{model}-{number + 1}" for number, model in groups]
    stems = dict(zip(groups, file_names(texts, OTHERS), strict=True))
    for model, parts in found.items():
        _, own = split_facts({key: json.loads(key) for key in parts})
        for number, (key, part) in enumerate(parts.items()):
            differs = ", ".join(f"{name} {value}" for name, value in own[key].items())
            title = f"{model} ({differs})" if differs else model
            stem = stems[number, model]
            yield Group(title, stem, model, tuple(part))


def _paper(paper: Paper) -> dict[str, Any]:
    """What the template needs of the paper's artefacts."""
    notes = read_notes()
    return {
        "rules": RULES,
        "claims": [(each, notes.get(each.claim.name, "")) for each in paper.judged],
        "claim_models": claim_models(paper.judged),
        "tables": [(table, list(_filled(table.rows))) for table in paper.tables],
        "paper_figures": [
            Shown(figure.title, data_uri(figure.path), figure.caption, figure.wide, figure.model)
            for figure in paper.figures
        ],
        "missing": paper.missing,
    }


def _category_titles(models: Sequence[Mapping[str, Any]], paper: Paper) -> list[str]:
    """The categories that the tables of the page have rows of, as the filter offers them."""
    present = {title for model in models for title, _ in model["sections"]}
    tables = [table for table in paper.tables if table.headings[0] == "Category"]
    present |= {row[0].text for table in tables for row in table.rows}
    ends = [*map(category_title, CATEGORIES), category_title(ALL)]
    others = sorted(present - {*ends, ""})
    return [title for title in [*ends[:-1], *others, ends[-1]] if title in present]


def _filled(rows: tuple[tuple[Text, ...], ...]) -> Iterator[tuple[str, str, tuple[Text, ...]]]:
    """`(first, second, fields)` of each row; a first field that is empty is the one above."""
    first = ""
    for row in rows:
        first = row[0].text or first
        yield first, row[1].text, row


def data_uri(path: Path) -> str:
    """A PNG as a page holds it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _section(store: Store, content: Content, folder: Path, per_category: int) -> dict[str, Any]:
    """Everything the template needs of one group."""
    group, rows, table = content.group, content.rows, content.table
    model, keys = group.model, set(rows["cell"])
    common, own = split_facts({c.key: c.manifest for c in group.cells if c.key in keys})
    labels = rows.drop_duplicates("cell").set_index("cell")["label"]
    counts = rows["cell"].value_counts()
    chosen = shown_labels(rows, SHOWN)
    shown = once(rows[rows["label"].isin(chosen)])
    pooled = table[table["category"] == ALL].set_index("label", drop=False).loc[chosen]
    return {
        "name": group.title,
        "model": model,
        "warning": STAND_IN if "standin" in model else TINY if model.startswith("tiny") else "",
        "samples": number_range(shown.groupby("label")["sample"].nunique()),
        "glance": [_glance(line) for _, line in pooled.iterrows()],
        "sections": sections(table),
        "notes": [*notes(table), *content.remarks],
        "differences": [_difference(line) for _, line in difference_table(shown).iterrows()],
        "figures": list(_figures(store, content, folder, per_category)),
        "facts": {n: v for n, v in common.items() if not n.startswith(("config.", "full."))},
        "config": {n: v for n, v in common.items() if n.startswith("config.")},
        "cells": [
            (
                key,
                labels[key],
                counts[key],
                {n: v for n, v in own[key].items() if "config." not in n},
            )
            for key in labels.index
        ],
    }


def number_range(numbers: pd.Series) -> str:
    """`24`, or `24 to 64` where they differ."""
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _glance(line: pd.Series) -> dict[str, str]:
    """What a method kept, lost and gained, in words."""
    kept = f"{line['keep_ratio']:.0%} of the reference tokens, averaged over computed model calls"
    if line["keep_ratio"] == 1:
        kept = "all reference tokens" + f", {line['merges']}" * bool(line["merges"])
    if line["n"] == line["identical"]:
        lost = "nothing: every output equals the full one bit for bit"
    else:
        lost = f"{line['psnr']:.1f} dB PSNR, {line['ssim']:.3f} SSIM"
        lost += f", {line['lpips']:.3f} LPIPS to full" if pd.notna(line["lpips"]) else " to full"
    gained = f"{line['flop_speedup']:.2f}× by counted FLOPs"
    if pd.notna(line["speedup"]):
        names = ("speedup", "speedup_low", "speedup_high", "timed")
        gained += f", measured {measured_text(*line[[*names]])}"
    return {"label": line["label"], "kept": kept, "lost": lost, "gained": gained}


def _difference(line: pd.Series) -> dict[str, str]:
    """One paired comparison in words; a side is ahead only if the interval excludes zero."""
    if not line["n"]:
        verdict = "no sample to compare"
    elif line["low"] > 0:
        verdict = f"{line['label']} is closer to full"
    elif line["high"] < 0:
        verdict = f"{line['other']} is closer to full"
    else:
        verdict = "no clear difference"
    return {
        "pair": f"{line['label']} − {line['other']}",
        "value": f"{line['value']:+.2f} dB [{line['low']:+.2f}, {line['high']:+.2f}]",
        "n": str(line["n"]),
        "verdict": verdict,
    }


def _figures(store: Store, content: Content, folder: Path, per_category: int) -> Iterator[Shown]:
    group, rows, table = content.group, once(content.rows), content.table

    def shown(figure: Figure, name: str, title: str, caption: str, wide: bool = False) -> Shown:
        path = figures.save(figure, folder, f"{group.stem}_{name}")
        return Shown(title, data_uri(path), caption, wide)

    pictures = gather(store, rows, per_category)
    for category in dict.fromkeys(picture.category for picture in pictures):
        inside = [picture for picture in pictures if picture.category == category]
        masks = (
            " and, for pruning methods, the reference tokens kept (gold) and dropped (dark) at the "
            "first and the last anchor"
        )
        yield shown(
            figures.grid(inside),
            f"grid_{category}",
            f"{category_title(category)}: what each method kept and lost",
            "Reference, full-context output and each method's output with its PSNR to the full "
            f"one; below, what was lost{masks if any(p.anchors for p in inside) else ''}.",
            wide=True,
        )
    swept = table[(table["category"] == ALL) & table["label"].map(on_curve)]
    if (swept["method"] != "full").any():
        yield shown(
            figures.quality_against_speed(swept),
            "quality_speed",
            "Quality against speed",
            "All categories pooled, one line per method through its sweep, bars are 95 % bootstrap "
            "intervals. The dotted line is the speed of the full run. "
            + timing_note(swept["pairs"], swept["timed"]),
        )
    few = rows[rows["label"].isin(shown_labels(rows))]
    steps = keep_ratios(store, few)
    if not steps.empty:
        yield shown(
            figures.keep_ratio_by_step(steps),
            "keep_ratio",
            "Tokens kept, step by step",
            "Mean over samples, band from the 10th to the 90th percentile. Anchor steps run on the "
            "full context.",
        )


def split_facts(
    manifests: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Manifest entries that all cells share, and per cell the others, under dotted names."""
    flat = {key: dict(_flatten(manifest)) for key, manifest in manifests.items()}
    names = dict.fromkeys(name for facts in flat.values() for name in facts)
    common = {n for n in names if len({facts.get(n) for facts in flat.values()}) == 1}
    first = next(iter(flat.values()))
    shared = {name: first[name] for name in names if name in common}
    return shared, {
        key: {n: v for n, v in facts.items() if n not in common} for key, facts in flat.items()
    }


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)
