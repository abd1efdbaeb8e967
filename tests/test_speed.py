"""`topi bench` and `topi predict`: what they measure, foresee and leave; and without a GPU."""

import json

import pytest
import torch

from topi import cli
from topi.engine import compiling
from topi.errors import ToPiError
from topi.evaluation import bench as measuring
from topi.methods import METHODS
from topi.report.paper import build_paper
from topi.report.speed import breakdown_table, build_speed, speed_lines, speed_table
from topi.report.text_table import to_markdown
from topi.results.bench import load_benches
from topi.speed import bench, read_bench, share_of

TINY = ["model=flux_kontext", "weights=random", "size=64", "steps=3", "repeats=2", "warmup=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = tmp_path_factory.mktemp("bench")
    keep = ["keep=[0.5]", "methods=[topi,tomesd,checker]"]
    assert cli.main(["bench", *TINY, *keep, f"store={store}"]) == 0
    (run,) = load_benches(store)
    return run


def test_every_line_is_measured_in_pairs_beside_its_flops(run):
    lines = [
        "hooks only",
        "full, last block trimmed",
        "topi keep=0.5",
        "tomesd keep=0.5",
        "checker",
    ]
    assert run.manifest["lines"] == lines
    assert [row["label"] for row in run.rows] == lines * 2  # in turns
    frame = speed_lines(run).set_index("label")
    assert list(frame["pairs"]) == [2] * 5
    assert frame.loc["hooks only", "ideal"] == 1
    assert 1 < frame.loc["full, last block trimmed", "ideal"] < frame.loc["topi keep=0.5", "ideal"]
    for row in run.rows:
        assert 0 < row["transformer_method"] < row["total_method"]
        assert row["peak_bytes_full"] is None
    scoring = frame["scoring_seconds"] > 0
    assert list(scoring.index[scoring]) == ["topi keep=0.5"]
    anchors = frame["call_anchor"].notna()
    assert not anchors.any()  # the only one is the first call, which is left out
    assert frame.loc["topi keep=0.5", "call_reduced"] > 0
    topi = frame.loc["topi keep=0.5"]
    assert topi["quotient"] == pytest.approx(topi["transformer"] / topi["ideal"])


def test_without_a_gpu_it_says_that_it_is_scaled_down(run):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, so the published size is run")
    assert run.manifest["scaled_down"] and run.manifest["weights"] == "random-kontext"
    text = to_markdown(speed_table(run))
    assert "scaled-down flux_kontext on cpu: random weights" in text
    assert "SCALED DOWN for lack of a GPU" in text
    assert json.loads((run.path / "manifest.json").read_text())["device"]["name"] == "cpu"


def test_the_report_of_its_store_shows_it_beside_the_paper(run, tmp_path):
    paper = build_paper(run.path.parents[1], tmp_path)
    table, speed = (t for t in paper.tables if t.name == "table7_devices" or "speed" in t.name)
    assert speed.name == f"speed_{run.key}"
    known, measured = ([field.text for field in row] for row in table.rows)
    assert known[1:4] == ["27.853", "0.50%", "0.05%"]
    assert "scaled-down flux_kontext on cpu" in measured[0]
    line = speed_lines(run).set_index("label").loc["topi keep=0.5"]
    assert measured[2] == f"{line['scoring_seconds'] / line['total_method']:.2%}"
    hooks = speed_lines(run).set_index("label").loc["hooks only", "transformer"]
    assert measured[5] == f"{1 / hooks - 1:.2%}"
    assert table.keys[measured[0]] == (run.key,)
    (figure,) = [drawn for drawn in paper.figures if drawn.name == "speed"]
    assert figure.path.is_file()
    (tmp_path / "bench" / run.key).mkdir(parents=True)
    (tmp_path / "bench" / run.key / "manifest.json").write_text("{}")
    assert breakdown_table(load_benches(tmp_path)) is None


def test_the_figure_has_a_point_for_each_line(run, tmp_path):
    assert [path.name for path in build_speed(run.path.parents[1], tmp_path)] == [
        f"speed_{run.key}.png"
    ]
    with pytest.raises(ToPiError, match="topi bench"):
        build_speed(tmp_path, tmp_path)


def test_every_method_of_the_registry_is_a_line():
    from topi.experiment import open_editor
    from topi.models import adapter_for
    from topi.speed import model_of, variants_of

    settings, rest = read_bench([*TINY, "keep=[0.3,0.5]"])
    config = model_of(settings, rest)
    editor = open_editor(config)
    variants = variants_of(settings, config, editor, adapter_for(editor.pipe).facts)
    assert {variant.method for variant in variants} == {*METHODS, "hooks"}
    labels = [variant.label for variant in variants]
    assert len(set(labels)) == len(labels)
    for variant in variants:
        with variant.attach(editor.pipe):
            pass


def test_keep_is_what_stays_whatever_the_method_calls_it():
    assert share_of(METHODS["topi"], 0.3) == share_of(METHODS["random"], 0.3) == 0.3
    assert share_of(METHODS["tomesd"], 0.3) == pytest.approx(0.7)
    assert share_of(METHODS["toma"], 0.2) == 0.75


def test_a_compiled_model_is_compared_with_its_compiled_full_run(tmp_path):
    settings = ["methods=[topi]", "keep=[0.5]", "compile=true", "backend=eager", "references=2"]
    settings += ["repeats=1", "steps=2", "trim_last=true", f"store={tmp_path}"]
    torch._dynamo.reset()
    assert cli.main(["bench", *TINY, *settings]) == 0
    (run,) = load_benches(tmp_path)
    assert run.manifest["lines"][0] == "full, not compiled"
    assert run.manifest["compiled"] == "eager" and run.manifest["references"] == 2
    assert [row["method"] for row in run.rows] == ["full", "hooks", "full", "topi"]


def test_cuda_graphs_are_of_lengths_that_repeat(tmp_path, monkeypatch):
    asked, measured = [], []
    monkeypatch.setattr(compiling, "compile", lambda pipe, **options: asked.append(options))
    monkeypatch.setattr(
        measuring,
        "measure",
        lambda editor, sample, variants, *rest, **more: measured.extend(variants) or [],
    )
    settings = ["methods=[topi,tomesd]", "keep=[0.3]", "compile=true", "graphs=true"]
    run = bench([*TINY, *settings, f"store={tmp_path}"])
    assert asked == [{"backend": "inductor", "dynamic": False, "mode": "reduce-overhead"}]
    assert run.manifest["compiled"] == "inductor with CUDA graphs"
    methods = {variant.method: variant.attach for variant in measured}
    assert methods["topi"].func.round_to == 64
    assert "tomesd" in methods


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("weights=rnd", "weights=rnd is unknown; choose one of: own, random"),
        ("keep=[2]", r"keep=2.0 must be in \(0, 1\]"),
        ("graphs=true", "graphs=true needs compile=true"),
        ("repeats=0", "repeats=0 must be at least 1"),
        ("repeats=x", "repeats: "),
    ],
)
def test_bad_input_is_one_sentence(given, message):
    with pytest.raises(ToPiError, match=message):
        read_bench([given])


def test_what_it_does_not_read_is_refused(capsys):
    assert cli.main(["bench", "tau=0.5"]) == 1
    assert "does not read tau" in capsys.readouterr().err


def test_predictions_are_what_was_counted(run):
    """From a thin copy on another grid: every line's FLOPs, those of the real trace."""
    from topi.predict import compare_measured

    found = compare_measured(run.path.parents[1], 1e12).set_index("label")
    assert list(found.index) == run.manifest["lines"]
    assert list(found["predicted"]) == list(found["counted"])
    assert found["utilisation"].isna().all()  # of a GPU


def test_predict(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("topi.predict.REFERENCES", (1, 2))
    monkeypatch.setattr("topi.predict.SIZES", (64, 128))
    asked = ["model=tiny_flux", "methods=[topi]", "steps=3", "size=128", "curve=true", "gpu=a100"]
    assert cli.main(["predict", *asked, f"store={tmp_path}", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Predicted cost of tiny_flux: 128 x 128, 1 reference(s), on A100 40GB SXM" in text
    assert (tmp_path / "cost_tiny_flux.png").is_file()
    assert "checked against" not in text  # nothing was measured


def test_cost_grows_with_references_and_size():
    from topi.evaluation.cost import layout_of
    from topi.methods import make_method
    from topi.predict import cost_model
    from topi.results.gpus import GPUS

    fields = dict(kind="kontext", source="random", representative_layers=(1, 2, 3))
    model = cost_model(fields | {"options": {"scaled_down": True}})
    topi = make_method("topi", ratio=0.5, front_layers=1, first_anchor=0)
    costs = [model.predict(topi, layout_of(1024, refs, 512), 10) for refs in (1, 2, 4)]
    gains = [cost.flops.speedup for cost in costs]
    assert gains == sorted(gains) and gains[0] > 1.3  # the more references, the more to drop
    assert [cost.calls for cost in costs] == [10] * 3
    for cost in costs:
        assert cost.bytes_method < cost.bytes_full
    gpu = GPUS["h20"]
    assert costs[0].seconds(gpu.flops, gpu.bandwidth) == max(
        costs[0].flops.method / 148e12, costs[0].bytes_method / 4.0e12
    )
    small = model.predict(topi, layout_of(512, 1, 512), 10)
    assert small.flops.full < costs[0].flops.full / 3 and small.memory < costs[0].memory


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gpu=b100", "gpu=b100 is unknown; choose one of: a100"),
        ("keep=0", r"keep=0.0 must be in \(0, 1\]"),
        ("refs=0", "refs=0 must be at least 1"),
    ],
)
def test_bad_predictions_are_refused(given, message):
    from topi.predict import read_predict

    with pytest.raises(ToPiError, match=message):
        read_predict([given])
