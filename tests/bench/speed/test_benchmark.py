"""Settings of `topi bench`."""

import pytest
import torch

from topi.bench.cli import main as cli
from topi.bench.speed.benchmark import kept_share, model_of, read_bench
from topi.errors import ToPiError
from topi.methods import METHODS


def test_a_default_run_times_more_anchors_than_the_first(monkeypatch):
    settings, rest = read_bench(["model=flux_kontext", "weights=random"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scaled = model_of(settings, rest).model
    assert (scaled["steps"], scaled["height"]) == (20, 256)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    published = model_of(settings, rest).model
    assert (published["steps"], published["height"]) == (40, 1024)
    assert settings == read_bench(["weights=random"])[0]  # as it was given


def test_keep_is_what_stays_whatever_the_method_calls_it():
    def shares(name, keep):
        return kept_share(METHODS[name], keep)

    assert shares("topi", 0.3) == shares("random", 0.3) == (0.3, {"ratio": 0.3})
    assert shares("tomesd", 0.3) == (0.3, {"ratio": 0.7})
    assert shares("toma", 0.2) == shares("dato", 0.2) == (0.25, {"ratio": 0.75})  # and says so
    assert shares("downscaled_ref", 0.25) == (0.25, {"scale": 0.5})
    assert shares("fewer_steps", 0.2) == (0.2, {"share": 0.2})
    assert shares("checker", 0.2) == (0.5, {})
    assert shares("ref_kv", 0.2) == (None, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("weights=rnd", "weights=rnd is unknown; choose one of: own, random"),
        ("keep=[2]", r"keep=2.0 must be in \(0, 1\]"),
        ("graphs=true", "graphs=true needs compile=true"),
        ("repeats=0", "repeats=0 must be at least 1"),
        ("warmup=-1", "warmup=-1 must be at least 0"),
        ("steps=0", "steps=0 must be at least 1"),
        ("round_to=0", "round_to=0 must be at least 1"),
        ("repeats=x", "repeats: "),
    ],
)
def test_bad_input_is_one_sentence(given, message):
    with pytest.raises(ToPiError, match=message):
        read_bench([given])


def test_what_it_does_not_read_is_refused(capsys):
    assert cli.main(["bench", "tau=0.5"]) == 1
    assert "does not read tau" in capsys.readouterr().err
