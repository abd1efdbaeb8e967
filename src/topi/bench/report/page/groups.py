"""The cells of a store in groups that may be compared, with the rows and the table of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from topi.bench.io.names import file_names
from topi.bench.report.tables.columns import SCORES
from topi.bench.report.tables.quality_table import quality_table, table_of_many
from topi.bench.results.keys import canonical
from topi.bench.results.store import Cell, Store

RESERVED = ("index", "claims", "figures", "tables")
"""Names of other files in the folder of a page."""
MANY = 100_000
"""From this many rows on, a table is computed from sums, and pictures show one cell per label."""


@dataclass(frozen=True)
class Group:
    """Cells that may be compared, with a title and the stem of their file names."""

    title: str
    stem: str
    model: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Content:
    """What a page shows of a group.

    Args:
        rows: per-sample rows of the cells that are shown one by one.
        table: the `quality_table` of all cells.
        remarks: sentences on how the table was computed.
    """

    group: Group
    rows: pd.DataFrame
    table: pd.DataFrame
    remarks: tuple[str, ...] = ()


def contents(store: Store, cells: Sequence[Cell]) -> Iterator[Content]:
    """The rows and the table of each group of comparable cells; of very many rows, from sums."""
    many = sum(cell.done for cell in cells) > MANY
    moments = store.moments(SCORES) if many else None
    latency = store.latency() if many else None
    for group in comparable(cells):
        if moments is None or latency is None:
            rows = unique_labels(store.rows(group.cells))
            yield Content(group, rows, quality_table(once(rows), store.latency(group.cells)))
        else:
            yield _content_of_many(store, group, moments, latency)


def _content_of_many(
    store: Store, group: Group, moments: pd.DataFrame, latency: pd.DataFrame
) -> Content:
    """The content of a group from `Store.moments` and `Store.latency` of all cells."""
    labels = {cell.key: cell.labels[0] for cell in group.cells}
    methods = {cell.key: cell.method for cell in group.cells}
    shown = {cell.labels[0]: cell for cell in reversed(group.cells)}  # the oldest of each label
    rows = store.rows(shown.values())
    categories = dict(zip(rows["sample"], rows["category"], strict=True))
    sums = moments[moments["cell"].isin(labels)]
    sums = sums.assign(label=sums["cell"].map(labels), method=sums["cell"].map(methods))
    timed = latency[latency["cell"].isin(labels)].astype({"cell": str, "sample": str})
    timed = timed.assign(label=timed["cell"].map(labels), category=timed["sample"].map(categories))
    remark = (
        f"The table covers all {len(group.cells)} cells. Its intervals are normal intervals of "
        "means and order-statistic intervals of medians. Differences, pictures and the list of "
        f"cells show one cell per label, {len(shown)} in all."
    )
    return Content(group, rows, table_of_many(sums, timed), (remark,))


def unique_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows; cells with one label and different settings get the end of their key appended.

    Such settings come with a model, for example its layers or what is fitted for a cache.
    """
    cells = rows.drop_duplicates("cell").set_index("cell")
    settings = cells["method"] + cells["params"].map(canonical)
    shared = settings.groupby(cells["label"]).transform("nunique") > 1
    labels = cells["label"].where(~shared, cells["label"] + " #" + cells.index.str[-4:])
    return rows.assign(label=rows["cell"].map(labels))


def once(rows: pd.DataFrame) -> pd.DataFrame:
    """Each sample of a setting once: cells that differ in their number of samples share some."""
    return rows.drop_duplicates(["label", "seed", "sample"])


def comparable(cells: Sequence[Cell]) -> Iterator[Group]:
    """Split cells into groups whose full-context outputs agree in everything but the seed.

    Retrained weights, another number of steps, other data or another device make a group of their
    own. Its title says what differs.
    """
    settings = {}
    for text in dict.fromkeys(cell.settings for cell in cells):
        full = {k: v for k, v in json.loads(text).items() if k not in ("seed", "count")}
        settings[text] = json.dumps(full, sort_keys=True)
    by_model: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        parts = by_model.setdefault(cell.model, {})
        parts.setdefault(settings[cell.settings], []).append(cell)
    groups = [(number, model) for model, parts in by_model.items() for number in range(len(parts))]
    groups.sort(key=lambda group: group[0])  # the first group of a model has the model's name
    texts = [model if number == 0 else f"{model}-{number + 1}" for number, model in groups]
    stems = dict(zip(groups, file_names(texts, RESERVED), strict=True))
    for model, parts in by_model.items():
        _, own = split_facts({key: json.loads(key) for key in parts})
        for number, (key, part) in enumerate(parts.items()):
            differs = ", ".join(f"{name} {value}" for name, value in own[key].items())
            title = f"{model} ({differs})" if differs else model
            yield Group(title, stems[number, model], model, tuple(part))


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
