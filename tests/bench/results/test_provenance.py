"""Where a result comes from, and nothing that is nobody's business."""

import json
import socket
import subprocess

import pytest

from topi.bench.results import provenance as module
from topi.bench.results.provenance import code_digest, commit, provenance


def test_it_names_code_versions_machine_and_job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setattr(module, "_driver", lambda: "550.1")
    found = provenance("NVIDIA A100", 2, gpus=4, cuda="12.8")
    assert found["versions"]["torch"][0].isdigit()
    assert found["device"] | {"machine": "m"} == {
        "name": "NVIDIA A100",
        "count": 4,
        "cuda": "12.8",
        "driver": "550.1",
        "threads": 2,
        "machine": "m",
    }
    assert found["job"] == {
        "host": socket.gethostname(),
        "slurm_job_id": "12",
        "slurm_array_task_id": "3",
    }
    assert len(found["code"]) == len(found["lock"]) == 16
    assert set(found["git"] or {"commit": 0, "dirty": 0}) >= {"commit", "dirty"}
    assert provenance("cpu", 1)["device"]["driver"] is None


def test_it_tells_nothing_else_of_the_environment(monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "SLURM_JOB_ACCOUNT"):
        monkeypatch.setenv(name, "a-secret")
    assert "a-secret" not in json.dumps(provenance("cpu", 1))


def test_the_commit_and_how_files_differ_from_it(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@x.example")
        command = ["git", *identity, *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    assert commit(tmp_path) is None
    commit.cache_clear()
    git("init")
    file = tmp_path / "a"
    file.write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    clean = commit(tmp_path)
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    assert "diff" not in clean
    seen = []
    for content in ("2", "3", "2"):
        commit.cache_clear()
        file.write_text(content)
        seen.append(commit(tmp_path))
    assert all(found["dirty"] and found["commit"] == clean["commit"] for found in seen)
    assert seen[0]["diff"] == seen[2]["diff"] != seen[1]["diff"]
    commit.cache_clear()


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("methods/a.py", True),
        ("methods/new.py", True),
        ("report/a.py", False),
        ("data/a.md", False),
    ],
)
def test_the_code_is_what_computes_rows(tmp_path, file, counts):
    for name in ("methods/a.py", "report/a.py", "data/a.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    before = code_digest(tmp_path)
    code_digest.cache_clear()
    (tmp_path / file).write_text("2")
    assert (code_digest(tmp_path) != before) == counts
    code_digest.cache_clear()
