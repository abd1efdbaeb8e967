"""What the scripts in `figures/` share."""

import argparse
import sys
from pathlib import Path

from topi.report.paper import build_figures
from topi.report.suite import suites
from topi.results.store import Store


def draw_figures(about: str, *names: str) -> None:
    """Draw some figures of the paper from a store and print their paths; exits 1 if one cannot be.

    Args:
        about: the script's docstring.
        names: of the figures.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--store", type=Path, default=Path("results"), help="default: results")
    parser.add_argument("--out", type=Path, default=Path("report/figures"))
    options = parser.parse_args()
    store = Store(options.store)
    drawn, missing = build_figures(store, suites(store), options.out, names)
    for figure in drawn:
        print(figure.path)
    for sentence in missing:
        print(sentence, file=sys.stderr)
    if missing:
        raise SystemExit(1)
