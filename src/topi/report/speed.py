"""Measured speed beside what counted FLOPs allow; from a benchmark alone (Table 7 and more)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from topi.errors import ToPiError
from topi.report.figures import STYLE, save
from topi.report.paper_values import paper_values
from topi.report.statistics import bootstrap
from topi.report.text_table import Text, TextTable
from topi.results.bench import BenchRun, load_benches

STAGES = ("scoring", "selection", "gathering")
HOOKS = "hooks only"


def speed_lines(run: BenchRun) -> pd.DataFrame:
    """One line per variant, in the order of the manifest.

    Columns: `label, method, keep, pairs`; ratios full / method, medians of pairs with the interval
    in `_low` and `_high`: `total` (end to end) and `transformer`; `ideal`, the ratio of counted
    FLOPs; `quotient`, transformer / ideal; medians of seconds; `extra_bytes` of device memory.
    """
    frame, lines = run.frame, []
    for label in run.manifest["lines"]:
        rows = frame[frame["label"] == label]
        if rows.empty:
            continue
        first = rows.iloc[0]
        line = {"label": label, "method": first["method"], "keep": first["keep"]}
        line["pairs"] = len(rows)
        for part in ("total", "transformer"):
            ratio = bootstrap(rows[f"{part}_full"] / rows[f"{part}_method"], np.median)
            line |= {part: ratio.value, f"{part}_low": ratio.low, f"{part}_high": ratio.high}
        line["ideal"] = first["flops_full"] / first["flops_method"]
        line["quotient"] = line["transformer"] / line["ideal"]
        line["total_quotient"] = line["total"] / line["ideal"]
        seconds = [*(f"{stage}_seconds" for stage in STAGES), "call_full", "call_anchor"]
        seconds += ["call_reduced", "total_full", "total_method", "transformer_method"]
        line |= rows[seconds].astype(float).median().to_dict()
        extra = rows["peak_bytes_method"] - rows["peak_bytes_full"]
        line["extra_bytes"] = extra.astype(float).median()
        lines.append(line)
    return pd.DataFrame(lines)


def speed_table(run: BenchRun) -> TextTable:
    """The table of a benchmark: measured, ideal, their quotient, and where the time went."""
    about, frame = run.manifest, speed_lines(run)
    rows = tuple(_row(line) for line in frame.to_dict("records"))
    return TextTable(
        name=f"speed_{run.key}",
        title=title(about),
        headings=(
            *("Line", "End to end", "Transformer", "FLOP-ideal", "Quotient"),
            *("s per full call", "anchor", "reduced"),
            *("Scoring", "Selection", "Gathering", "Extra MiB"),
        ),
        rows=rows,
        frame=frame,
        words=1,
        notes=tuple(notes(about)),
        keys={"measured in": (run.key,)},
    )


def breakdown_table(runs: Sequence[BenchRun]) -> TextTable | None:
    """Table 7 on each device that was benchmarked: where ToPi's time goes at half of the tokens.

    None if no benchmark has that line.
    """
    paper = paper_values("table7").set_index("component")
    ratios = [paper["ratio"][name] for name in ("Importance Scoring", "Selection")]
    seconds = paper["runtime"]["Total"]
    known = ["FLUX.1 Kontext, the paper", seconds, *ratios, "–", "–"]
    rows = [tuple(Text(field, paper=True) for field in known)]
    records, keys = [], {}
    for run in runs:
        frame = speed_lines(run).set_index("label")
        if "topi keep=0.5" not in frame.index:
            continue
        line, about = frame.loc["topi keep=0.5"], run.manifest
        shares = {stage: line[f"{stage}_seconds"] / line["total_method"] for stage in STAGES}
        shares["hooks"] = 1 / frame["transformer"].get(HOOKS, np.nan) - 1
        what = title(about)
        fields = (what, f"{line['total_method']:.3f}", *(f"{s:.2%}" for s in shares.values()))
        rows.append(tuple(map(Text, fields)))
        records.append({"run": run.key, "seconds": line["total_method"], **shares})
        keys[what] = (run.key,)
    if not records:
        return None
    return TextTable(
        name="table7_devices",
        title="Table 7 on each device: where the time goes with half of the tokens",
        headings=("What and where", "Runtime (s)", "Scoring", "Selection", "Gathering", "Hooks"),
        rows=tuple(rows),
        frame=pd.DataFrame(records),
        words=1,
        notes=(
            "Shares of the method's end-to-end time; hooks: what the transformer takes longer with "
            "hooks that do nothing. Medians over the timed runs of `topi bench`.",
        ),
        keys=keys,
    )


def title(about: dict) -> str:
    """What was measured, and on what."""
    height, width = about["size"]
    size = "scaled-down " if about["scaled_down"] else ""
    weights = "random weights, " if about["weights"].startswith("random") else ""
    compiled = f", blocks compiled by {about['compiled']}" if about["compiled"] else ""
    compiled += ", every last block trimmed" if about["trim_last"] else ""
    return (
        f"Speed of {size}{about['model']} on {about['device']['name']}: {weights}{width} x {height}"
        f", {about['references']} reference(s), {about['steps']} steps, {about['dtype']}{compiled}"
    )


def notes(about: dict) -> list[str]:
    """What a reader must know."""
    lines = [
        "Ratios are full over method, medians of interleaved pairs with a 95 % interval; end to "
        "end includes the VAE. Quotient: transformer over FLOP-ideal.",
        "Scoring, selection and gathering are shares of the method's end-to-end time.",
    ]
    if about["scaled_down"]:
        lines.insert(
            0,
            "SCALED DOWN for lack of a GPU: a few narrow layers, not the published size. Nothing "
            "here is a number of the real model.",
        )
    return lines


def _row(line: dict) -> tuple[Text, ...]:
    def ratio(name: str) -> Text:
        low, high = line[f"{name}_low"], line[f"{name}_high"]
        return Text(f"{line[name]:.3f}× [{low:.3f}, {high:.3f}]")

    shares = (line[f"{stage}_seconds"] / line["total_method"] for stage in STAGES)
    extra = line["extra_bytes"]
    return (
        Text(line["label"]),
        ratio("total"),
        ratio("transformer"),
        Text(f"{line['ideal']:.3f}×"),
        Text(f"{line['quotient']:.1%}"),
        *(Text(_seconds(line[name])) for name in ("call_full", "call_anchor", "call_reduced")),
        *(Text(f"{share:.2%}") for share in shares),
        Text("–" if np.isnan(extra) else f"{extra / 2**20:.0f}"),
    )


def _seconds(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"


@plt.style.context(STYLE)
def speed_figure(run: BenchRun) -> Figure:
    """Measured over FLOP-ideal ratio of each line; on the diagonal nothing is lost."""
    frame = speed_lines(run)
    figure, ax = plt.subplots(figsize=(3.4, 3.0))
    most = max(frame[["ideal", "transformer_high"]].max()) * 1.03
    ax.plot([0.95, most], [0.95, most], color="0.6", linewidth=0.8, zorder=0)
    for method, lines in frame.groupby("method", sort=False):
        spread = [
            lines["transformer"] - lines["transformer_low"],
            lines["transformer_high"] - lines["transformer"],
        ]
        ax.errorbar(lines["ideal"], lines["transformer"], spread, fmt="o", ms=3, label=method)
    ax.set(xlabel="FLOP-ideal speed-up", ylabel="measured speed-up of the transformer")
    figure.suptitle(title(run.manifest), wrap=True, fontsize="small")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def build_speed(store: Path | str, out: Path | str) -> list[Path]:
    """Draw the figure of each benchmark of a store; returns the PNGs.

    Raises:
        ToPiError: there is no benchmark.
    """
    runs = load_benches(store)
    if not runs:
        raise ToPiError(f"There is no benchmark in {store}: run `topi bench store={store}`.")
    return [save(speed_figure(run), Path(out), f"speed_{run.key}") for run in runs]
