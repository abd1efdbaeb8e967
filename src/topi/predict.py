"""From a command line to a prediction: `topi predict`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any

import pandas as pd

from topi.config import ConfigError
from topi.evaluation.cost import layout_of
from topi.methods import METHODS
from topi.report.speed import speed_lines
from topi.results.bench import load_benches
from topi.results.gpus import gpu_named
from topi.speed import BenchConfig, own_keys, random_weights, variants_of
from topi.study import compose_study

if TYPE_CHECKING:
    from topi.evaluation.cost import CostModel

REFERENCES = range(1, 9)
SIZES = (512, 768, 1024, 1280, 1536)
"""Of the curves."""


@dataclass
class PredictConfig:
    """The keys of `topi predict` beside `model` and `store`.

    Args:
        keep: share of tokens to keep.
        refs: how many references.
        size: side of target and references in pixels.
        gpu: whose data sheet bounds the time.
        methods: of the registry; empty: all.
        steps: denoising steps, one in ten an anchor.
        n_text: text tokens.
        curve: also the cost over 1 to 8 references and over resolution.
    """

    keep: float = 0.5
    refs: int = 1
    size: int = 1024
    gpu: str = "h200"
    methods: list[str] = field(default_factory=list)
    steps: int = 10
    n_text: int = 512
    curve: bool = False


def read_predict(overrides: Sequence[str]) -> tuple[PredictConfig, list[str]]:
    """The keys of `topi predict`, and the overrides that are left for `conf/`.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    config, rest = own_keys(PredictConfig, overrides)
    if not 0 < config.keep <= 1:
        raise ConfigError(f"keep={config.keep} must be in (0, 1].")
    for name, least in (("refs", 1), ("size", 32), ("steps", 1), ("n_text", 1)):
        if getattr(config, name) < least:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least {least}.")
    gpu_named(config.gpu)
    return config, rest


def predict(overrides: Sequence[str]) -> "tuple[Prediction, PredictConfig]":
    """Predict full and every method, and what was measured of the same model.

    Raises:
        ToPiError: an unknown model, method or value.
    """
    settings, rest = read_predict(overrides)
    config = compose_study("predict", rest, ("model", "store"))
    model, methods = cost_model(config.model), {}
    bench = BenchConfig(methods=settings.methods, keep=[settings.keep])
    for variant in variants_of(bench, config, None, model.facts):
        if variant.method != "hooks":
            methods[variant.label] = variant.attach
    gpu = gpu_named(settings.gpu)

    def line(label: str, refs: int, size: int) -> dict[str, Any]:
        cost = model.predict(methods[label], layout_of(size, refs, settings.n_text), settings.steps)
        return {
            "label": label,
            "refs": refs,
            "size": size,
            "tflop_full": cost.flops.full / 1e12,
            "tflop": cost.flops.method / 1e12,
            "ideal": cost.flops.speedup,
            "gigabytes": cost.bytes_method / 1e9,
            "seconds": cost.seconds(gpu.flops, gpu.bandwidth),
            "memory_gib": cost.memory / 2**30,
            "fits": cost.memory < gpu.memory,
        }

    lines = [line(label, settings.refs, settings.size) for label in methods]
    curve = []
    if settings.curve:
        points = {(refs, settings.size) for refs in REFERENCES} | {
            (settings.refs, s) for s in SIZES
        }
        curve = [line(label, *point) for point in sorted(points) for label in methods]
    measured = compare_measured(config.store, gpu.flops)
    return (
        Prediction(config.model["name"], pd.DataFrame(lines), pd.DataFrame(curve), measured),
        settings,
    )


@dataclass(frozen=True)
class Prediction:
    """Lines of one size, lines over references and sizes (or none), and what was measured."""

    model: str
    lines: pd.DataFrame
    curve: pd.DataFrame
    measured: pd.DataFrame


def cost_model(model: Mapping[str, Any]) -> "CostModel":
    """The cost model of a configured model; published sizes need no weights."""
    from topi.evaluation.cost import CostModel
    from topi.models.editor import load_editor
    from topi.models.random import weightless

    if model["source"] in ("hub", "random"):
        scaled_down = model.get("options", {}).get("scaled_down", False)
        transformer = weightless(model["kind"], scaled_down)
        if model["representative_layers"]:
            layers = list(model["representative_layers"])
            transformer.register_to_config(representative_layers=layers)
    else:
        transformer = load_editor(model).transformer
    return CostModel(transformer)


def compare_measured(store: str, limit: float) -> pd.DataFrame:
    """Each line of each benchmark of a store: predicted FLOPs beside those of the real trace.

    `limit` is what the GPU can do, FLOP/s.
    Columns: `run, label, predicted, counted` (FLOPs of the method), `error` (relative), `ideal`,
    `measured` (speed-up of the transformer) and `utilisation` (the full run's share of the data
    sheet's FLOP/s; NaN on a CPU).
    """
    from topi.models import Layout

    lines = []
    for run in load_benches(store):
        about, frame = run.manifest, speed_lines(run).set_index("label")
        config = compose_study("predict", [f"model={about['model']}"], ("model",))
        if about["weights"].startswith("random"):
            config.model.update(random_weights(about["scaled_down"]))
        model = cost_model(config.model)
        keep = sorted({row["keep"] for row in run.rows if row["keep"] is not None})
        methods = sorted({row["method"] for row in run.rows} & {*METHODS} - {"full"})
        bench = BenchConfig(methods=methods, keep=keep, trim_last=about["trim_last"])
        known = {v.label: v.attach for v in variants_of(bench, config, None, model.facts)}
        for label in frame.index:
            if label not in known:
                continue
            row = next(row for row in run.rows if row["label"] == label)
            grids = row["layout"]["reference_grids"]
            layout = Layout(
                row["layout"]["n_text"],
                tuple(row["layout"]["target_grid"]),
                tuple(map(tuple, grids)),
            )
            cost = model.predict(known[label], layout, about["steps"])
            predicted = cost.flops.method * row["calls"] / about["steps"]
            seconds = frame.loc[label, "transformer_method"] * frame.loc[label, "transformer"]
            on_cpu = about["device"]["name"] == "cpu"
            lines.append(
                {
                    "run": run.key,
                    "label": label,
                    "predicted": predicted,
                    "counted": row["flops_method"],
                    "error": predicted / row["flops_method"] - 1,
                    "ideal": frame.loc[label, "ideal"],
                    "measured": frame.loc[label, "transformer"],
                    "utilisation": nan if on_cpu else row["flops_full"] / seconds / limit,
                }
            )
    return pd.DataFrame(lines)
