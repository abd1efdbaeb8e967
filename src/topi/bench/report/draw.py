"""What the scripts in `figures/` share."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from topi.bench.io.escape import say
from topi.bench.report.checked import checked_store
from topi.bench.report.paper.build import build_figures, build_tables, write_tables
from topi.bench.report.paper.suite import suites
from topi.errors import ToPiError


def draw(about: str, figures: Sequence[str] = (), tables: Sequence[str] = ()) -> None:
    """Make some artefacts of a store, where `topi report` puts them too, and print their paths.

    Exits 1 if the store lacks the cells of one.

    Args:
        about: the script's docstring, which names the experiment that feeds it.
        figures: names; each becomes a PNG and a PDF in `figures/`.
        tables: names; each becomes Markdown, LaTeX and CSV in `tables/`.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--store", type=Path, default=Path("results"), help="default: results")
    parser.add_argument("--out", type=Path, default=Path("report"), help="default: report")
    options = parser.parse_args()
    try:
        store = checked_store(options.store)
    except ToPiError as error:
        raise SystemExit(str(error)) from error
    found = suites(store)
    drawn, missing = build_figures(store, found, options.out / "figures", figures)
    written = write_tables(build_tables(store, found, tables), options.out / "tables")
    for path in [*(figure.path for figure in drawn), *written]:
        say(path)
    missing += [
        f"{name}: its cells are not in {options.store}. {about}"
        for name in tables
        if not any(path.stem == name for path in written)
    ]
    for sentence in missing:
        say(sentence, sys.stderr)
    if missing:
        raise SystemExit(1)
