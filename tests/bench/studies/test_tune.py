"""`topi tune`: the choice by hand, and from the command line on random weights."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import topi.bench.studies.tune
from topi.bench.cli import main as cli
from topi.bench.config.compose import composed
from topi.bench.config.schema import ConfigError, read_config
from topi.bench.runs.assemble import build_method
from topi.bench.runs.identify import label_of
from topi.bench.studies.tune import choose, parts, settings
from topi.errors import ToPiError

CURVE = pd.DataFrame(
    [
        # psnr, its interval, speed
        ("slow", 40.0, 38.0, 42.0, 1.1),
        ("good", 33.0, 31.0, 35.0, 1.5),
        ("wide", 32.0, 28.0, 36.0, 1.7),
        ("beaten", 31.0, 30.5, 31.5, 1.3),
        ("fast", 25.0, 24.0, 26.0, 2.0),
    ],
    columns=["label", "psnr", "psnr_low", "psnr_high", "speedup"],
)
TINY = ("model=tiny_flux", "model.steps=5", "model.height=64", "model.width=64", "lpips=false")
TINY += ("latency.samples=0",)


@pytest.mark.parametrize(
    ("limits", "label"),
    [
        ({"min_psnr": 30}, "good"),  # the interval of "wide" goes below
        ({"min_psnr": 28}, "wide"),
        ({"min_psnr": 36}, "slow"),
        ({"min_speed": 1.2}, "good"),
        ({"min_speed": 1.6}, "wide"),
        ({"min_speed": 2.0}, "fast"),
    ],
)
def test_the_fastest_good_one_or_the_best_fast_one(limits, label):
    assert choose(CURVE, "speedup", **limits) == label


def test_limits_that_nothing_reaches():
    with pytest.raises(ToPiError, match=r"the nearest is slow with 40\.00 dB \[38\.00, 42\.00\]"):
        choose(CURVE, "speedup", min_psnr=50)
    with pytest.raises(ToPiError, match=r"a speed-up of 3; the nearest is fast .* 2\.00x"):
        choose(CURVE, "speedup", min_speed=3)
    for limits in ({}, {"min_psnr": 30, "min_speed": 2}):
        with pytest.raises(ToPiError, match="Give one of"):
            choose(CURVE, "speedup", **limits)


def test_settings_are_those_of_the_bench_on_few_samples():
    some = settings(["model=tiny_flux", "data.count=3"], ("checker", "taylorseer"), 8)
    assert len(some) == 3 + 3 + 3  # alone, alone, and stacked
    assert {frozenset(parts(point)) for point in some} == {
        frozenset(names) for names in (["checker"], ["taylorseer"], ["checker", "taylorseer"])
    }
    config = read_config(composed(some[0]))
    assert (config.data.split, config.data.count) == ("calibration", 3)
    assert config.store == "results/tune" and config.logger.mode == "none"
    assert config.model["name"] == "tiny_flux"
    with pytest.raises(ConfigError, match="Name the model"):
        settings([], (), 8)
    with pytest.raises(ConfigError, match="--only=topy is unknown"):
        settings(["model=tiny_flux"], ("topy",), 8)


def test_from_the_command_line(tmp_path, monkeypatch, capsys, edits):
    monkeypatch.chdir(tmp_path)
    drawn = []  # tests/report draws it
    monkeypatch.setattr(
        topi.bench.studies.tune, "save", lambda *a: (drawn.append(a), plt.close(a[0]), a[1])[-1]
    )
    command = ["tune", *TINY, "method.flip=step", "--only=checker", "--samples=1"]
    assert cli.main([*command, "--min-psnr=1"]) == 0
    out = capsys.readouterr().out
    assert [name for _, _, name in drawn] == ["tiny_flux"]
    curve = pd.read_csv(tmp_path / "results" / "tune" / "tiny_flux.csv")
    (proposed,) = curve["label"]
    shown = next(line for line in out.splitlines() if "→" in line)
    assert proposed in shown and "–" in shown  # not timed
    line = next(line for line in out.splitlines() if line.startswith("proposed:"))
    assert line.startswith(f"proposed: {proposed}; add method=checker")
    config = read_config(composed([*TINY, *line.partition("; add ")[2].split()]))
    assert label_of(config, build_method(config)) == proposed == "checker flip=step"
    ran = len(edits)
    assert cli.main([*command, "--min-psnr=1000"]) == 1  # another question, the same cells
    assert "No setting reaches 1000 dB" in capsys.readouterr().err
    assert len(edits) == ran


def test_a_method_that_does_not_fit_is_left_out(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    command = ["tune", *TINY, "model.temporal_cache=null", "--only=magcache", "--samples=1"]
    assert cli.main([*command, "--speed=1"]) == 1
    assert "No setting could be run" in capsys.readouterr().err
    assert "MagCache is not fitted" in caplog.text


def test_both_limits_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", "model=tiny_flux", "--speed=1", "--min-psnr=1"])
    assert "give exactly one of --min-psnr and --speed" in capsys.readouterr().err
