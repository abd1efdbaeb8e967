"""What `topi figure NAME` draws: figures and tables by name, and the command for the cells."""

import sys
from pathlib import Path
from typing import NamedTuple

from topi.bench.io.escape import say


class Artefact(NamedTuple):
    """A name behind `topi figure`.

    Args:
        computed_by: the command that computes its cells, without `topi`.
        figures: names of figures; each is written as PNG and PDF.
        tables: names of tables; each is written as Markdown, LaTeX and CSV.
    """

    computed_by: str
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


PROBE = "probe size=small"

ARTEFACTS = {
    "fig1": Artefact(PROBE, ("fig1",)),
    "fig2": Artefact(PROBE, ("fig2",)),
    "fig3": Artefact(PROBE, ("fig3",)),
    "fig5": Artefact("run -m experiment=fig5", ("fig5",)),
    "fig6": Artefact("run -m experiment=fig6", ("fig6",)),
    "fig7": Artefact("run -m experiment=fig7", ("fig7",)),
    "fig9": Artefact("run -m experiment=fig9", ("fig9",)),
    "fig10": Artefact("run -m experiment=fig10", ("fig10", "fig10_curve")),
    "fig11": Artefact("run -m experiment=fig11", ("fig11",)),
    "table1": Artefact(
        "run -m experiment=table1",
        ("table1_curves",),
        ("table1", "table1_curves", "table1_equal_speed"),
    ),
    "table2": Artefact("run -m experiment=table2", tables=("table2",)),
    "table3": Artefact("run -m experiment=table3", tables=("table3",)),
    "table4": Artefact("run -m experiment=table4", tables=("table4",)),
    "table5": Artefact("run -m experiment=table5", tables=("table5",)),
    "table6": Artefact("figure table6", tables=("table6",)),  # needs no cells
    "table7": Artefact("run -m experiment=table7", tables=("table7",)),
    "equal_count": Artefact(
        "run -m experiment=equal_count", ("equal_count",), ("equal_count", "equal_speed")
    ),
    "overview": Artefact("run -m experiment=fig5", ("overview",)),
    "pareto": Artefact(
        "run -m experiment=pareto", ("pareto", "pareto_categories"), ("leaderboard",)
    ),
    "references": Artefact("run -m experiment=references", ("references",), ("references",)),
}


def draw(name: str, store_root: Path, out: Path) -> int:
    """Write one artefact of a store where `topi report` puts it too, and print the paths.

    Args:
        name: one of `ARTEFACTS`.
        store_root: folder of the store.
        out: gets the figures in `figures/` and the tables in `tables/`.

    Returns:
        The exit code: 1 if the store lacks cells.
    """
    from topi.bench.report.checked import checked_store
    from topi.bench.report.paper.build import build_figures, build_tables, write_tables
    from topi.bench.report.paper.suite import suites

    artefact, store = ARTEFACTS[name], checked_store(store_root)
    in_store = suites(store)
    figures, missing = build_figures(store, in_store, out / "figures", artefact.figures)
    tables = write_tables(build_tables(store, in_store, artefact.tables), out / "tables")
    for path in [*(figure.path for figure in figures), *tables]:
        say(path)
    written = {path.stem for path in tables}
    missing += [
        f"{table}: its cells are not in {store_root}; compute them with "
        f"`topi {artefact.computed_by}`."
        for table in artefact.tables
        if table not in written
    ]
    for sentence in missing:
        say(sentence, sys.stderr)
    return int(bool(missing))
