"""The sweeps of the paper: each has the cells that its artefact shows, and no others."""

import hashlib
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from small_cells import config_for

from hydra_plugins.topi_sweeper import points
from topi.bench.config.compose import composed
from topi.bench.config.schema import ConfigError, read_config
from topi.bench.editors.standin import weights_file
from topi.bench.report.paper.artefacts import (
    CURVES,
    FIG5,
    FIG10,
    FIG11,
    OURS,
    SHEETS,
    TEACACHE,
    all_labels,
)
from topi.bench.report.paper.build import NEEDS
from topi.bench.report.paper.entries import identity
from topi.bench.report.paper.ours import EQUAL_COUNT
from topi.bench.report.paper.several_references import METHODS as COMPARED
from topi.bench.report.pareto import family
from topi.bench.results import Store
from topi.bench.results.probe_run import load_probes
from topi.bench.runs.assemble import build_method, check
from topi.bench.runs.compute import run
from topi.bench.runs.identify import label_of
from topi.methods import CACHES, METHODS

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {"table1": 30, "table2": 7, "table3": 3, "table4": 2, "table5": 9, "table7": 1}
COUNTS |= {"fig5": 3, "fig6": 3, "fig7": 1, "fig9": 1, "fig10": 7, "fig11": 2}
"""Cells per model, counted by hand."""
LABELS = {sheet.name: sheet.labels for sheet in SHEETS}
LABELS["table1"] = LABELS["table1"] + [label for curve in CURVES.values() for label in curve]
LABELS |= {"table7": [OURS], "fig5": FIG5.values(), "fig6": TEACACHE.values(), "fig7": [OURS]}
LABELS |= {"fig9": [OURS], "fig10": FIG10.values(), "fig11": FIG11.values()}


def sweep(experiment, size, *arguments):
    found = composed([f"experiment={experiment}", f"size={size}"], hydra=True).hydra.sweeper
    return points(found.params, found.grids, arguments)


@cache
def label(point):
    config = read_config(composed([*point, "size=smoke"]))
    check(config)
    return label_of(config, build_method(config))


def labels(experiment):
    model = "tiny_qwen_plus" if experiment == "fig9" else "tiny_flux"
    return [label(tuple(point)) for point in sweep(experiment, "smoke", f"model={model}")]


@pytest.mark.parametrize("experiment", COUNTS)
def test_an_experiment_has_the_cells_of_its_artefact(experiment):
    found = labels(experiment)
    assert len(found) == len(set(found)) == COUNTS[experiment]
    assert set(map(identity, found)) == set(map(identity, LABELS[experiment]))


def test_shared_cells_are_one():
    every = {identity(name) for experiment in COUNTS for name in labels(experiment)}
    assert len(every) == 46
    assert every == set(map(identity, all_labels()))


@pytest.mark.parametrize(
    ("size", "models"),
    [
        ("smoke", ("tiny_flux", "tiny_qwen", "tiny_qwen_plus")),
        ("small", ("kontext_standin", "qwen_standin", "qwen_plus_standin")),
        ("paper", ("flux_kontext", "qwen_image_edit", "qwen_image_edit_plus")),
    ],
)
def test_a_size_names_the_models(size, models):
    swept = [override for point in sweep("table1", size) for override in point]
    counts = Counter(override for override in swept if override.startswith("model="))
    assert counts == {f"model={model}": 30 for model in models[:2]}
    (point,) = sweep("fig9", size)
    assert f"model={models[2]}" in point


def test_all_points_of_a_model_are_in_a_row():
    models = [
        next(o for o in point if o.startswith("model=")) for point in sweep("table1", "small")
    ]
    assert models == sorted(models)


def test_the_command_line_has_the_last_word():
    swept = sweep("table2", "small", "ratio=0.3", "model=tiny_flux", "layers.seed=7")
    assert len(swept) == 3
    assert all("ratio=0.3" in point and "ratio=0.5" not in point for point in swept)


def test_points_of_several_grids_are_their_union():
    grids = {"a": {"x": "1,2"}, "b": {"x": "2", "y": "0"}, "c": {"x": "1"}, "off": None}
    assert points({"z": 5}, grids) == [
        ["z=5", "x=1"],
        ["z=5", "x=2"],
        ["z=5", "x=2", "y=0"],
    ]
    assert points({"x": "1,2"}, None, ["y=3"]) == [["x=1", "y=3"], ["x=2", "y=3"]]


def test_sizes():
    small, paper = (composed(["experiment=fig7", f"size={size}"]) for size in ("small", "paper"))
    assert (small.data.name, small.data.count, small.model.name) == (
        "mini_edit",
        24,
        "kontext_standin",
    )
    assert (paper.model.steps, paper.model.height, paper.model.width) == (40, 1024, 1024)
    assert paper.data.name == "anyedit"
    with pytest.raises(ConfigError, match=r"data\.path"):
        check(read_config(paper))
    assert composed(["experiment=fig7"]).data.count == 24


def test_the_bench_has_every_method_and_every_cache():
    """A method that is missing here needs a grid in conf/experiment/pareto.yaml."""
    swept = [dict(o.split("=", 1) for o in each) for each in sweep("pareto", "smoke")]
    assert {point["method"] for point in swept} == set(METHODS)
    assert {point.get("cache", "none") for point in swept} - {"none"} == set(CACHES)
    points_of = {e: set(map(frozenset, sweep(e, "smoke"))) for e in ("table1", "pareto")}
    assert points_of["table1"] < points_of["pareto"]  # cells are shared
    assert len(points_of["pareto"]) == len(swept)


SINGLE = ("ref_kv_causal", "random_redrawn", "random_fixed", "topi_kv_live")
"""Grids of one point: what has no knob, and other ways at one setting."""


@pytest.mark.parametrize("size", ["smoke", "small", "paper"])
def test_the_cells_of_the_bench_are_counted(size):
    text = (ROOT / "experiments" / "pareto" / "README.md").read_text()
    (written,) = re.findall(rf"\| `{size}` \| .*? \| (\d+) \|", text)
    assert int(written) == len(sweep("pareto", size)) <= 2 * 110


def test_every_grid_of_the_bench_is_a_curve_of_methods_that_can_be_built():
    grids = composed(["experiment=pareto", "size=smoke"], hydra=True).hydra.sweeper.grids
    for name, grid in grids.items():
        swept = points({"model": "tiny_flux"}, {name: grid})
        assert name in SINGLE or len(swept) >= 2
        # a knob's values do not matter, but not every method goes with every cache
        of_a_kind = {tuple(o for o in p if o.startswith(("method=", "cache="))): p for p in swept}
        for point in of_a_kind.values():
            assert label(tuple(point)).split()[0] in METHODS


def test_searched_schedules_have_a_value_per_step():
    found = composed(["experiment=pareto_searched"], hydra=True)
    swept = points(found.hydra.sweeper.params, found.hydra.sweeper.grids)
    for point in swept:
        config = read_config(composed(["experiment=pareto_searched", *point]))
        assert config.model["name"] == "kontext_standin"
        method = build_method(config)
        assert len(method.ratio) == len(method.depths) == config.model["steps"]
        assert family(label_of(config, method)) == "dato, searched"
    assert len(swept) == 4


def test_choices_are_compared_with_as_many_tokens():
    swept = sweep("equal_count", "smoke", "model=tiny_flux")
    found = [label(tuple(point)) for point in swept]
    assert len(found) == len(set(found)) == 7
    assert set(map(identity, found)) == set(map(identity, NEEDS[EQUAL_COUNT]))
    assert len(sweep("equal_count", "small")) == 14


def test_references_are_counted_up_for_every_method():
    swept = sweep("references", "smoke")
    found = {
        (label(tuple(o for o in point if o != counted)), counted)
        for point in swept
        for counted in point
        if counted.startswith("data.references=")
    }
    assert {identity(name) for name, _ in found} == set(map(identity, COMPARED.values()))
    assert {o for _, o in found} == {f"data.references={n}" for n in (1, 2, 4)}
    assert len(found) == len(swept) == 3 * len(COMPARED)
    assert {o for point in swept for o in point if o.startswith("model=")} == {
        "model=tiny_qwen_plus"
    }
    assert sweep("references", "smoke", "data=mini_edit_plus", "data.references=2,4")


@pytest.mark.parametrize("model", ["tiny_qwen_plus", "tiny_flux2"])
def test_a_model_of_several_references_runs_with_more_than_it_needs(model, tmp_path):
    for number in (1, 3):
        more = (f"model={model}", "method=random", "data.count=1", f"data.references={number}")
        run(config_for(tmp_path, *more))
    one, three = sorted(Store(tmp_path).find_cells(), key=lambda cell: cell.rows[0]["n_reference"])
    assert 3 * one.rows[0]["n_reference"] == three.rows[0]["n_reference"]
    assert one.key != three.key and one.settings != three.settings
    assert one.rows[0]["sample"] == three.rows[0]["sample"]  # by which numbers pair
    assert three.manifest["config"]["data"]["references"] == 3


def test_a_second_reference_that_no_edit_needs():
    found = set()
    for point in sweep("irrelevant", "small"):
        config = read_config(composed(["experiment=irrelevant", *point]))
        found.add((config.model["name"], label_of(config, build_method(config))))
        assert config.data.references == 2
    methods = ("topi ratio=0.5", "topi_cover ratio=0.5", "random")
    models = ("kontext_standin", "qwen_plus_standin")
    assert found == {(model, method) for model in models for method in methods}


def test_a_design_question_has_a_cell_per_answer():
    found = labels("selection")
    assert len(found) == len(set(found)) == 33
    for option in ("damping", "radius", "redraw", "live", "extrapolate", "drift", "coarse"):
        assert any(f"{option}=" in label for label in found)
    for option in ("per_layer=True", "front_layers=2", "score=influence", "selection=top"):
        assert any(option in label for label in found)
    small = composed(["experiment=selection"])
    assert (small.data.split, small.data.count) == ("calibration", 16)


def test_one_script_runs_every_experiment_of_the_stand_ins():
    script = (ROOT / "experiments/reproduce.sh").read_text()
    names = {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")} - {"demo", "smoke"}
    assert {name for name in names if not re.search(rf"\b{name}\b", script)} == set()


def test_committed_results_are_of_the_shipped_weights():
    """Whoever ships new weights measures them: `experiments/reproduce.sh`."""
    store = Store(ROOT / "experiments/results")
    cells = {(cell.model, cell.manifest["weights"]) for cell in store.load_cells()}
    cells |= {(p.manifest["model"], p.manifest["weights"]) for p in load_probes(store.root)}
    several = {"qwen_plus_standin": "qwen_standin"}
    for model, weights in cells:
        file = weights_file(several.get(model, model))
        assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(weights), model
    assert {model for model, _ in cells} == {"kontext_standin", "qwen_standin", *several}
