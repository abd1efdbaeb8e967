"""Configurations of training runs: what they compose to, and what is refused."""

import pytest
import torch

from topi.bench.config.schema import ConfigError, conf_folder
from topi.bench.editors import standin
from topi.bench.editors.standin import load_parts
from topi.bench.standins import start
from topi.bench.standins.module import Schedule
from topi.bench.standins.training_config import TrainingConfig, before, compose_training


def composed(*overrides: str) -> TrainingConfig:
    return compose_training(overrides)


def test_a_start_may_be_deepened_to_what_is_configured(tmp_path):
    def depths(transformer):
        return len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)

    shipped, _ = load_parts(standin.weights_folder("kontext_standin"))
    dual, single = (depth + 1 for depth in depths(shipped))
    wanted = [f"model.transformer.dual={dual}", f"model.transformer.single={single}"]
    begun = {}
    for deepen in ("true", "false"):
        config = composed("model=kontext_standin", "start=shipped", f"deepen={deepen}", *wanted)
        begun[deepen], _ = start.starting_point(config, tmp_path)
    assert depths(begun["true"]) == (dual, single)
    assert depths(begun["false"]) == depths(shipped)
    first, own = (t.transformer_blocks[0].state_dict() for t in (begun["true"], shipped))
    assert all(torch.equal(first[name], own[name]) for name in own)


def test_shipped_weights_are_a_start_by_their_name():
    for given, name in (("shipped", "qwen_standin"), ("kontext_standin", "kontext_standin")):
        config = composed("model=qwen_standin", f"start={given}")
        assert before(config) == [standin.weights_folder(name)]


def test_schedule():
    schedule = Schedule(lr=1.0, lr_end=0.0, steps=1000)
    assert schedule.learning_rate(0, 1e9) == pytest.approx(1 / 80)
    assert schedule.learning_rate(500, 0) == pytest.approx(0.5)
    assert schedule.progress(1000, 0) == 1
    assert Schedule(1.0, 1.0, minutes=2).progress(7, 60) == pytest.approx(0.5)


def test_impossible_configurations_are_refused():
    for overrides, message in (
        (["model.latents=wavelet"], "choose one of: block, conv"),
        (["phases=[{sizes: [[48, 48]], batch: 2, lr: 1}]"], "either steps or minutes"),
        (["phases=[{sizes: [[50, 48]], batch: 2, lr: 1, steps: 1}]"], "multiples of 8"),
        (["phases=[]"], "phases is empty"),
        (["phases=[{sizes: [], batch: 2, lr: 1, steps: 1, references: own}]"], "pipeline, target"),
        (["data=mini_edit_plus"], "two references"),
        (["data.focus=1.5"], "between 0 and 1"),
        (["data.focus=0.5", "data.focus_on=[]"], "needs tasks in data.focus_on"),
        (["data.focus_on=[teleport]"], "teleport"),
        (
            ["phases=[{sizes: [[48, 48, 48]], batch: 2, lr: 1, steps: 1}]"],
            "those of the target and",
        ),
        (["data.beside=2"], "between 0 and 1"),
        (["model=qwen_standin", "data.beside=1"], "is for Kontext"),
        (["longer=0"], "at least 1"),
        (["start=shiped"], "no weights in shiped. Use scratch, shipped"),
        (["start=scratch+shipped"], "no weights in scratch"),
        (["precision=64-true"], "choose one of: auto, bf16-mixed, 32-true"),
        (["+model.colour=red"], "colour"),
    ):
        with pytest.raises(ConfigError, match=message):
            compose_training(overrides)


@pytest.mark.parametrize(
    "factor", sorted(f.stem for f in (conf_folder() / "training" / "factor").glob("*.yaml"))
)
def test_factors_compose(factor):
    config = composed(f"factor={factor}", "schedule=study")
    plain = composed("schedule=study")
    changed = [
        name for name in ("model", "data", "phases") if vars(config)[name] != vars(plain)[name]
    ]
    assert len(changed) == (factor != "none")
    assert config.phases[0].steps == (8000 if factor == "longer" else 4000)


@pytest.mark.parametrize("schedule", ["study", "study_cpu"])
def test_deeper_is_twice_as_deep(schedule):
    found = [
        start.new_transformer(composed(f"schedule={schedule}", f"factor={factor}").model)
        for factor in ("none", "deeper")
    ]
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        plain, deeper = (len(getattr(transformer, stack)) for transformer in found)
        assert deeper == 2 * plain > 0
