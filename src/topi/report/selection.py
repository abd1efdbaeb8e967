"""Fidelity against ideal speed, pair by pair, of whatever a store holds: a Markdown table.

`python -m topi.report.selection --store STORE` after `experiment=selection` or `experiment=checks`.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pandas as pd

from topi.errors import ToPiError
from topi.report.statistics import LEVEL, bootstrap, holm, paired_difference, signed_rank
from topi.results.store import Cell, Store


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
    by_category = rows.pivot_table(index="label", columns="category", values="psnr")
    heads = ["method", "n", "ideal ×", "kept", "PSNR", *(f"− {rival}" for rival in rivals)]
    heads += list(by_category.columns)
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    pairs = [(label, rival) for rival in rivals for label in labels if label != rival]
    p_values = holm([signed_rank(rows, *pair, "psnr") for pair in pairs])
    holds = {pair for pair, p in zip(pairs, p_values, strict=True) if p < 1 - LEVEL}
    for label, (speed, kept) in facts.sort_values("flop_speedup").iterrows():
        psnr = bootstrap(rows.loc[rows["label"] == label, "psnr"])
        cells = [label, f"{psnr.n}", f"{speed:.2f}", f"{kept:.2f}", f"{psnr.value:.2f}"]
        for rival in rivals:
            gain = paired_difference(rows, label, rival, "psnr")
            interval = f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
            interval += " *" if (label, rival) in holds else ""
            cells.append("" if label == rival else interval)
        cells += [f"{value:.1f}" for value in by_category.loc[label]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Print the table, and which weights it is of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("results"), help="default: results")
    parser.add_argument("--against", nargs="+", default=["topi ratio=0.5"], metavar="LABEL")
    options = parser.parse_args(argv)
    store = Store(options.store)
    cells = store.load_cells()
    if not cells:
        raise SystemExit(f"{options.store} has no cells; run experiment=selection first.")
    for heading, group in itertools.groupby(sorted(cells, key=heading_of), key=heading_of):
        print(f"{heading}:\n\n{selection_table(store.rows(group), *options.against)}")


def heading_of(cell: Cell) -> str:
    """What cells of one table share."""
    told = cell.manifest
    return (
        f"{told['model']} {told['weights']}, {told['count']} samples of {told['data']}, "
        f"{told['steps']} steps, noise seed {told['seed']}"
    )


if __name__ == "__main__":
    main()
