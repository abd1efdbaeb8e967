"""What a run will cost: the table of a prediction, the check against measured rows, the curves."""

from __future__ import annotations

from math import isnan

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from topi.report.figures import STYLE, method_style
from topi.report.text_table import Text, TextTable


def cost_table(model: str, lines: pd.DataFrame, gpu: str) -> TextTable:
    """FLOPs, traffic, ideal speed-up, least time and memory of one run, full and by method."""
    first = lines.iloc[0]
    rows = tuple(
        (
            Text(line["label"]),
            Text(f"{line['tflop']:.2f}"),
            Text(f"{line['ideal']:.3f}×"),
            Text(f"{line['gigabytes']:.0f}"),
            Text(f"{line['seconds']:.2f}"),
            Text(f"{line['memory_gib']:.1f}" + ("" if line["fits"] else " (too much)")),
        )
        for line in lines.to_dict("records")
    )
    return TextTable(
        name=f"cost_{model}",
        title=(
            f"Predicted cost of {model}: {first['size']} x {first['size']}, {first['refs']} "
            f"reference(s), on {gpu}"
        ),
        headings=("Method", "TFLOP", "FLOP-ideal", "GB moved", "least seconds", "GiB held"),
        rows=rows,
        frame=lines,
        words=1,
        notes=(
            f"The full run has {first['tflop_full']:.2f} TFLOP. Nothing here is measured: seconds "
            "are those of the data sheet, which no program reaches; GB and GiB are estimates, "
            "without VAE and text encoder, and GB of merging methods are those of the full run.",
        ),
    )


def check_table(measured: pd.DataFrame) -> TextTable:
    """Predicted beside measured, a line of a benchmark each."""
    rows = tuple(
        (
            Text(line["run"]),
            Text(line["label"]),
            Text(f"{line['error']:+.2%}"),
            Text(f"{line['ideal']:.3f}×"),
            Text(f"{line['measured']:.3f}×"),
            Text("–" if isnan(line["utilisation"]) else f"{line['utilisation']:.1%}"),
        )
        for line in measured.to_dict("records")
    )
    return TextTable(
        name="cost_check",
        title="Predictions checked against measured rows",
        headings=("Benchmark", "Line", "FLOPs off by", "FLOP-ideal", "Measured", "Utilisation"),
        rows=rows,
        frame=measured,
        notes=("Utilisation: the full run's FLOP/s over those of the chosen GPU's data sheet.",),
    )


@plt.style.context(STYLE)
def cost_curves(model: str, curve: pd.DataFrame, refs: int, size: int) -> Figure:
    """How the FLOPs of a run grow with references at one size, and with size at one number."""
    figure, axes = plt.subplots(1, 2, figsize=(6.75, 2.6), sharey=True)
    labels = list(dict.fromkeys(curve["label"]))
    styles = method_style([label.split()[0] for label in labels])
    parts = (
        (curve[curve["size"] == size], "refs", f"references, {size} x {size} pixels"),
        (curve[curve["refs"] == refs], "size", f"pixels of a side, {refs} reference(s)"),
    )
    for ax, (part, over, name) in zip(axes, parts, strict=True):
        full = part.groupby(over)["tflop_full"].first()
        ax.plot(full.index, full, color="black", label="full" if ax is axes[0] else None)
        for label in labels:
            line = part[part["label"] == label].sort_values(over)
            shown = {k: v for k, v in styles[label.split()[0]].items() if k != "label"}
            ax.plot(line[over], line["tflop"], **shown, label=label if ax is axes[0] else None)
        ax.set(xlabel=name, yscale="log")
    axes[0].set_ylabel("TFLOP of a run")
    figure.suptitle(f"Counted cost of {model}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
