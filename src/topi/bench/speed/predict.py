"""`topi predict`: the settings, the prediction and its comparison with measurements."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from math import nan
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import pandas as pd

from topi.bench.config.compose import compose_study
from topi.bench.report.tables.speed_table import speed_lines
from topi.bench.results import Cell, Store
from topi.bench.results.bench_run import BenchRun, load_benches
from topi.bench.speed.benchmark import (
    BenchConfig,
    check_least,
    check_shares,
    own_keys,
    random_weights,
    variants_of,
)
from topi.bench.speed.gpus import Gpu, gpu_named
from topi.errors import ToPiError
from topi.methods import METHODS, make_method
from topi.models import Layout

if TYPE_CHECKING:
    from topi.bench.editors.editor import Editor
    from topi.bench.speed.cost import Cost, CostModel
    from topi.bench.speed.lines import Attach

REFERENCES = range(1, 9)
SIZES = (512, 768, 1024, 1280, 1536)
"""Of the curves."""
TEXT = 512
"""Text tokens of a published model; see `text_tokens` for the others."""
ON_GPU = ("seconds_predicted", "seconds", "memory_predicted", "memory", "utilisation")
"""Columns that need a GPU."""


@dataclass
class PredictConfig:
    """The keys of `topi predict` beside `model` and `store`.

    Args:
        keep: share of tokens to keep.
        refs: how many references.
        size: side of target and references in pixels; None: the model's.
        gpu: whose data sheet bounds the time.
        methods: of the registry; empty: all.
        steps: denoising steps, one in ten an anchor.
        n_text: text tokens; None: the model's, 512 as published.
        trim_last: every method's last block computes target rows only.
        curve: also the cost over 1 to 8 references and over resolution.
    """

    keep: float = 0.5
    refs: int = 1
    size: int | None = None
    gpu: str = "h200"
    methods: list[str] = field(default_factory=list)
    steps: int = 10
    n_text: int | None = None
    trim_last: bool = False
    curve: bool = False


def read_predict(overrides: Sequence[str]) -> tuple[PredictConfig, list[str]]:
    """The keys of `topi predict`, and the other overrides, which are for `conf/`.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    config, rest = own_keys(PredictConfig, overrides)
    check_shares([config.keep])
    check_least(config, {"refs": 1, "size": 32, "steps": 1, "n_text": 1})
    gpu_named(config.gpu)
    return config, rest


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of a model and of each method.

    Args:
        lines: one per method, at one size; `why` says why one cannot be predicted.
        curve: the same over references and sizes, or empty.
        store, gpu: the measurements to compare with, and the data sheet.
    """

    model: str
    lines: pd.DataFrame
    curve: pd.DataFrame
    store: str
    gpu: Gpu

    @cached_property
    def measured(self) -> pd.DataFrame:
        """Measurements of this model in the store beside predictions: `compare_measured`."""
        return compare_measured(self.store, self.gpu, self.model)


def predict(
    overrides: Sequence[str], report: Callable[[Mapping[str, Any]], None] = lambda line: None
) -> tuple[Prediction, PredictConfig]:
    """Predict full and every method.

    Args:
        overrides: of `PredictConfig`, and `model=...`, `store=...`.
        report: gets each line as soon as it is known.

    Raises:
        ToPiError: an unknown model, method or value.
    """
    settings, rest = read_predict(overrides)
    config = compose_study("predict", rest, ("model", "store"))
    settings.size = settings.size or config.model["width"]
    settings.n_text = settings.n_text or text_tokens(config.model)
    model, editor = cost_model(config.model)
    asked = BenchConfig(
        methods=settings.methods, keep=[settings.keep], trim_last=settings.trim_last
    )
    methods = {
        variant.label: variant.attach
        for variant in variants_of(asked, config, editor, model.facts)
        if variant.method != "hooks"
    }
    gpu = gpu_named(settings.gpu)

    def line(label: str, refs: int, size: int) -> dict[str, Any]:
        about = {"label": label, "refs": refs, "size": size}
        layout = model.layout(size, refs, settings.n_text)
        try:
            about |= cost_fields(model.predict(methods[label], layout, settings.steps), gpu)
        except ToPiError as error:
            about |= {"why": str(error)}
        report(about)
        return about

    lines = [line(label, settings.refs, settings.size) for label in methods]
    curve = []
    if settings.curve:
        points = {(refs, settings.size) for refs in REFERENCES} | {
            (settings.refs, s) for s in SIZES
        }
        curve = [line(label, *point) for point in sorted(points) for label in methods]
        curve = [point for point in curve if point["why"] is None]
    frames = (pd.DataFrame(lines), pd.DataFrame(curve))
    return Prediction(config.model["name"], *frames, config.store, gpu), settings


def cost_fields(cost: "Cost", gpu: Gpu) -> dict[str, Any]:
    """A prediction as columns."""
    return {
        "tflop_full": cost.flops.full / 1e12,
        "tflop": cost.flops.method / 1e12,
        "ideal": cost.flops.speedup,
        "gigabytes": cost.bytes_method / 1e9,
        "seconds": cost.seconds(gpu.flops, gpu.bandwidth),
        "memory_gib": cost.memory_method / 2**30,
        "extra_gib": (cost.memory_method - cost.memory_full) / 2**30,
        "fits": cost.memory_method < gpu.memory,
        "why": None,
    }


def cost_model(model: Mapping[str, Any]) -> "tuple[CostModel, Editor | None]":
    """The cost model of a configured model, and its editor. Published sizes need no weights.

    The cost models of the latest two models are kept with all that they have counted.
    """
    return _cost_model(json.dumps(model, sort_keys=True))


@lru_cache(maxsize=2)
def _cost_model(text: str) -> "tuple[CostModel, Editor | None]":
    from topi.bench.editors.editor import load_editor
    from topi.bench.editors.random import weightless
    from topi.bench.speed.cost import CostModel

    model = json.loads(text)
    if model["source"] not in ("hub", "random"):
        editor = load_editor(model)
        return CostModel(editor.transformer, 2 * editor.pipe.vae_scale_factor), editor
    scaled_down = model.get("options", {}).get("scaled_down", False)
    transformer = weightless(model["kind"], scaled_down)
    if model["representative_layers"]:
        layers = list(model["representative_layers"])
        transformer.register_to_config(representative_layers=layers)
    return CostModel(transformer), None


def text_tokens(model: Mapping[str, Any]) -> int:
    """The number of text tokens of a model; of a published one, the largest."""
    from topi.bench.editors.text import TEXT_TOKENS

    return {"standin": TEXT_TOKENS, "tiny": 12}.get(model["source"], TEXT)


def compare_measured(store: str, gpu: Gpu, name: str) -> pd.DataFrame:
    """Each line of each benchmark of a store, and each timed cell of a model, beside predictions.

    Columns: `run`, `label`; `error`, the relative error of the method's predicted FLOPs against the
    real trace (of cells: of the ideal speed-up); `predicted`, the ideal speed-up; `measured`, the
    speed-up of the transformer (of cells: end to end); `seconds_predicted` on the `gpu` and
    `seconds` of the method's transformer; `memory_predicted`, `memory` in bytes; `utilisation`, the
    full run's share of the GPU's FLOP/s. NaN where nothing is known, as seconds and bytes on a CPU.
    `why` says why a line cannot be checked.

    Args:
        name: of the model whose cells count.
    """
    lines = [line for run in load_benches(store) for line in check_bench(run, gpu)]
    return pd.DataFrame([*lines, *check_cells(store, name)])


def check_bench(run: BenchRun, gpu: Gpu) -> Iterator[dict[str, Any]]:
    """The lines of a benchmark, see `compare_measured`."""
    about, frame = run.manifest, speed_lines(run).set_index("label")
    config = compose_study("predict", [f"model={about['model']}"], ("model",))
    if about["source"] == "random":
        config.model.update(random_weights(about["scaled_down"]))
    model, editor = cost_model(config.model)
    again = BenchConfig(
        methods=sorted({row["method"] for row in run.rows} & {*METHODS} - {"full"}) or ["full"],
        keep=sorted({row["keep"] for row in run.rows if row["keep"] is not None}),
        trim_last=about["trim_last"],
        compile=bool(about["compiled"]),
        round_to=about["round_to"],
    )
    known = {v.label: v.attach for v in variants_of(again, config, editor, model.facts)}
    for label in frame.index:
        line, row = frame.loc[label], next(row for row in run.rows if row["label"] == label)
        try:
            if label not in known:
                raise ToPiError("this version has no such line.")
            cost = model.predict(known[label], layout_in(row), about["steps"])
        except ToPiError as error:
            yield {"run": run.key, "label": label, "why": str(error)}
            continue
        branches = row["calls"] / cost.calls  # of classifier-free guidance
        checked = {
            "run": run.key,
            "label": label,
            "error": branches * cost.flops.method / row["flops_method"] - 1,
            "predicted": cost.flops.speedup,
            "measured": line["transformer"],
            "why": None,
        }
        if about["device"]["name"] != "cpu":
            full = line["transformer_method"] * line["transformer"]
            checked |= {
                "seconds_predicted": branches * cost.seconds(gpu.flops, gpu.bandwidth),
                "seconds": line["transformer_method"],
                "memory_predicted": cost.memory_method + (branches - 1) * cost.store,
                "memory": row["peak_bytes_transformer_method"],
                "utilisation": row["flops_full"] / full / gpu.flops,
            }
        yield dict.fromkeys(ON_GPU, nan) | checked


def layout_in(row: Mapping[str, Any]) -> Layout:
    """The layout of a measured row."""
    layout = row["layout"]
    grids = tuple(map(tuple, layout["reference_grids"]))
    return Layout(layout["n_text"], tuple(layout["target_grid"]), grids)


def check_cells(store: str, name: str) -> Iterator[dict[str, Any]]:
    """The timed cells of a model, see `compare_measured`."""
    for cell in Store(store).load_cells():
        if cell.model != name or not (pairs := cell.latency):
            continue
        about = {"run": cell.key, "label": cell.labels[0]}
        try:
            model = cell.manifest["config"]["model"]
            costs, _ = cost_model(model)
            layout = layout_of_cell(cell, costs.token, text_tokens(model))
            cost = costs.predict(method_of_cell(cell), layout, cell.manifest["steps"])
        except ToPiError as error:
            yield about | {"why": str(error)}
            continue
        except KeyError as error:
            yield about | {"why": f"its manifest or its rows do not have {error}."}
            continue
        counted = fmean(row["flop_speedup"] for row in cell.rows)
        ratios = [pair["seconds_full"] / pair["seconds_method"] for pair in pairs]
        checked = {
            "error": cost.flops.speedup / counted - 1,
            "predicted": cost.flops.speedup,
            "measured": median(ratios),
            "why": None,
        }
        yield about | dict.fromkeys(ON_GPU, nan) | checked


def layout_of_cell(cell: Cell, token: int, n_text: int) -> Layout:
    """The layout of a cell's samples; a token has `token` pixels a side.

    Raises:
        ToPiError: they are of several sizes.
    """
    model, references = cell.manifest["full"]["model"], {row["n_reference"] for row in cell.rows}
    target = (model["height"] // token, model["width"] // token)
    count, rest = divmod(max(references), target[0] * target[1])
    if len(references) > 1 or rest:
        raise ToPiError("its pictures are of several sizes.")
    return Layout(n_text, target, (target,) * count)


def method_of_cell(cell: Cell) -> "Attach":
    """The method of a cell. One that keeps a share of the score gets the keep ratio that it had.

    Raises:
        ToPiError: its work depends on the picture, or this version has no such method.
    """
    if cell.manifest["config"]["cache"]["name"] != "none":
        raise ToPiError("what a cache skips depends on the picture.")
    name, params = cell.manifest["method"], dict(cell.manifest["params"])
    kept = [row["pruned_keep_ratio"] for row in cell.rows]
    if params.get("tau") is not None and None not in kept:
        params |= {"tau": None, "ratio": fmean(kept)}
    fixed = METHODS[name].variants[name] if name in METHODS else {}
    method = make_method(name, **{k: v for k, v in params.items() if k not in fixed})
    return partial(method, trim_last=cell.manifest.get("trim_last", False))
