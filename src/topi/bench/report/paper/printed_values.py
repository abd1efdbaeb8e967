"""What the paper prints, as data: `experiments/<artefact>/paper.csv`, typos included."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from topi.bench.results import validation as schema
from topi.errors import ToPiError

EXPERIMENTS = Path(__file__).resolve().parents[5] / "experiments"


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
    return pd.DataFrame(schema.read_csv(path, dict[str, str], "take it from a checkout."))


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
    line = _lines(artefact).get((category, method, model or ""), {})
    return line.get(metric, "")


@cache
def _lines(artefact: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """(category, method, model) -> the line of the table."""
    lines = paper_values(artefact).to_dict("records")
    return {
        (category_of(line["category"]), line["method"], line.get("model", "Flux.1-Kontext")): line
        for line in lines
    }


def quantity(artefact: str, name: str) -> float:
    """A number that the paper states in its text about a figure.

    Raises:
        KeyError: it states none under this name.
    """
    table = paper_values(artefact)
    return float(table.set_index("quantity")["value"][name])
