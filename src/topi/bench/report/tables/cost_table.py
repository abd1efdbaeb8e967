"""What a run will cost: the table of a prediction, the check against measured rows, the curves."""

from __future__ import annotations

from math import isnan

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from topi.bench.report.drawing.plots import STYLE, method_style
from topi.bench.report.tables.text_table import Text, TextTable


def cost_table(model: str, lines: pd.DataFrame, gpu: str) -> TextTable:
    """FLOPs, traffic, ideal speed-up, least time and memory of one run, full and by method."""
    first, known = lines.iloc[0], lines[lines["why"].isna()]
    rows = tuple(
        (
            Text(line["label"]),
            Text(_number(line["tflop"])),
            Text(f"{line['ideal']:.3f}×"),
            Text(_number(line["gigabytes"])),
            Text(_number(line["seconds"])),
            Text(_number(line["memory_gib"]) + ("" if line["fits"] else " (too much)")),
            Text(f"{line['extra_gib']:+.2f}"),
        )
        for line in known.to_dict("records")
    )
    refused = lines[lines["why"].notna()]
    notes = [
        f"{label}: not predictable: {why}"
        for label, why in refused[["label", "why"]].itertuples(index=False)
    ]
    whole = f"The full run has {_number(known['tflop_full'].iloc[0])} TFLOP. " if len(known) else ""
    return TextTable(
        name=f"cost_{model}",
        title=(
            f"Predicted cost of {model}: {first['size']} x {first['size']}, {first['refs']} "
            f"reference(s), on {gpu}"
        ),
        headings=(
            *("Method", "TFLOP", "FLOP-ideal", "GB moved", "least seconds", "GiB held"),
            "extra GiB",
        ),
        rows=rows,
        frame=lines,
        words=1,
        notes=(
            f"{whole}Nothing here is measured. Seconds are a lower bound from the data sheet of "
            "the GPU. GB and GiB are estimates without VAE and text encoder; for merging methods "
            "they are those of the full run. GiB include stored keys and values.",
            "A method that depends on the picture is predicted for a picture of noise; there "
            "RegionE computes all tokens.",
            *notes,
        ),
    )


def check_table(measured: pd.DataFrame) -> TextTable:
    """Predicted beside measured, a line of a benchmark or a timed cell each."""
    known = measured[measured["why"].isna()]
    rows = tuple(
        (
            Text(line["run"]),
            Text(line["label"]),
            Text(f"{line['error']:+.2%}"),
            Text(f"{line['predicted']:.3f}×"),
            Text(f"{line['measured']:.3f}×"),
            Text(f"{line['measured'] / line['predicted']:.1%}"),
            _both(line["seconds_predicted"], line["seconds"], "{:.2f}"),
            _both(line["memory_predicted"] / 2**30, line["memory"] / 2**30, "{:.1f}"),
            Text("–" if isnan(line["utilisation"]) else f"{line['utilisation']:.1%}"),
        )
        for line in known.to_dict("records")
    )
    refused = measured[measured["why"].notna()]
    notes = [
        f"{label} of {run} is not checked: {why}"
        for run, label, why in refused[["run", "label", "why"]].itertuples(index=False)
    ]
    return TextTable(
        name="cost_check",
        title="Predictions checked against measured rows",
        headings=(
            *("Run", "Line", "FLOPs off by", "Predicted", "Measured", "Quotient"),
            *("Seconds", "GiB", "Utilisation"),
        ),
        rows=rows,
        frame=measured,
        notes=(
            "Measured: for a benchmark, the speed-up of the transformer; for a cell, end to end. "
            "Cells are predicted with the number of tokens that they kept. FLOPs of a cell are "
            "those of its ideal speed-up.",
            "Seconds and GiB of the transformer: predicted / measured, on a GPU only. Measured GiB "
            "hold the VAE's weights, too. Utilisation: the full run's FLOP/s over those of the "
            "chosen GPU's data sheet.",
            *notes,
        ),
    )


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.2g}"


def _both(predicted: float, measured: float, form: str) -> Text:
    known = not isnan(measured)
    return Text(f"{form} / {form}".format(predicted, measured) if known else "–")


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
        ax.plot(full.index, full, color="0.6", label="full" if ax is axes[0] else None)
        for label in labels:
            line = part[part["label"] == label].sort_values(over)
            shown = {k: v for k, v in styles[label.split()[0]].items() if k != "label"}
            ax.plot(line[over], line["tflop"], **shown, label=label if ax is axes[0] else None)
        ax.set(xlabel=name, yscale="log")
    axes[0].set_ylabel("TFLOP of a run")
    figure.suptitle(f"Counted cost of {model}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
