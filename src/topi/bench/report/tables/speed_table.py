"""Measured speed beside what counted FLOPs allow; from a benchmark alone (Table 7 and more)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from topi.bench.report.drawing.plots import STYLE, save
from topi.bench.report.paper.printed_values import paper_values
from topi.bench.report.tables.columns import FEW, measured_text
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.results.bench_run import BenchRun, load_benches
from topi.bench.results.statistics import bootstrap
from topi.errors import ToPiError

STAGES = ("scoring", "selection", "gathering")
HOOKS = "hooks only"
OURS = "topi keep=0.5"
"""The line that the targets are of, and Table 7."""
SAME = ("model", "source", "weights", "scaled_down", "dtype", "steps", "size", "references")
"""What two benchmarks share whose full runs do the same work."""


@dataclass(frozen=True)
class Target:
    """What is aimed at.

    Args:
        bound: the most that a value may be, or the least.
        form: how values are written.
    """

    what: str
    bound: float
    form: str
    at_least: bool = False

    def verdict(self, value: float) -> str:
        """Whether the target is met; for NaN, that it was not measured."""
        aim = f"{self.what} {'≥' if self.at_least else '≤'} {self.form.format(self.bound)}"
        if np.isnan(value):
            return f"{aim}: not measured here"
        met = value >= self.bound if self.at_least else value <= self.bound
        return f"{aim}: {'met' if met else 'missed'} ({self.form.format(value)})"


TARGETS = {
    "gpu": Target("end to end of ideal", 0.97, "{:.1%}", at_least=True),
    "scoring": Target("scoring and selection", 0.001, "{:.2%}"),
    "hooks": Target("hooks", 0.003, "{:.2%}"),
    "memory": Target("extra MiB at one reference", 128, "{:.0f}"),
    "cpu": Target("end to end of ideal of a stand-in on a CPU", 0.93, "{:.1%}", at_least=True),
}
"""Of the published sizes on a data-centre GPU, but for the last."""


def speed_lines(run: BenchRun) -> pd.DataFrame:
    """One line per variant, in the order of the manifest.

    Columns: `label, method, keep, pairs`; ratios full / method, medians of pairs with the interval
    in `_low` and `_high`: `total` (end to end) and `transformer`; `ideal`, the ratio of counted
    FLOPs; `quotient` and `total_quotient`, transformer and total / ideal; medians of seconds;
    `extra_bytes` of device memory while the transformer runs; `uncompiled`, the share of blocks;
    `against_compiled`, end to end against the full run of `compiled_full`.
    """
    frame, lines = run.frame, []
    compiled = compiled_full(run)
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
        medians = [*(f"{stage}_seconds" for stage in STAGES), "call_full", "call_anchor"]
        medians += ["call_reduced", "total_full", "total_method", "transformer_method"]
        line |= rows[[*medians, "uncompiled"]].astype(float).median().to_dict()
        held = rows["peak_bytes_transformer_method"] - rows["peak_bytes_transformer_full"]
        line["extra_bytes"] = held.astype(float).median()
        line["against_compiled"] = compiled / line["total_method"]
        lines.append(line)
    return pd.DataFrame(lines)


def compiled_full(run: BenchRun) -> float:
    """Seconds of the fastest compiled full run of the same work on the same device; NaN: none.

    Looked for in the store of the benchmark, which may be compiled itself.
    """

    def work(about: dict) -> tuple:
        return (*(about[name] for name in SAME), about["device"]["name"])

    others = load_benches(run.path.parents[1])
    compiled = [each for each in others if each.manifest["compiled"]]
    alike = [each for each in compiled if work(each.manifest) == work(run.manifest)]
    return min((each.frame["total_full"].median() for each in alike), default=np.nan)


def speed_table(run: BenchRun) -> TextTable:
    """The table of a benchmark: measured, ideal, their quotient, and where the time went."""
    about, frame = run.manifest, speed_lines(run)
    rows = tuple(_row(line) for line in frame.to_dict("records"))
    return TextTable(
        name=f"speed_{run.key}",
        title=title(about),
        headings=(
            *("Line", "FLOP-ideal", "End to end", "of ideal", "Transformer", "of ideal"),
            *("Against compiled full", "s per full call", "anchor", "reduced"),
            *("Scoring", "Selection", "Gathering", "Extra MiB"),
        ),
        rows=rows,
        frame=frame,
        words=1,
        notes=(*notes(about, frame), _pairs(frame["pairs"])),
        keys={"measured in": (run.key,)},
    )


def breakdown_table(runs: Sequence[BenchRun]) -> TextTable | None:
    """Table 7 on each device that was benchmarked: where ToPi's time goes at half of the tokens.

    None if no benchmark has that line.
    """
    paper = paper_values("table7").set_index("component")
    names = ("Base Model Inference", "Importance Scoring", "Selection")
    seconds, ratios = paper["runtime"]["Total"], [paper["ratio"][name] for name in names]
    known = ["FLUX.1 Kontext, the paper", seconds, *ratios, "–", "–"]
    rows = [tuple(Text(field, paper=True) for field in known)]
    records, keys = [], {}
    for run in runs:
        frame = speed_lines(run).set_index("label")
        if OURS not in frame.index:
            continue
        line, about = frame.loc[OURS], run.manifest
        parts = {stage: line[f"{stage}_seconds"] / line["total_method"] for stage in STAGES}
        parts["hooks"] = hook_share(frame)
        shares = {"base": 1 - sum(parts.values()), **parts}
        what = title(about)
        fields = (what, f"{line['total_method']:.3f}", *map(_share, shares.values()))
        rows.append(tuple(map(Text, fields)))
        records.append({"run": run.key, "seconds": line["total_method"], **shares})
        keys[what] = (run.key,)
    if not records:
        return None
    return TextTable(
        name="table7_devices",
        title="Table 7 on each device: where the time goes with half of the tokens",
        headings=(
            *("What and where", "Runtime (s)", "Base"),
            *("Scoring", "Selection", "Gathering", "Hooks"),
        ),
        rows=tuple(rows),
        frame=pd.DataFrame(records),
        words=1,
        notes=(
            "Shares of the method's end-to-end time; hooks: what the transformer takes longer with "
            "hooks that do nothing; base: the rest. Medians over the timed runs of `topi bench`.",
        ),
        keys=keys,
    )


def hook_share(frame: pd.DataFrame) -> float:
    """By what share the transformer is slower with hooks that do nothing; NaN: not measured.

    Args:
        frame: `speed_lines` by label.
    """
    return 1 / frame["transformer"].get(HOOKS, np.nan) - 1


def targets(about: dict, frame: pd.DataFrame) -> dict[str, float]:
    """The values that `TARGETS` are of; NaN for what this benchmark cannot tell.

    Args:
        frame: `speed_lines`.
    """
    frame = frame.set_index("label")
    on_cpu = about["device"]["name"] == "cpu"
    values = dict.fromkeys(TARGETS, np.nan)
    if OURS not in frame.index or about["scaled_down"]:
        return values
    ours = frame.loc[OURS]
    if on_cpu:
        return values | ({"cpu": ours["total_quotient"]} if about["source"] == "standin" else {})
    chosen = ours["scoring_seconds"] + ours["selection_seconds"]
    return values | {
        "gpu": ours["total_quotient"],
        "scoring": chosen / ours["total_method"],
        "hooks": hook_share(frame),
        "memory": ours["extra_bytes"] / 2**20 if about["references"] == 1 else np.nan,
    }


def title(about: dict) -> str:
    """What was measured, and on what."""
    height, width = about["size"]
    size = "scaled-down " if about["scaled_down"] else ""
    weights = "random weights, " if about["weights"].startswith("random") else ""
    how = f", blocks compiled by {about['compiled']}" if about["compiled"] else ""
    how += ", every last block trimmed" if about["trim_last"] else ""
    how += f", kept tokens in multiples of {about['round_to']}" if about["round_to"] > 1 else ""
    how += f", scored by {about['kernel']}" if about["kernel"] != "chunked" else ""
    return (
        f"Speed of {size}{about['model']} on {about['device']['name']}: {weights}{width} x {height}"
        f", {about['references']} reference(s), {about['steps']} steps, {about['dtype']}{how}"
    )


def _pairs(pairs: pd.Series) -> str:
    counts = " to ".join(map(str, dict.fromkeys([min(pairs), max(pairs)])))
    return f"Timed pairs of runs per line: {counts}; lines with fewer than {FEW} have no interval."


def notes(about: dict, frame: pd.DataFrame) -> list[str]:
    """Notes that explain the table; `frame`: `speed_lines`."""
    judged = (TARGETS[name].verdict(value) for name, value in targets(about, frame).items())
    lines = [
        f"Targets of {OURS}: {'; '.join(judged)}.",
        "Ratios are full over method, medians of interleaved pairs with a 95 % interval; end to "
        "end includes the VAE.",
        "Scoring, selection and gathering are shares of the method's end-to-end time. Extra MiB: "
        "the peak while the transformer runs, over that of the full run.",
    ]
    if frame["against_compiled"].isna().all():
        lines.append(
            "Against compiled full: not measured. `topi bench ... compile=true` with the same "
            "store measures it."
        )
    else:
        lines.append(
            "Against compiled full: end to end, against the median of the compiled full run of the "
            "same work, which another benchmark of the store may hold."
        )
    inside = frame[frame["uncompiled"] > 0]
    if len(inside):
        parts = (f"{line.label} {line.uncompiled:.1%}" for line in inside.itertuples())
        lines.append(
            "Blocks that a method observes, and a trimmed last block, run uncompiled. Their share: "
            f"{', '.join(parts)}."
        )
    lines += [f"{label} is left out: {why}" for label, why in about["refused"].items()]
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
        return Text(measured_text(line[name], low, high, line["pairs"], digits=3))

    shares = (line[f"{stage}_seconds"] / line["total_method"] for stage in STAGES)
    extra, compiled = line["extra_bytes"], line["against_compiled"]
    return (
        Text(line["label"]),
        Text(f"{line['ideal']:.3f}×"),
        ratio("total"),
        Text(f"{line['total_quotient']:.1%}"),
        ratio("transformer"),
        Text(f"{line['quotient']:.1%}"),
        Text("–" if np.isnan(compiled) else f"{compiled:.3f}×"),
        *(Text(_seconds(line[name])) for name in ("call_full", "call_anchor", "call_reduced")),
        *(Text(_share(share)) for share in shares),
        Text("–" if np.isnan(extra) else f"{extra / 2**20:.0f}"),
    )


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2%}"


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
