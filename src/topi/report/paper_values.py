"""What the paper prints, as data: `experiments/<artefact>/paper.csv`, typos included."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from topi.errors import ToPiError

EXPERIMENTS = Path(__file__).resolve().parents[3] / "experiments"


@cache
def paper_values(artefact: str, folder: Path = EXPERIMENTS) -> pd.DataFrame:
    """The printed values of an artefact, all of them text.

    Args:
        artefact: `table1`, `fig6`, ...
        folder: where the artefacts are.

    Raises:
        ToPiError: there is no such file; outside a checkout there are none.
    """
    path = folder / artefact / "paper.csv"
    if not path.is_file():
        raise ToPiError(f"{path} is missing: the paper's values are in a checkout of the project.")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def category_of(printed: str) -> str:
    """Our name of a category; the paper writes "Global Edit" and "Global Editing" for one."""
    return printed.lower().replace("editing", "edit").replace(" ", "_")


def printed(
    artefact: str, category: str, method: str, metric: str, model: str | None = None
) -> str:
    """One printed number of Tables 1 to 5; empty if the paper has none.

    Args:
        category: our name.
        method: the paper's name, "Ours" for ToPi.
        metric: psnr, ssim, lpips or speed.
        model: the paper's name; Tables 2 to 5 are of Flux.1-Kontext alone.
    """
    table = paper_values(artefact)
    if metric not in table:
        return ""
    mine = (table["category"].map(category_of) == category) & (table["method"] == method)
    if "model" in table:
        mine &= table["model"] == model
    elif model != "Flux.1-Kontext":
        return ""
    found = table.loc[mine, metric]
    return found.iloc[0] if len(found) else ""


def quantity(artefact: str, name: str) -> float:
    """A number that the paper states in its text about a figure.

    Raises:
        KeyError: it states none under this name.
    """
    table = paper_values(artefact)
    return float(table.set_index("quantity")["value"][name])
