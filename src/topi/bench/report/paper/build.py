"""Every artefact of the paper from a store: claims, Tables 1 to 7, the figures; files and all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from topi.bench.io.escape import csv
from topi.bench.io.names import file_name
from topi.bench.report.drawing.plots import save
from topi.bench.report.paper import ours, overview
from topi.bench.report.paper import several_references as references
from topi.bench.report.paper.artefacts import CURVES, FIG5, FIG10, FIG11, OURS, SHEETS, TEACACHE
from topi.bench.report.paper.attention_figures import mass_by_layer, mass_by_step, token_relevance
from topi.bench.report.paper.captions import CAPTIONS
from topi.bench.report.paper.claims.claim_files import write_claims
from topi.bench.report.paper.claims.claim_list import CLAIMS
from topi.bench.report.paper.claims.evidence import Judged, gather_evidence, judge_all
from topi.bench.report.paper.flops_table import flops_table
from topi.bench.report.paper.paper_figures import FIGURES as PAPER_FIGURES
from topi.bench.report.paper.paper_tables import overhead_table, sheet_table, timing
from topi.bench.report.paper.quality_curves import curve_table, equal_speed_table
from topi.bench.report.paper.suite import MODELS, Suite, best_suites, suites, weights_of
from topi.bench.report.pareto import leaderboard, pareto, pareto_categories
from topi.bench.report.tables.speed_table import breakdown_table, speed_figure, speed_table, title
from topi.bench.report.tables.text_table import TextTable, to_latex, to_markdown
from topi.bench.results import files
from topi.bench.results.bench_run import BenchRun, load_benches
from topi.bench.results.probe_run import ProbeRun, load_probes
from topi.bench.results.store import Store

_CURVES = [label for curve in CURVES.values() for label in curve]
NEEDS = {
    **{sheet.name: sheet.labels for sheet in SHEETS},
    "table1_curves": _CURVES,
    "table1_equal_speed": _CURVES,
    "table7": [OURS],
    "fig5": list(FIG5.values()),
    "fig6": list(TEACACHE.values()),
    "fig7": [OURS],
    "fig9": [OURS],
    "fig10": list(FIG10.values()),
    "fig10_curve": list(FIG10.values()),
    "fig11": list(FIG11.values()),
    ours.EQUAL_COUNT: [label for pair in ours.COUNTED.items() for label in (pair[0], *pair[1])],
    references.NAME: list(references.METHODS.values()),
    overview.NAME: list(overview.LABELS),
}
"""Artefact -> the labels of the cells it shows."""
BUILDERS: dict[str, Callable[[Suite], TextTable]] = {
    **{sheet.name: lambda suite, sheet=sheet: sheet_table(sheet, suite) for sheet in SHEETS},
    "table1_curves": curve_table,
    "table1_equal_speed": equal_speed_table,
    "table7": overhead_table,
    "leaderboard": leaderboard,
    ours.EQUAL_COUNT: ours.equal_count,
    ours.EQUAL_SPEED: ours.equal_speed,
}
TABLES = (
    *(sheet.name for sheet in SHEETS),
    *("table1_curves", "table1_equal_speed", "table6", "table7", "leaderboard"),
    *(ours.EQUAL_COUNT, ours.EQUAL_SPEED, references.NAME),
)
FIGURES = {**PAPER_FIGURES, "pareto": pareto, "pareto_categories": pareto_categories}
"""Name -> the function that draws it; None comes back where the store lacks its cells."""
OPTIONAL = {
    ours.EQUAL_COUNT: ours.equal_count_figure,
    references.NAME: references.references_figure,
    overview.NAME: overview.overview,
}
"""The same, for what a store need not have: a report does not ask for its cells."""
ATTENTION: dict[str, Callable[[ProbeRun], object]] = {
    "fig1": mass_by_layer,
    "fig2": token_relevance,
    "fig3": mass_by_step,
}
MEASURED = ("table1_curves", "fig6", "pareto", "pareto_categories", references.NAME)
"""The figures that show measured speed, whose captions say how often it was timed."""


@dataclass(frozen=True)
class Drawn:
    """A figure that was written; `model` if it is of one alone."""

    name: str
    title: str
    caption: str
    path: Path
    wide: bool
    model: str = ""


@dataclass(frozen=True)
class Paper:
    """Everything that was built.

    Args:
        missing: sentences on what could not be built, and why.
    """

    judged: list[Judged]
    tables: list[TextTable]
    figures: list[Drawn]
    missing: list[str]


def build_paper(root: Path | str, out: Path | str) -> Paper:
    """Build every artefact and write it.

    `claims.md`, `.csv` and `.json`; `tables/<name>.md`, `.csv`, `.tex`; `figures/<name>.png`,
    `.pdf`. A pure function of the store: no model runs.

    Args:
        root: the folder of a `Store`.
        out: where the files go; made if need be.
    """
    store, out = Store(root), Path(out)
    judged = judge_all(CLAIMS, gather_evidence(store))
    found = suites(store)
    benches = load_benches(store.root)
    tables = [*build_tables(store, found), *map(speed_table, benches)]
    figures, missing = build_figures(store, found, out / "figures")
    figures += build_figures(store, found, out / "figures", tuple(OPTIONAL))[0]
    figures += [_speed(bench, out / "figures") for bench in benches]
    write_claims(judged, out)
    write_tables(tables, out / "tables")
    return Paper(judged, tables, figures, _absent_models(found) + missing)


def _speed(bench: BenchRun, folder: Path) -> Drawn:
    caption = "Each dot is a method at one share of kept tokens; on the line nothing is lost."
    path = save(speed_figure(bench), folder, f"speed_{bench.key}")
    return Drawn("speed", title(bench.manifest), caption, path, False, bench.manifest["model"])


def suites_of(name: str, found: Sequence[Suite]) -> list[Suite]:
    """The suites that an artefact shows: of each model the one that has most of its cells."""
    if name == references.NAME:
        return [suite for series in references.series_of(found) for suite in series.suites]
    several = name == "fig9"
    kinds = ("qwen_edit_plus",) if several else tuple(MODELS)
    found = [suite for suite in found if suite.kind in kinds]
    if name == "fig7":  # the more steps, the more anchors
        found = sorted(found, key=lambda suite: suite.steps)
        found = [s for s in found if any(s.state(label) == "complete" for label in NEEDS[name])]
        longest = {suite.model: suite for suite in found}
        return [longest[model] for model in sorted(longest)]
    return best_suites(found, labels_of(name, found))


def labels_of(name: str, found: Sequence[Suite]) -> Sequence[str]:
    """The labels of the cells that an artefact shows; of the leaderboard's all that there are."""
    if name in NEEDS:
        return NEEDS[name]
    return list(dict.fromkeys(label for suite in found for label in suite.labels))


def build_tables(
    store: Store, found: Sequence[Suite], names: Sequence[str] = TABLES
) -> Iterator[TextTable]:
    """The tables, a part per model; Table 6 needs no model, Table 7 ends with the devices."""
    for name in names:
        if name == "table6":
            yield flops_table()
        elif name == references.NAME:
            yield from map(references.references_table, references.series_of(found))
        else:
            tables = (BUILDERS[name](suite) for suite in suites_of(name, found))
            yield from (table for table in tables if table.rows)  # what need not be there
        if name == "table7":
            yield from filter(None, [breakdown_table(load_benches(store.root))])


def build_figures(
    store: Store,
    found: Sequence[Suite],
    folder: Path,
    names: Sequence[str] = (*ATTENTION, *FIGURES),
) -> tuple[list[Drawn], list[str]]:
    """Write the figures; returns them and sentences on those that the store has no cells for."""
    figures, missing = [], []
    probes = load_probes(store.root, weights_of(found))
    for name in names:
        title, caption = CAPTIONS[name]
        if name in ATTENTION:
            for probe in probes:
                model = probe.manifest["model"]
                path = save(ATTENTION[name](probe), folder, f"{name}_{model}")
                figures.append(Drawn(name, f"{title}: {model}", caption, path, False, model))
            if not probes:
                missing.append(f"{title}: the store has no probe of attention. Run `topi probe`.")
            continue
        chosen = suites_of(name, found)
        if name in MEASURED:
            labels = labels_of(name, chosen)
            caption += " " + timing(suite.run(label) for suite in chosen for label in labels)
        figure = {**FIGURES, **OPTIONAL}[name](store, chosen) if chosen else None
        if figure is None:
            experiment = name if name in OPTIONAL else name.partition("_")[0]
            experiment = overview.EXPERIMENT if name == overview.NAME else experiment
            missing.append(
                f"{title}: the store lacks some of its cells or pictures. Run `python run.py -m "
                f"experiment={experiment}`."
            )
        else:
            figures.append(Drawn(name, title, caption, save(figure, folder, name), wide=True))
    return figures, missing


def _absent_models(found: Sequence[Suite]) -> list[str]:
    present = {suite.kind for suite in found}
    return [
        f"This store has no model in place of {paper}."
        for kind, paper in MODELS.items()
        if kind not in present
    ]


def write_tables(tables: Iterable[TextTable], folder: Path) -> list[Path]:
    """Write each as Markdown, LaTeX and CSV, the parts of one name together; returns the first."""
    tables, written = list(tables), []
    for name in dict.fromkeys(table.name for table in tables):
        parts = [table for table in tables if table.name == name]
        name = file_name(name)  # that of a model may be part of it
        files.write_text(folder / f"{name}.md", "\n".join(map(to_markdown, parts)))
        files.write_text(folder / f"{name}.tex", "\n".join(map(to_latex, parts)))
        frame = pd.concat([part.frame for part in parts], ignore_index=True)
        files.write_text(folder / f"{name}.csv", csv(frame))
        written.append(folder / f"{name}.md")
    return written
