"""Every file of `conf/` composes, and says what the code it configures says."""

from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from topi.bench.config.schema import (
    DATA,
    LOGGERS,
    STRATEGIES,
    ConfigError,
    axes_read,
    check_axes,
    read_config,
)
from topi.bench.editors.editor import ModelConfig
from topi.bench.runs.assemble import build_method, check
from topi.bench.runs.identify import label_of
from topi.engine import FreezesTargets
from topi.methods import CACHES, METHODS, make_cache
from topi.methods.paper.topi import SCORES, ToPi
from topi.models import ModelFacts

CONF = Path(__file__).resolve().parents[3] / "conf"
FACTS = ModelFacts("Flux", (19, 38), (("attention",),) * 57, (13, 18, 31))


def composed(*overrides, hydra=False):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def method_of(*overrides, facts=None):
    return build_method(read_config(composed(*overrides)), facts)


def test_groups_and_code_know_the_same_names():
    assert names("method") == sorted(METHODS)
    assert names("cache") == sorted([*CACHES, "none"])
    assert names("score") == sorted(SCORES)
    assert names("layers") == sorted(STRATEGIES)
    assert names("data") == sorted(DATA)
    assert len(names("logger")) == len(LOGGERS)


@pytest.mark.parametrize("name", names("method"))
def test_a_method_file_spells_out_the_defaults_of_its_class(name):
    config = read_config(composed(f"method={name}", "model=flux_kontext"))
    cls = METHODS[name]
    free = {f.name for f in fields(cls) if f.init} - set(cls.variants[name])
    assert set(config.method) - {"name"} == free
    assert build_method(config) == cls(**cls.variants[name])


@pytest.mark.parametrize("name", sorted(CACHES))
def test_a_cache_file_spells_out_the_defaults_of_its_class(name):
    config = read_config(composed("method=full", f"cache={name}", "model=flux_kontext"))
    free = {f.name for f in fields(CACHES[name]) if f.init}
    assert set(config.cache) - {"name", "fit"} == free
    assert ("fit" in config.cache) == bool(CACHES[name].fitted)
    assert build_method(config) == make_cache(name)


@pytest.mark.parametrize("name", names("method"))
def test_every_method_accepts_a_cache(name):
    own = ["method.cache_every=1"] if name.startswith("dato") else []  # it brings one, off by this
    overrides = [f"method={name}", "cache=taylorseer", *own]
    check_axes(composed(*overrides), overrides)
    if METHODS[name]().part(FreezesTargets):  # a cache would remember tokens that were not computed
        with pytest.raises(ConfigError, match="leave TaylorSeer out"):
            check(read_config(composed(*overrides)))
        return
    method = build_method(read_config(composed(*overrides)), FACTS)
    assert method.name == ("taylorseer" if name == "full" else f"{name}+taylorseer")


@pytest.mark.parametrize("name", names("model"))
def test_a_model_file_fills_a_model_config(name):
    config = read_config(composed(f"model={name}"))
    assert ModelConfig(**config.model).name == name
    check(config)


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes(name):
    check(read_config(composed(f"experiment={name}")))


def test_the_settings_of_the_real_models():
    flux = read_config(composed("model=flux_kontext")).model
    assert (flux["hub_id"], flux["steps"], flux["guidance"], flux["height"], flux["dtype"]) == (
        "black-forest-labs/FLUX.1-Kontext-dev",
        40,
        2.5,
        1024,
        "bfloat16",
    )
    for name, hub_id in (("", "Qwen/Qwen-Image-Edit"), ("_plus", "Qwen/Qwen-Image-Edit-2509")):
        qwen = read_config(composed(f"model=qwen_image_edit{name}")).model
        assert (qwen["hub_id"], qwen["steps"], qwen["true_cfg"], qwen["negative_prompt"]) == (
            hub_id,
            40,
            4.0,
            " ",
        )
        assert qwen["front_layers"] == 10


@pytest.mark.parametrize("name", ["a100", "h20"])
def test_cluster_launchers_submit_one_array_of_that_gpu(name):
    launcher = composed(f"hydra/launcher={name}", hydra=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.gres == f"gpu:{name}:1"
    assert launcher.max_num_timeout > 0


def test_a_cluster_gets_what_it_wants_on_the_command_line():
    given = {"partition": "gpu", "account": "abc", "constraint": "hbm", "timeout_min": 60}
    given |= {"array_parallelism": 4, "setup": ["module load cuda"]}
    overrides = [f"hydra.launcher.{k}={v}" for k, v in given.items() if k != "setup"]
    overrides.append("hydra.launcher.setup=[module load cuda]")
    launcher = composed("hydra/launcher=h20", *overrides, hydra=True).hydra.launcher
    assert {name: launcher[name] for name in given} == given
    assert launcher.signal_delay_s < 60 * launcher.timeout_min
    assert composed("hydra/launcher=slurm_cpu", hydra=True).hydra.launcher.gres is None


def test_several_cells_at_a_time_on_this_machine():
    launcher = composed("hydra/launcher=parallel", hydra=True).hydra.launcher
    assert launcher._target_.endswith("JoblibLauncher")
    assert launcher.n_jobs == 2


def test_the_local_launcher_needs_no_slurm():
    assert composed("hydra/launcher=local", hydra=True).hydra.launcher._target_.endswith(
        "LocalLauncher"
    )


def test_tau_and_ratio():
    assert method_of().tau == 0.85
    assert method_of("tau=0.9").tau == 0.9
    assert (method_of("ratio=0.4").tau, method_of("ratio=0.4").ratio) == (None, 0.4)
    assert method_of("method=random", "ratio=0.4").ratio == 0.4
    assert method_of("method=toma", "ratio=0.4").ratio == 0.5  # a share merged, not kept
    with pytest.raises(ConfigError, match="exclude each other"):
        check(read_config(composed("tau=0.85", "ratio=0.5")))


def test_layers_and_score_reach_topi():
    assert method_of(facts=FACTS).layers == (13, 18, 31)
    assert method_of("layers=last", facts=FACTS).layers == (54, 55, 56)
    assert method_of("layers=all", "layers.strategy=first", facts=FACTS).layers == (0, 1, 2)
    assert method_of("method.layers=[1,2]", facts=FACTS).layers == (1, 2)
    assert method_of("score=leave_one_out", facts=FACTS).score == "leave_one_out"
    assert len(set(method_of("layers=random", "layers.count=5", facts=FACTS).layers)) == 5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tau=1.5", r"tau=1.5 must be a number in \[0, 1\]"),
        ("ratio=-0.1", "ratio=-0.1"),
        ("method.score=infuence", "influence, attention"),
        ("model.kind=kontxt", "kontext, flux2, qwen_edit"),
        ("layers.strategy=middle", "representative, all, random, first, last"),
        ("layers=first layers.count=0", "at least 1"),
        ("data.split=test", "train, calibration, evaluation"),
        ("data=folder", "data.path"),
        ("logger.mode=loud", "offline, online, none"),
        ("latency.repeats=-1", "latency.repeats=-1"),
        ("+sede=1", "choose one of: .*seed"),
        ("+data.sise=64", "choose one of: .*size"),
        ("+method.delta=3", "update_every"),
        ("seed=x", "seed: Value 'x'"),
        ("method.name=tomi", "tomesd"),
        ("cache.name=teecache", "first_block_cache, magcache"),
        ("+cache.delta=1 cache=teacache", "Cache teacache has no parameter delta"),
        ("cache=teacache cache.fit=nowhere.json", "topi fit-cache"),
        ("method.dropped=burn", "prune, merge"),
    ],
)
def test_what_is_refused_and_with_which_choices(override, words):
    with pytest.raises(ConfigError, match=words) as error:
        check(read_config(composed(*override.split())))
    assert "\n" not in str(error.value)


def test_layers_the_model_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="layers 0 to 56"):
        method_of("method.layers=[57]", facts=FACTS)


def test_an_axis_that_a_method_does_not_read_is_refused_in_a_single_run():
    assert axes_read(composed("method=topi")) == ["tau", "ratio", "layers", "score"]
    assert axes_read(composed("method=random")) == ["ratio"]
    check_axes(composed("method=topi"), ["tau=0.9", "layers=first", "seed=1"])
    for override in ("tau=0.9", "layers=first", "layers.count=2", "+score=attention"):
        with pytest.raises(ConfigError, match=r"does not read .*method\.merge_every"):
            check_axes(composed("method=toma"), [override])


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        ("method=topi", "topi tau=0.85"),
        ("ratio=0.5", "topi ratio=0.5"),
        ("tau=0.9 layers=last score=attention", "topi tau=0.9 score=attention layers=last"),
        ("layers=first layers.count=5", "topi tau=0.85 layers=first:5"),
        ("layers=random layers.count=5", "topi tau=0.85 layers=random:0:5"),
        ("method.layers=[3,4]", "topi tau=0.85 layers=3-4"),
        ("method=toma", "toma"),
        ("method=toma_ref method.ratio=0.3", "toma_ref ratio=0.3"),
        ("method=checker method.flip=step", "checker flip=step"),
        ("method=full", "full"),
        ("trim_last=true", "topi tau=0.85 trim_last=True"),
        ("method=toma trim_last=true", "toma"),
        ("method=full cache=taylorseer", "full cache=taylorseer"),
        (
            "method=random cache=magcache cache.threshold=0.1 cache.ratios=[1,1.5]",
            "random cache=magcache cache.threshold=0.1 cache.ratios=1-1.5",
        ),
        (
            "method.update_every=0 method.dropped=merge",
            "topi update_every=0 dropped=merge tau=0.85",
        ),
    ],
)
def test_labels_say_what_differs(overrides, label):
    config = read_config(composed(*overrides.split()))
    assert label_of(config, build_method(config, FACTS)) == label


def test_defaults_are_those_of_the_library():
    config = read_config(composed("model=flux_kontext"))
    assert build_method(config, FACTS) == ToPi(layers=(13, 18, 31))


def test_hydra_writes_beside_the_results():
    hydra = composed("store=/tmp/x", hydra=True)
    HydraConfig.instance().set_config(hydra)
    assert hydra.hydra.run.dir.startswith("/tmp/x/logs/")
    assert OmegaConf.select(hydra, "hydra.sweep.dir").startswith("/tmp/x/logs/")
