"""The script of the real-size runs: every stage is a command that `topi bench` understands."""

import os
import subprocess
from pathlib import Path

import pytest

from topi.bench.runs.assemble import check
from topi.bench.speed.benchmark import model_of, read_bench
from topi.methods import METHODS

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "real_size" / "run.sh"
NOTE = """#!/bin/sh
echo "$*" >> "$NOTES"
[ -z "$BROKEN" ] || case "$*" in *$BROKEN*) exit 1 ;; esac
"""


@pytest.fixture
def run(tmp_path):
    """`run("flux")` -> exit code, and the commands of a Python that only notes its arguments."""
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(NOTE)
    python.chmod(0o755)

    def run(stage, *settings, broken=""):
        notes.write_text("")
        more = {"PYTHON": str(python), "NOTES": str(notes), "BROKEN": broken}
        command = ["bash", str(SCRIPT), stage, str(tmp_path / "out"), *settings]
        done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
        lines = notes.read_text().splitlines()
        return done, [line.partition(" bench ")[2].split() for line in lines if " bench " in line]

    return run


def stages():
    listed = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert listed.returncode == 2
    return listed.stderr.partition("one of: ")[2].split()


def test_every_stage_is_read_as_it_is_meant(run):
    """And together they are what the issue asks for."""
    done, commands = run("all", "seed=3")
    assert done.returncode == 0, done.stderr
    assert len(commands) == len(stages()) - 1 + 2  # of `all`; three scoring kernels
    seen = set()
    for command in commands:
        settings, rest = read_bench(command)
        assert settings.weights == "random" and {*settings.methods} <= {*METHODS}
        config = model_of(settings, rest)
        check(config)
        assert config.seed == 3 and config.model["true_cfg"] == 1.0
        seen |= {
            (config.model["name"], method, keep, settings.size, settings.references, settings.steps)
            for method in settings.methods
            for keep in settings.keep
        }
    shares = (0.2, 0.3, 0.5, 0.7)
    for keep in shares:
        of_flux = {line[1] for line in seen if line[0] == "flux_kontext" and line[2] == keep}
        assert of_flux == {*METHODS} - {"full"}
    for model in ("flux_kontext", "qwen_image_edit"):
        wanted = {(size, 1, 20) for size in (512, None, 1536)} | {(None, 1, 40)}
        assert wanted <= {line[3:] for line in seen if line[0] == model and line[2] == 0.5}
    for model in ("flux_kontext", "qwen_image_edit_plus"):
        assert (model, "topi", 0.5, None, 2, 20) in seen
    compiled = [read_bench(command)[0] for command in commands if "compile=true" in command]
    assert len(compiled) == 3 and all(tuple(each.keep) == shares for each in compiled)


def test_a_stage_that_ended_well_is_not_run_again(run):
    failing, commands = run("all", broken="size=1536")
    assert failing.returncode == 1
    assert "failed, run again: flux_large qwen_large" in failing.stderr
    assert len(commands) > 20
    again, commands = run("all")
    assert again.returncode == 0
    assert [command for command in commands if "size=1536" not in command] == []
    assert len(commands) == 2
    last, commands = run("all")
    assert last.returncode == 0 and commands == []


def test_a_stage_alone(run):
    done, commands = run("qwen_small", "repeats=1")
    assert done.returncode == 0
    settings, _ = read_bench(*commands)
    assert (settings.size, settings.repeats, settings.methods) == (512, 1, ["topi"])
