"""`topi predict`: what it foresees, what it cannot, and how near it comes to what is measured."""

from dataclasses import fields, replace
from functools import partial

import pandas as pd
import pytest
from small_cells import config_for

from topi.bench.cli import main as cli
from topi.bench.editors.random import weightless
from topi.bench.report.tables.cost_table import check_table, cost_table
from topi.bench.report.tables.text_table import to_markdown
from topi.bench.results.bench_run import bench_run, load_benches
from topi.bench.runs import compute
from topi.bench.speed.cost import CostModel, shown
from topi.bench.speed.gpus import GPUS
from topi.bench.speed.predict import compare_measured, cost_model, predict, read_predict
from topi.errors import ToPiError
from topi.methods import METHODS, make_method
from topi.models.tiny import tiny_flux, tiny_qwen

pytestmark = pytest.mark.slow

H200 = GPUS["h200"]
BY_PICTURE = {"regione"}


@pytest.fixture(scope="module")
def kontext():
    return CostModel(weightless("kontext"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A benchmark of every method, on as many tokens as the thin copy has."""
    store = tmp_path_factory.mktemp("every")
    settings = ["model=flux_kontext", "weights=random", "size=256", "steps=3", "keep=[0.2]"]
    assert cli.main(["bench", *settings, "repeats=1", "warmup=0", f"store={store}"]) == 0
    (run,) = load_benches(store)
    return run


def test_the_command_of_the_readme(tmp_path):
    """Every method of the registry at the published size; nothing has weights."""
    asked = ["model=flux_kontext", "keep=0.5", "gpu=h200", f"store={tmp_path}"]
    found, settings = predict(asked)
    assert (settings.size, settings.n_text) == (1024, 512)
    lines = found.lines.set_index("label")
    assert {label.split()[0] for label in lines.index[1:]} == {*METHODS} - {"full"}
    assert lines["why"].isna().all()
    assert lines.loc["topi keep=0.5", "ideal"] == pytest.approx(1.278, abs=5e-4)
    assert lines.loc["fewer_steps keep=0.5", "ideal"] == 2
    assert lines.loc["ref_kv", "ideal"] == pytest.approx(1.735, abs=5e-4)
    assert 1.4 < lines.loc["downscaled_ref keep=0.5", "ideal"] < 1.45
    text = to_markdown(cost_table(found.model, found.lines, H200.title))
    assert "1024 x 1024, 1 reference(s), on H200 SXM" in text
    assert "not predictable" not in text and "The full run has 1654.58 TFLOP" in text


def test_qwen_at_the_published_size(tmp_path):
    found, _ = predict(["model=qwen_image_edit", "methods=[topi]", f"store={tmp_path}"])
    topi = found.lines.set_index("label").loc["topi keep=0.5"]
    assert topi["ideal"] == pytest.approx(1.282, abs=5e-4)


def test_predictions_are_what_was_counted(run):
    """From a thin copy: every line's FLOPs are those of the real trace."""
    found = compare_measured(run.path.parents[1], H200, "none").set_index("label")
    assert list(found.index) == run.manifest["lines"]
    assert found["why"].isna().all()
    exact = [label for label in found.index if label.split()[0] not in BY_PICTURE]
    assert (found.loc[exact, "error"] == 0).all(), found["error"]
    assert found["utilisation"].isna().all() and found["memory"].isna().all()  # of a GPU
    text = to_markdown(check_table(found.reset_index()))
    assert "is not checked" not in text


@pytest.mark.parametrize("build", [tiny_flux, tiny_qwen])
def test_blocks_that_compute_nothing_leave_the_same_trace(build, monkeypatch):
    """For every method that fits: the blocks of the thin copy, run in full, are the reference."""
    model, ran = CostModel(build()[0].transformer), []
    layout = model.layout(256, 2, 12)

    def whole(layer, forward):
        return lambda **kwargs: ran.append(layer) or forward(**kwargs)

    for name in METHODS:
        known = {f.name for f in fields(METHODS[name])} - METHODS[name].variants[name].keys()
        wanted = {"front_layers": 1, "first_anchor": 0, "update_every": 3, "ratio": 0.4}
        wanted["layers"] = (1, 2)
        method = make_method(name, **{k: v for k, v in wanted.items() if k in known})
        traces = []
        for blocks in (shown, whole):
            monkeypatch.setattr("topi.bench.speed.cost.shown", blocks)
            traces.append(model.trace(partial(method, trim_last=True), layout, 5))
            assert bool(ran) == (blocks is whole)
        assert traces[0] == traces[1], name
        ran.clear()


def test_what_was_measured_on_a_gpu_is_checked_too(run, tmp_path):
    copy = bench_run(tmp_path, "on-gpu")
    copy.start({**run.manifest, "device": {"name": "NVIDIA H200"}, "round_to": 64})
    for row in run.rows:
        copy.add(row | {"peak_bytes_transformer_method": 3 * 2**30})
    copy.add(row | {"label": "of tomorrow", "method": "tomorrow"})
    copy.write_manifest(copy.manifest | {"lines": [*copy.manifest["lines"], "of tomorrow"]})
    found = compare_measured(tmp_path, H200, "none").set_index("label")
    assert found.loc["of tomorrow", "why"] == "this version has no such line."
    topi = found.loc["topi keep=0.2"]
    assert topi["error"] > 0  # 64 of 256 tokens instead of 51
    assert topi["memory"] == 3 * 2**30 > topi["memory_predicted"] > 0
    assert topi["seconds"] > topi["seconds_predicted"] > 0 and topi["utilisation"] > 0
    text = to_markdown(check_table(found.reset_index()))
    assert "of tomorrow of on-gpu is not checked: this version has no such line." in text
    assert f"{topi['memory_predicted'] / 2**30:.1f} / 3.0" in text


def test_timed_cells_are_checked(tmp_path):
    timed = ["data.count=1", "latency.samples=1", "latency.repeats=1"]
    compute.run(config_for(tmp_path, *timed, "tau=0.6"))
    compute.run(config_for(tmp_path, *timed, "tau=0.6", "cache=teacache"))
    found = compare_measured(tmp_path, H200, "tiny_flux")
    plain, cached = (found[found["label"].str.contains("cache") == c].iloc[0] for c in (0, 1))
    assert "tau=0.6" in plain["label"] and pd.isna(plain["why"])
    assert plain["error"] == pytest.approx(0, abs=0.03) and plain["measured"] > 0
    assert cached["why"] == "what a cache skips depends on the picture."
    assert compare_measured(tmp_path, H200, "another").empty


def test_what_cannot_be_predicted_says_why(tmp_path, capsys):
    """SDTM's share falls from ratio + 0.2 to ratio - 0.2, so it cannot merge a tenth."""
    asked = ["model=tiny_flux", "methods=[sdtm,random]", "keep=0.9", "steps=2"]
    assert cli.main(["predict", *asked, f"store={tmp_path}", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "- sdtm keep=0.9: not predictable: deviation=0.2 must be at most ratio=0.1," in text
    assert "| random keep=0.9 |" in text and "| sdtm" not in text


def test_a_size_that_is_not_known_here(capsys, tmp_path):
    assert cli.main(["predict", "model=flux2_klein", f"store={tmp_path}"]) == 1
    assert "not of flux2 yet" in capsys.readouterr().err


def test_predict(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("topi.bench.speed.predict.REFERENCES", (1, 2))
    monkeypatch.setattr("topi.bench.speed.predict.SIZES", (64, 128))
    asked = ["model=tiny_flux", "methods=[topi]", "steps=3", "curve=true", "gpu=a100"]
    assert cli.main(["predict", *asked, f"store={tmp_path}", "--out", str(tmp_path)]) == 0
    text, told = capsys.readouterr()
    assert "topi keep=0.5, 2 reference(s), 128 pixels: ideal 1." in told
    assert "Predicted cost of tiny_flux: 128 x 128, 1 reference(s), on A100 40GB SXM" in text
    assert (tmp_path / "cost_tiny_flux.png").is_file()
    assert "checked against" not in text  # nothing was measured


def test_cost_grows_with_references_and_size():
    fields = dict(kind="kontext", source="random", representative_layers=(1, 2, 3))
    model, _ = cost_model(fields | {"options": {"scaled_down": True}})
    topi = make_method("topi", ratio=0.5, front_layers=1, first_anchor=0)
    costs = [model.predict(topi, model.layout(1024, refs, 512), 10) for refs in (1, 2, 4)]
    gains = [cost.flops.speedup for cost in costs]
    assert gains == sorted(gains) and gains[0] > 1.3  # the more references, the more to drop
    assert [cost.calls for cost in costs] == [10] * 3
    for cost in costs:
        assert cost.bytes_method < cost.bytes_full and cost.memory_method == cost.memory_full
    gpu = GPUS["h20"]
    assert costs[0].seconds(gpu.flops, gpu.bandwidth) == max(
        costs[0].flops.method / 148e12, costs[0].bytes_method / 4.0e12
    )
    small = model.predict(topi, model.layout(512, 1, 512), 10)
    assert small.flops.full < costs[0].flops.full / 3
    assert small.memory_full < costs[0].memory_full


class TestStores:
    """What methods keep for later steps, at the published size."""

    PAIRS = 2 * 4096 * 3072 * 2  # bytes of the keys and values of a reference, a layer

    def cost(self, kontext, name, **params):
        method = make_method(name, update_every=10, first_anchor=0, **params)
        return kontext.predict(method, kontext.layout(1024, 1, 512), 3)

    def test_all_references_in_all_layers(self, kontext):
        cost = self.cost(kontext, "ref_kv")
        assert cost.store == 57 * self.PAIRS == pytest.approx(2.87e9, rel=1e-3)
        assert cost.memory_method == cost.memory_full + cost.store

    def test_layers_in_front_store_nothing(self, kontext):
        assert self.cost(kontext, "ref_kv", front_layers=10).store == 47 * self.PAIRS

    def test_two_anchors_to_extrapolate_from_are_two_stores(self, kontext):
        one = self.cost(kontext, "topi_kv", ratio=0.5)
        two = kontext.predict(
            make_method("topi_kv", ratio=0.5, extrapolate=True, update_every=1, first_anchor=0),
            kontext.layout(1024, 1, 512),
            3,
        )
        assert one.store == 57 * self.PAIRS and two.store == 2 * 57 * self.PAIRS

    def test_what_is_stored_is_not_computed_but_read(self, kontext):
        full, cached = (self.cost(kontext, name) for name in ("random", "ref_kv"))
        weights = kontext._weights
        moved = (cached.bytes_method - cached.bytes_full) / 2  # by a cached step
        rows = 57 * 4096 * 3072 * 2
        assert moved == pytest.approx(-20 * rows + 2 * rows)
        assert cached.bytes_method < full.bytes_method and weights > 23e9


def test_smaller_references_hold_less(kontext):
    layout = kontext.layout(1024, 1, 512)
    cost = kontext.predict(make_method("downscaled_ref", scale=0.5), layout, 2)
    assert cost.memory_method < cost.memory_full and cost.flops.speedup > 1.5
    (record, _) = kontext.trace(make_method("downscaled_ref", scale=0.5), layout, 2)
    assert record.layout == replace(layout, reference_grids=((32, 32),))
    assert record.full_layout == layout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gpu=b100", "gpu=b100 is unknown; choose one of: a100"),
        ("keep=0", r"keep=0.0 must be in \(0, 1\]"),
        ("refs=0", "refs=0 must be at least 1"),
    ],
)
def test_bad_predictions_are_refused(given, message):
    with pytest.raises(ToPiError, match=message):
        read_predict([given])
