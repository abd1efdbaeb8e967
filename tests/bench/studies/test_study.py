"""`topi calibrate` and `topi probe` as a user calls them, on random weights."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from topi.bench.cli import main as cli
from topi.bench.config.schema import LayersConfig, conf_folder
from topi.bench.results import files
from topi.bench.results.calibration_file import read_calibration
from topi.bench.results.probe_run import load_probes
from topi.bench.runs.assemble import build_method
from topi.bench.runs.identify import label_of
from topi.bench.runs.layer_choice import layers_of
from topi.bench.studies import calibration as evaluation
from topi.bench.studies import probing
from topi.bench.studies.study import CALIBRATE_READS, PROBE_READS, SAMPLES, compose_study
from topi.errors import ToPiError
from topi.models import ModelFacts

FACTS = ModelFacts("Flux", (2, 4), (("attention",),) * 6, (0, 1, 2))
FEW = ("model.steps=2", "model.height=64", "model.width=64")


@pytest.fixture
def topi_(tmp_path, monkeypatch, capsys):
    """Run `topi`; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_calibrate_qwen_with_guidance(topi_, edits, tmp_path):
    command = ("calibrate", "model=tiny_qwen", "data.count=4", *FEW, "--top", "2")
    code, out, _ = topi_(*command)
    assert code == 0
    (path,) = (tmp_path / "results" / "calibration").glob("*.json")
    calibration = read_calibration(path)
    layers, curves = calibration.layers, calibration.overall
    assert len(layers) == 2 and len(curves.by_layer) == 6 and len(curves.by_step) == 2
    others = set(range(6)) - set(layers)
    assert min(curves.by_layer[k] for k in layers) >= max(curves.by_layer[k] for k in others)
    assert all(0 < s < 1 for s in curves.by_layer + curves.by_step)
    assert [row["sample"].split("-")[1] for row in calibration.samples] == ["calibration"] * 4
    assert len(calibration.by_category) == 4
    origin = calibration.origin
    assert (origin["weights"], origin["source"], origin["steps"]) == (
        "random-qwen_edit",
        "tiny",
        2,
    )
    assert "bootstrap subsets" in out and f"wrote {path.relative_to(tmp_path)}" in out
    assert str(tmp_path) not in path.read_text()  # it can be published

    # what is done is not done again; other layers are only chosen anew
    assert len(edits) == 4
    code, out, _ = topi_(*command[:-1], "3", "--out", "mine/c.json")
    assert code == 0 and len(edits) == 4
    assert set(layers) < set(read_calibration("mine/c.json").layers)

    # and the probe takes its layers from there
    probe = ("probe", "model=tiny_qwen", "data.count=2", *FEW, "layers.file=mine/c.json")
    assert topi_(*probe)[0] == 0
    (run,) = load_probes("results")
    assert tuple(run.manifest["layers"]) == read_calibration("mine/c.json").layers
    assert {row["sample"].split("-")[1] for row in run.rows} == {"evaluation"}
    frame = run.mass
    assert len(frame) == 2 * 2 * 2 * 6
    assert set(frame["branch"]) == {"cond", "uncond"}
    maps = run.maps(run.rows[0]["sample"])
    n_reference = np.prod(run.rows[0]["grids"][0])
    assert maps.attention.shape == maps.kept.shape == (2, n_reference)
    assert np.allclose(maps.attention.mean(1), maps.mass.mean((0, 2)), rtol=2e-3)
    assert np.allclose(maps.influence.mean(1), 1, rtol=2e-3)
    assert maps.rank_influence[0] == pytest.approx(1)
    # Eq. 10 on what is stored: the kept tokens hold tau of the influence, one less would not
    for kept, influence in zip(maps.kept, maps.influence, strict=True):
        assert influence[kept].sum() >= 0.849 * influence.sum()
        assert influence[kept].sum() - influence[kept].min() < 0.851 * influence.sum()


def test_a_killed_probe_goes_on_and_ends_the_same(topi_, edits, monkeypatch):
    command = ("probe", "model=tiny_flux", "data.count=3", *FEW)
    assert topi_(*command, "store=whole")[0] == 0
    real = probing.observe

    def killed(editor, sample, seed, maps):
        if len(edits) == 3 + 2:
            raise KeyboardInterrupt
        return real(editor, sample, seed, maps)

    with monkeypatch.context() as patch:
        patch.setattr(probing, "observe", killed)
        with pytest.raises(KeyboardInterrupt):
            topi_(*command, "store=cut")
    assert load_probes("cut") == []
    code, out, _ = topi_(*command, "store=cut")
    assert code == 0 and "highest total mass" in out
    assert len(edits) == 3 + 3
    (whole,), (cut,) = load_probes("whole"), load_probes("cut")
    assert whole.rows == cut.rows and whole.key == cut.key
    for row in whole.rows:
        one, other = vars(whole.maps(row["sample"])), vars(cut.maps(row["sample"]))
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert whole.manifest["layers"] == [2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("calibrate", "method=toma", "tau=1"), "does not read method, tau; it reads model, data"),
        (
            ("calibrate", "model=flux"),
            "model=flux is unknown; choose one of: flux2_klein, flux_kontext",
        ),
        (("calibrate", "model.step=3"), "step"),
        (("calibrate", "model=tiny_flux", "--top", "7"), "--top 7 must be between 1 and 6"),
        (("calibrate", "model=tiny_flux", "--ship"), "--ship needs a stand-in"),
        (("probe", "model=tiny_flux", "layers.file=no.json"), "no.json cannot be read"),
        (("probe", "model=tiny_flux", "tau=2"), "tau=2"),
        (
            ("probe", "model=tiny_flux", "model.representative_layers=[9]"),
            "this model is 5",
        ),
    ],
)
def test_what_is_refused_in_one_sentence(topi_, edits, arguments, words):
    code, _, error = topi_(*arguments)
    assert code == 1 and words in error and error.count("\n") == 1
    assert not edits


def test_two_processes_do_not_do_the_same(topi_, monkeypatch, edits):
    command = ("calibrate", "model=tiny_flux", "data.count=1", *FEW)
    real = evaluation.calibrate

    def meanwhile(*arguments):
        code, _, error = topi_(*command)
        assert code == 1 and "Another process" in error
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "calibrate", meanwhile)
        assert topi_(*command)[0] == 0


def test_defaults_of_the_data():
    config = compose_study("calibrate", ["model=tiny_flux"], CALIBRATE_READS, split="calibration")
    assert config.data.split == "calibration"
    config = compose_study("c", ["data.split=train"], CALIBRATE_READS, split="calibration")
    assert config.data.split == "train"
    config = compose_study("c", ["data=folder"], CALIBRATE_READS, split="calibration", count=48)
    assert (config.data.count, config.data.split) == (48, "evaluation")


def test_the_configuration_is_found_or_missed_with_a_word(monkeypatch, tmp_path):
    here = conf_folder()
    assert (here / "config.yaml").is_file()
    monkeypatch.setattr(
        "topi.bench.config.schema.__file__", str(tmp_path / "lib" / "src" / "config.py")
    )
    monkeypatch.chdir(here.parent)
    assert conf_folder() == here  # of the current folder
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToPiError, match="top folder of a checkout"):
        conf_folder()


class TestRepresentativeLayers:
    """Where `layers=representative` takes them from."""

    @pytest.fixture
    def shipped(self, tmp_path):
        path = tmp_path / "calibration.json"
        curves = {"samples": 1, "layers": [3, 5], "by_layer": [0.0] * 6, "by_step": [0.0]}
        content = {"schema": 1, "layers": [3, 5], "overall": curves, "by_category": {}}
        content["stability"] = {"subsets": 1, "seed": 0, "same_set": 1, "frequency": [0.0] * 6}
        files.write_json(path, content | {"samples": [], "origin": {"weights": "abc"}})
        return path

    def editor(self, shipped=None, weights="abc", layers=None):
        return SimpleNamespace(
            calibration_file=shipped,
            fingerprint=lambda: weights,
            config=SimpleNamespace(representative_layers=layers),
        )

    def test_in_this_order(self, shipped):
        asked, default = (
            LayersConfig("representative", file=str(shipped)),
            LayersConfig("representative"),
        )
        assert layers_of(asked, FACTS, self.editor()) == (3, 5)
        assert layers_of(default, FACTS, self.editor(shipped)) == (3, 5)
        assert layers_of(default, FACTS, self.editor(shipped, layers=[0, 1, 2])) == (0, 1, 2)
        assert layers_of(default, FACTS, self.editor()) == (0, 1, 2)
        assert layers_of(default, FACTS, self.editor(shipped.with_name("none"))) == (0, 1, 2)
        assert layers_of(LayersConfig("last", count=2), FACTS, self.editor(shipped)) == (4, 5)

    def test_of_other_weights_are_refused(self, shipped):
        with pytest.raises(ToPiError, match=r"weights abc.*model has new"):
            layers_of(LayersConfig("representative"), FACTS, self.editor(shipped, "new"))

    def test_reach_the_method_and_its_label(self, shipped):
        config = compose_study("x", [f"layers.file={shipped}"], ("layers",))
        method = build_method(config, FACTS, self.editor())
        assert method.layers == (3, 5)
        assert label_of(config, method).endswith("layers=3-5")
        assert json.loads(shipped.read_text())["layers"] == [3, 5]


def test_a_probe_is_of_the_size_of_an_experiment():
    for overrides, model, count in (
        (["size=smoke"], "tiny_flux", 4),
        (["size=small"], "kontext_standin", 24),
        (["size=small", "model=tiny_qwen", "data.count=2"], "tiny_qwen", 2),
        ([], "kontext_standin", SAMPLES),
    ):
        config = compose_study("probe", overrides, PROBE_READS, count=SAMPLES)
        assert (config.model["name"], config.data.count) == (model, count)
