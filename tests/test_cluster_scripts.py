"""The scripts for the login node, in a checkout whose programs only note what they are asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from topi.bench.runs.plan import PlannedCell, Task, dump

ROOT = Path(__file__).resolve().parents[1]
NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >> "$(dirname "$0")/asked"\n'


@pytest.fixture
def checkout(tmp_path):
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    shutil.copytree(ROOT / "conf" / "model", tmp_path / "conf" / "model")
    for name in ("topi", "hf"):
        answer(tmp_path, name, "exit 0")
    return tmp_path


def answer(checkout, name, line):
    """What a program does after it has noted what it is asked."""
    path = checkout / ".venv" / "bin" / name
    path.write_text(f"{NOTE}{line}\n")
    path.chmod(0o755)


def run(checkout, name, *arguments, **more):
    script = str(checkout / "slurm" / name)
    return subprocess.run([script, *arguments], capture_output=True, text=True, cwd="/", **more)


def asked(checkout):
    path = checkout / ".venv" / "bin" / "asked"
    return path.read_text().splitlines() if path.exists() else []


def test_prefetch_downloads_the_weights_of_models_on_the_hub(checkout):
    done = run(checkout, "prefetch.sh", "flux_kontext", "kontext_standin")
    assert done.returncode == 0, done.stderr
    lpips, flux = asked(checkout)
    assert lpips == "topi fetch-lpips"
    conf = OmegaConf.load(ROOT / "conf" / "model" / "flux_kontext.yaml")
    assert flux == f"hf download {conf.hub_id} --revision {conf.revision}"
    assert "kontext_standin comes with the repository" in done.stdout


def test_prefetch_stops_at_what_it_does_not_know_or_cannot_have(checkout):
    done = run(checkout, "prefetch.sh", "flux_kontext", "no_such_model")
    assert done.returncode == 2
    assert "no conf/model/no_such_model.yaml" in done.stderr
    assert asked(checkout) == []
    assert run(checkout, "prefetch.sh").returncode == 2
    answer(checkout, "hf", "echo 'it is gated' >&2; exit 1")
    done = run(checkout, "prefetch.sh", "flux_kontext", "qwen_image_edit")
    assert done.returncode == 1
    assert "gated" in done.stderr


def test_sync_uploads_once_and_says_how_it_went(checkout):
    assert run(checkout, "sync_wandb.sh").returncode == 0
    answer(checkout, "topi", "exit 1")
    assert run(checkout, "sync_wandb.sh", "/scratch/results").returncode == 1
    assert asked(checkout) == [f"topi sync --store {s}" for s in ("results", "/scratch/results")]


def test_sync_goes_on_after_a_failure(checkout):
    end = f'[ $(wc -l < "{checkout}/.venv/bin/asked") -lt 3 ] || kill $PPID\nexit 1'
    answer(checkout, "topi", end)
    assert run(checkout, "sync_wandb.sh", "s", "0.01", timeout=60).returncode == -15
    assert asked(checkout) == ["topi sync --store s"] * 3


@pytest.fixture
def submit(checkout, monkeypatch):
    """Submit a plan of this text; returns the process and what `sbatch` was asked."""
    plan = checkout / "plan.jsonl"
    answer(checkout, "topi", f'exec {sys.executable} -m topi "$@"')
    answer(checkout, "sbatch", "exit 0")
    monkeypatch.setenv("PATH", f"{checkout / '.venv' / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(checkout))
    monkeypatch.setenv("TOPI_PARALLEL", "3")
    for name in ("SLURM_ARRAY_TASK_ID", "TOPI"):
        monkeypatch.delenv(name, raising=False)

    def call(text):
        plan.write_text(text)
        command = ["bash", str(checkout / "slurm" / "array.sbatch"), str(plan), "--time=60"]
        done = subprocess.run(command, capture_output=True, text=True)
        rest = f" --time=60 slurm/array.sbatch {plan}"
        return done, [line.removesuffix(rest) for line in asked(checkout) if "sbatch -" in line]

    return call


def tasks(*gpus):
    cell = PlannedCell("full", ["method=full"])
    return [Task(number, gpu, "m", None, [cell]) for number, gpu in enumerate(gpus)]


def test_the_array_has_one_submission_for_each_type_of_gpu(submit):
    done, submitted = submit(dump(tasks("A100", "A100", "h100-80gb", "none", "A100", "none")))
    assert done.returncode == 0, done.stderr
    assert submitted == [
        "sbatch --gres=gpu:A100:1 --array=0-1,4%3",
        "sbatch --gres=gpu:h100-80gb:1 --array=2%3",
        "sbatch --array=3,5%3",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no task"),
        ("garbage\n", "plan.jsonl, line 1, is not valid"),
        (dump(tasks("tesla:v100")), "field gpu"),
    ],
)
def test_what_cannot_be_submitted_is_an_error(submit, text, words):
    done, submitted = submit(text)
    assert done.returncode != 0
    assert words in done.stderr
    assert submitted == []


def test_a_submission_that_slurm_refuses_is_an_error(checkout, submit):
    answer(checkout, "sbatch", "exit 1")
    assert submit(dump(tasks("a100")))[0].returncode != 0


def test_a_task_of_the_array_becomes_topi_itself(checkout, monkeypatch):
    """The signals of SLURM reach the process it started; a shell in between would keep them."""
    answer(checkout, "topi", "echo $$ $HF_HUB_OFFLINE $FROM_SETUP")
    (checkout / "slurm" / "setup.sh").write_text("export FROM_SETUP=yes\n")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(checkout))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    for name in ("TOPI", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    command = ["bash", str(checkout / "slurm" / "array.sbatch"), "plan.jsonl"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0].split() == [str(process.pid), "1", "yes"]
    assert asked(checkout) == ["topi work plan.jsonl 7"]
