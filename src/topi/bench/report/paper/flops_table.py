"""Table 6: the FLOPs of one layer, by the paper's formulas and as the real models have them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from topi.bench.report.paper.printed_values import EXPERIMENTS, paper_values
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.results import validation as schema

GIGA = 1e9
TEXT, TARGET, REFERENCE = 512, 4096, 4096
KEPT = REFERENCE // 2
"""Appendix F.3: tokens, and how many reference tokens ToPi keeps."""
ARCHITECTURES = {"Flux Joint": 4, "Flux Single": 4, "Qwen-Image-Edit": 6}
"""Name -> width of the MLP over d, as the paper has it."""


@dataclass(frozen=True)
class LayerFlops:
    """FLOPs of one layer by component."""

    attention: NonNegativeInt
    image: NonNegativeInt
    text: NonNegativeInt

    @property
    def total(self) -> int:
        """Of the components."""
        return self.attention + self.image + self.text


def by_formula(n_image: int, n_text: int = TEXT, d: int = 4096, mlp: int = 4) -> LayerFlops:
    """Equations 13 to 17: 4 N^2 d for attention, (8 + 4 mlp) N d^2 for the linear operations."""
    linear = (8 + 4 * mlp) * d**2
    return LayerFlops(4 * (n_image + n_text) ** 2 * d, linear * n_image, linear * n_text)


class Counted(TypedDict):
    """What `python -m topi.bench.speed.layer_flops` writes; see `counted`."""

    layers: dict[str, dict[str, LayerFlops]]


def counted() -> dict[str, dict[str, LayerFlops]]:
    """The real configurations: architecture -> `baseline` and `topi` -> FLOPs of one layer.

    Raises:
        ToPiError: the counts are missing or not valid.
    """
    path = EXPERIMENTS / "table6" / "counted.json"
    again = "run `python -m topi.bench.speed.layer_flops`."
    return schema.read(path, Counted, again)["layers"]


def reduction(baseline: float, topi: float) -> float:
    """Share that is saved."""
    return 1 - topi / baseline


def flops_table() -> TextTable:
    """The paper's numbers, the same from its formulas, and the count of the real layers."""
    paper = paper_values("table6")
    real = counted()
    rows, lines = [], []
    for architecture, mlp in ARCHITECTURES.items():
        printed = paper[paper["architecture"].str.startswith(architecture)]
        single = architecture == "Flux Single"
        full, half = (by_formula(TARGET + n, mlp=mlp) for n in (REFERENCE, KEPT))
        for number, (_, line) in enumerate(printed.iterrows()):
            component = _component(line["component"])
            formula = [_value(side, component, single) for side in (full, half)]
            counts = [
                _value(real[architecture][side], component, single) for side in ("baseline", "topi")
            ]
            rows.append(
                (
                    Text(architecture if number == 0 else ""),
                    Text(line["component"]),
                    *(Text(line[n], paper=True) for n in ("baseline", "topi", "reduction")),
                    *(Text(f"{value / GIGA:.2f}") for value in formula),
                    *(Text(f"{value / GIGA:.2f}") for value in counts),
                    Text(f"{0 - reduction(*counts):.1%}"),
                )
            )
            lines.append(
                {"table": "table6", "architecture": architecture, "component": line["component"]}
                | {f"paper_{n}": line[n] for n in ("baseline", "topi", "reduction")}
                | {"formula_baseline": formula[0], "formula_topi": formula[1]}
                | {"counted_baseline": counts[0], "counted_topi": counts[1]}
            )
    return TextTable(
        name="table6",
        title="Table 6. FLOPs of one layer at half of the reference tokens (GFLOPs)",
        headings=(
            *("Architecture", "Component"),
            *("full (paper)", "ToPi (paper)", "saved (paper)"),
            *("full (formula)", "ToPi (formula)"),
            *("full (counted)", "ToPi (counted)", "saved (counted)"),
        ),
        rows=tuple(rows),
        frame=pd.DataFrame(lines),
        notes=(
            "Formula: equations 13 to 17 with the paper's d = 4096 and, for Qwen, an MLP of 6d.",
            "Counted: the layers of the published configurations (d = 3072, MLP of 4d in both) on "
            "the meta device, without the modulation from the time step. Nothing is measured here.",
            "Qwen's layer total is printed as 5914.17; its components add up to 5914.18.",
        ),
    )


def _component(printed: str) -> str:
    for word, name in (("Attn", "attention"), ("Text", "text"), ("Total", "total")):
        if word in printed:
            return name
    return "image"


def _value(flops: LayerFlops, component: str, single: bool) -> float:
    """A single-stream layer has no linear operations of the image alone."""
    if single and component == "image":
        return flops.image + flops.text
    return getattr(flops, component)
