"""Tables of the redundancy study: `python -m topi.bench.standins.redundancy_table JSON...`.

The files are those of `python -m topi.bench.standins.redundancy`, the control first. Differences
are paired by sample.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from topi.bench.io import escape
from topi.bench.report.tables.text_table import markdown_lines
from topi.bench.results import validation as schema
from topi.bench.results.statistics import bootstrap

NOT_RULES = ("id", "category", "truth", "keep", "influence")
"""Fields of a sample that are not rules to compare influence with."""


class Sample(TypedDict):
    """A sample: PSNR in dB to the true edit, the share that is kept; more fields are rules."""

    __pydantic_config__ = ConfigDict(extra="allow")
    id: str
    category: str
    truth: float
    keep: float
    influence: float


class Measured(TypedDict):
    """What `python -m topi.bench.standins.redundancy` writes of a run."""

    run: str
    by_layer: Annotated[list[schema.Share], Field(min_length=1)]
    by_step: Annotated[list[schema.Share], Field(min_length=1)]
    samples: Annotated[list[Sample], Field(min_length=1)]


def column(run: Mapping, name: str) -> np.ndarray:
    """Of each sample, a number."""
    return np.array([sample[name] for sample in run["samples"]])


def lead(run: Mapping, rule: str) -> np.ndarray:
    """PSNR in dB that the influence score is ahead of another rule with, per sample."""
    return column(run, "influence") - column(run, rule)


def estimate(values: np.ndarray) -> str:
    """Mean and 95 % bootstrap interval, of dB."""
    mean = bootstrap(values)
    return f"{mean.value:+.1f} [{mean.low:+.1f}, {mean.high:+.1f}]"


def tables(measured: Sequence[Mapping]) -> str:
    """Markdown of each run: its quality and attention, and the loss from pruning half.

    Differences are paired by sample, in dB; the first run is the control.
    """
    control = measured[0]
    others = [name for name in control["samples"][0] if name not in NOT_RULES]
    like = [["run", "PSNR to the true edit", "− control", "mean S", "highest S", "S, first → last"]]
    like[0] += ["three layers hold", "keep at tau 0.85"]
    half = [["run", "influence", *(f"influence − {rule}" for rule in others)]]
    half[0] += ["influence − random, against the control's"]
    for run in measured:
        truth, by_layer = column(run, "truth"), np.array(run["by_layer"])
        compared = run is not control
        like.append(
            [
                run["run"],
                f"{truth.mean():.1f}",
                estimate(truth - column(control, "truth")) if compared else "",
                f"{by_layer.mean():.2f}",
                f"{by_layer.max():.2f} (layer {by_layer.argmax()})",
                f"{run['by_step'][0]:.2f} → {run['by_step'][-1]:.2f}",
                f"{np.sort(by_layer)[-3:].sum() / by_layer.sum():.0%}",
                f"{column(run, 'keep').mean():.2f}",
            ]
        )
        half.append(
            [
                run["run"],
                f"{column(run, 'influence').mean():.1f}",
                *(estimate(lead(run, rule)) for rule in others),
                estimate(lead(run, "random") - lead(control, "random")) if compared else "",
            ]
        )
    return markdown(like) + "\n" + markdown(half)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *lines = [list(map(escape.markdown, row)) for row in rows]
    return markdown_lines([head, ["---"] * len(head), *lines]) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m topi.bench.standins.redundancy_table")
    parser.add_argument("measured", nargs="+", type=Path, help="the first one of the control")
    args = parser.parse_args(argv)
    again = "write it with `python -m topi.bench.standins.redundancy`."
    measured = [schema.read(path, Measured, again) for path in dict.fromkeys(args.measured)]
    print(tables(measured), end="")


if __name__ == "__main__":
    main()
