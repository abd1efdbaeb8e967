"""What a sweep ends with, and when it does not."""

import logging

import pytest
from hydra.utils import instantiate

import topi.bench.report
from topi.bench.cli import sweep_end
from topi.bench.config.compose import composed


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        ([], [("results", "report")]),
        (["hydra/launcher=parallel", "store=s"], [("s", "report")]),
        (["hydra.sweeper.report=page"], [("results", "page")]),
        (["hydra.sweeper.report=null"], []),
        (["hydra/launcher=a100"], []),
        (["shard=0/2"], []),
        (["experiment=smoke"], []),
    ],
)
def test_which_sweeps_end_with_a_page(monkeypatch, overrides, shown):
    calls = []
    monkeypatch.setattr(
        sweep_end, "show_sweep", lambda store, labels, out: calls.append((store, out))
    )
    config = composed(overrides, hydra=True)
    sweeper = instantiate(config.hydra.sweeper)
    monkeypatch.setattr(type(sweeper).__base__, "sweep", lambda self, arguments: "returned")
    sweeper.config = config
    assert sweeper.sweep([]) == "returned"
    assert calls == shown


def test_a_report_that_fails_does_not_make_the_sweep_fail(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    sweep_end.show_sweep(str(tmp_path), {}, str(tmp_path / "out"))
    assert "there is no page: There are no results" in caplog.text

    def fail(*arguments, **options):
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(topi.bench.report, "build", fail)
    sweep_end.show_sweep(str(tmp_path), {}, str(tmp_path / "out"))
    assert "could not be written" in caplog.text and "ZeroDivisionError" in caplog.text
