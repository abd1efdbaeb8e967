"""Fidelity against ideal speed, pair by pair, of whatever a store holds: a Markdown table.

`python -m topi.report.selection --store STORE` after `experiment=selection`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from topi.errors import ToPiError
from topi.report.statistics import bootstrap, paired_difference
from topi.results.store import Store


def selection_table(rows: pd.DataFrame, *rivals: str) -> str:
    """A line per label in the order of ideal speed: PSNR, and its paired differences to rivals.

    Args:
        rows: of `Store.rows`, one model.
        rivals: labels to compare with.

    Raises:
        ToPiError: a rival is not in the store.
    """
    labels = list(rows["label"].unique())
    if missing := [rival for rival in rivals if rival not in labels]:
        raise ToPiError(f"No cell is labelled {missing[0]!r}; there are: {', '.join(labels)}.")
    facts = rows.groupby("label")[["flop_speedup", "keep_ratio"]].mean()
    by_category = rows.pivot_table(index="label", columns="category", values="psnr")
    heads = ["method", "n", "ideal ×", "kept", "PSNR", *(f"− {rival}" for rival in rivals)]
    heads += list(by_category.columns)
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for label, (speed, kept) in facts.sort_values("flop_speedup").iterrows():
        psnr = bootstrap(rows.loc[rows["label"] == label, "psnr"])
        cells = [label, f"{psnr.n}", f"{speed:.2f}", f"{kept:.2f}", f"{psnr.value:.2f}"]
        for rival in rivals:
            gain = paired_difference(rows, label, rival, "psnr")
            interval = f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
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
    weights = {f"{cell.manifest['model']} {cell.manifest['weights']}" for cell in cells}
    print(selection_table(store.rows(), *options.against))
    print("weights: " + ", ".join(sorted(weights)))


if __name__ == "__main__":
    main()
