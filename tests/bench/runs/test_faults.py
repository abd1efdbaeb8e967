"""What a cluster does to a sweep, on random weights: kills, signals, races, failures, other code.

The model is loaded once, here; the processes that suffer are forks.
"""

import json
import os
import random
import signal
import stat
import time
from pathlib import Path

import pytest
from PIL import Image
from small_cells import (
    SMOKE,
    assert_equal,
    config_for,
    fork,
    only_cell,
    pausing_after,
    rows_of,
    wait,
    wait_for_rows,
)

from topi.bench.cli import main as cli
from topi.bench.config.compose import composed
from topi.bench.config.schema import read_config
from topi.bench.editors.editor import TinyEditor
from topi.bench.results import Store, provenance
from topi.bench.results.files import write_lines
from topi.bench.runs import compute
from topi.bench.runs.plan import PlannedCell, Task, dump, load, plan
from topi.bench.runs.verify import verify
from topi.bench.runs.work import retry, run_tasks
from topi.errors import ToPiError
from topi.methods.rivals.toma import ToMA

pytestmark = pytest.mark.slow

KILLS = 25


def test_kill_9_at_any_moment_costs_no_row_and_doubles_none(tmp_path, calm):
    started = time.monotonic()
    config = config_for(tmp_path / "0", "data.count=4")
    assert wait(fork(lambda: compute.run(config))) == 0
    took = time.monotonic() - started
    dice, kills, store = random.Random(0), 0, 0
    while kills < KILLS:
        store += 1
        config = config_for(tmp_path / str(store), "data.count=4")
        code = -9
        while code == -9:
            pid = fork(lambda config=config: compute.run(config))
            if kills < KILLS:  # on a machine that got slower none may come to an end between two
                time.sleep(dice.uniform(0, took * 0.7))
                os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            kills += code == -9
        assert code == 0
        cell = only_cell(config.store)
        assert cell.complete
        assert_equal(cell, calm)


def test_of_two_workers_one_computes_and_the_other_says_so(tmp_path, calm):
    config = config_for(tmp_path / "s", "data.count=4")
    logs = [tmp_path / "log0", tmp_path / "log1"]
    go_on = tmp_path / "go on"
    first = fork(lambda: pausing_after(1, lambda: compute.run(config), go_on), logs[0])
    wait_for_rows(config.store, 1)
    assert wait(fork(lambda: compute.run(config), logs[1])) == 0
    go_on.touch()
    assert wait(first) == 0
    told = [log.read_text() for log in logs]
    assert ["another process is computing" in text for text in told] == [False, True]
    assert ["is complete now" in text for text in told] == [True, False]
    assert_equal(only_cell(config.store), calm)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for two SLURM commands; what they are asked is in `asked`, `state` is the job's."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, answer in (("squeue", f"cat {tmp_path / 'state'}"), ("scontrol", "true")):
        script = tools / name
        script.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path / "asked"}\n{answer}\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    (tmp_path / "asked").touch()
    (tmp_path / "state").write_text("RUNNING\n")
    return tmp_path


def tasks_for(store, *cells):
    planned = [PlannedCell(" ".join(c), [*SMOKE, f"store={store}", *c]) for c in cells]
    return [Task(0, "a100", "tiny_flux", "smoke", planned)]


@pytest.mark.parametrize(
    ("signum", "state", "requeued"),
    [
        (signal.SIGUSR2, "RUNNING", True),  # two minutes before the time limit
        (signal.SIGTERM, "RUNNING", True),  # preempted, in the grace time
        (signal.SIGTERM, "COMPLETING", False),  # SLURM requeues it itself, or it was cancelled
    ],
)
def test_a_signal_puts_the_job_back_into_the_queue(cluster, calm, signum, state, requeued):
    store = cluster / "store"
    (cluster / "state").write_text(state + "\n")
    tasks = tasks_for(store, ["data.count=4"])
    pid = fork(lambda: pausing_after(2, lambda: run_tasks(tasks)))
    wait_for_rows(store, 2)
    os.kill(pid, signum)
    assert wait(pid) == 128 + signum
    asked = (cluster / "asked").read_text().splitlines()
    assert ("scontrol requeue 77" in asked) == requeued
    cell = only_cell(store)
    assert cell.state.startswith("partial")
    assert run_tasks(tasks) == 0
    assert_equal(cell, calm)
    assert cell.manifest["job"]["slurm_job_id"] == "77"


def test_a_job_that_never_gets_on_is_not_requeued_for_ever(cluster, monkeypatch):
    from topi.bench.runs.work import requeue

    assert not requeue({"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "100"})
    assert not requeue({})
    assert (cluster / "asked").read_text() == ""
    assert requeue({"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "99"})


def test_a_failing_cell_is_told_and_retry_runs_only_that(tmp_path, monkeypatch, capsys, edits):
    store = tmp_path / "store"
    path = tmp_path / "plan.jsonl"
    cells = (["method=toma"], ["method=checker"], ["method=toma_ref"])
    planned = [
        PlannedCell(c[0], ["experiment=smoke", "latency.samples=0", f"store={store}", *c])
        for c in cells
    ]
    path.write_text(dump([Task(3, "a100", "tiny_flux", None, planned)]))
    real = ToMA.merge

    def fail(self, *arguments):
        if self.name == "toma":
            raise ZeroDivisionError("no tokens")
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ToMA, "merge", fail)
        assert cli.main(["work", str(path), "3"]) == 1
    states = {cell.manifest["method"]: cell.state for cell in Store(store).load_cells()}
    assert states == {
        "toma": "failed: ZeroDivisionError('no tokens')",
        "checker": "complete",
        "toma_ref": "complete",
    }
    capsys.readouterr()
    assert cli.main(["status", "--store", str(store)]) == 0
    assert "failed: ZeroDivisionError" in capsys.readouterr().out
    edits.clear()
    assert cli.main(["retry", "--store", str(store)]) == 0
    assert len(edits) == 2  # its two samples; full outputs were there
    assert {cell.state for cell in Store(store).load_cells()} == {"complete"}
    edits.clear()
    assert retry(store) == 0
    assert not edits
    assert cli.main(["retry", "--store", str(store), "nothing"]) == 1
    assert cli.main(["work", str(path), "4"]) == 1
    assert "has no task 4" in capsys.readouterr().err


def test_rows_of_two_versions_of_the_code_are_not_mixed_unless_allowed(tmp_path, calm, monkeypatch):
    config = config_for(tmp_path / "s", "data.count=4")
    pid = fork(lambda: pausing_after(2, lambda: compute.run(config)))
    wait_for_rows(config.store, 2)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    cell = only_cell(config.store)
    done = len(cell.rows)
    monkeypatch.setattr(provenance, "code_digest", lambda: "f" * 16)
    with pytest.raises(ToPiError, match=r"is now ffffffff.*resume=any"):
        compute.run(config)
    assert "is now ffffffff" in cell.state
    assert len(cell.rows) == done
    config.resume = "any"
    compute.run(config)
    assert cell.complete
    assert rows_of(cell) == rows_of(calm)
    (resumed,) = only_cell(config.store).manifest["resumed"]
    assert (resumed["code"], resumed["rows"]) == ("f" * 16, done)
    assert "is now ffffffff" in resumed["changed"][0]


def test_a_damaged_complete_cell_is_computed_again_where_it_is_damaged(tmp_path, edits):
    config = config_for(tmp_path / "s", "data.count=3")
    compute.run(config)
    cell = only_cell(config.store)
    before = rows_of(cell)
    path = cell.path / "rows.jsonl"
    path.write_text("x" + path.read_text())
    full = Store(config.store).full(cell.manifest["full_key"])
    picture = full.path / "images" / f"{before[0]['sample']}.png"
    sound = picture.read_bytes()
    picture.write_bytes(sound[:100])
    edits.clear()
    compute.run(config)
    assert len(edits) == 2  # the damaged row, and its damaged full output
    assert cell.complete
    assert rows_of(cell) == before
    assert picture.read_bytes() == sound


def test_verify_runs_samples_again_and_finds_a_forged_row(calm, capsys, edits):
    store, before = calm.path.parents[1], rows_of(calm)
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert cli.main(["verify", calm.key[:-3], "--store", str(store)]) == 0
    told = capsys.readouterr().out
    assert told.count("same") == 3
    samples = [before[i]["sample"] for i in (0, 2, 3)]
    assert edits == [sample for sample in samples for _ in range(2)]
    assert files == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    path = calm.path / "rows.jsonl"
    text, (first, *others) = path.read_text(), calm.rows
    try:
        write_lines(path, [first | {"psnr": 77.25}, *others])
        assert cli.main(["verify", calm.key, "--store", str(store), "--samples", "1"]) == 1
        assert "77.2500 ->" in capsys.readouterr().out
        (check,) = verify(store, calm.key, 1).checks
        assert (check.pixels, check.full_pixels, check.same()) == (0, 0, False)
    finally:
        path.write_text(text)
    assert cli.main(["verify", "no-such", "--store", str(store)]) == 1


@pytest.mark.parametrize("place", ["data", "experiment"])
def test_nothing_in_a_manifest_is_interpolated(tmp_path, monkeypatch, calm, caplog, place):
    monkeypatch.setenv("SECRET", "swordfish")
    cell = Store(tmp_path).cell("k")
    config = dict(calm.manifest["config"]) | {"data": {"name": "folder", "path": "x"}}
    text = "${oc.env:SECRET}"
    if place == "data":
        config["data"] = {"name": "folder", "path": f"no/{text}"}
    else:
        config[place] = text
    cell.start(calm.manifest | {"config": config, "key": "k"})
    cell.fail("no luck")
    assert retry(tmp_path) == 1
    with pytest.raises(ToPiError):
        verify(tmp_path, "k")
    assert "swordfish" not in caplog.text
    assert "oc.env:SECRET" in caplog.text
    held = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in held if "swordfish" in text]


def test_verify_and_retry_find_relative_data_from_another_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "here" / "mine").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "here" / "mine" / "a.png")
    line = '{"image": "a.png", "instruction": "make it blue"}'
    (tmp_path / "here" / "mine" / "edits.jsonl").write_text(line)
    monkeypatch.chdir(tmp_path / "here")
    config = config_for("results", "data=folder", "data.path=mine", "lpips=false")
    compute.run(config)
    cell, store = only_cell("results"), str(tmp_path / "here" / "results")
    monkeypatch.chdir(tmp_path / "there")
    assert cli.main(["verify", cell.key, "--store", store]) == 0
    assert "same" in capsys.readouterr().out
    assert cli.main(["retry", cell.key, "--store", store]) == 0
    assert [found.key for found in Store(store).find_cells()] == [cell.key]
    assert not list((tmp_path / "there").iterdir())


def test_verify_refuses_what_is_not_the_same(calm, monkeypatch):
    monkeypatch.setattr(TinyEditor, "fingerprint", lambda self: "other")
    with pytest.raises(ToPiError, match="weights random-kontext are now other"):
        verify(calm.path.parents[1], calm.key)


def test_a_plan_has_every_cell_once_and_one_model_per_task(tmp_path):
    sweep = ("experiment=smoke", "model=tiny_flux,tiny_qwen", "method=topi,toma", "tau=0.8,0.9")
    tasks = plan(sweep, group=2)
    assert [(task.task, task.gpu, task.model) for task in tasks] == [
        (0, "a100", "tiny_flux"),
        (1, "a100", "tiny_flux"),
        (2, "h20", "tiny_qwen"),
        (3, "h20", "tiny_qwen"),
    ]
    assert [[cell.label for cell in task.cells] for task in tasks] == [
        ["topi tau=0.8", "topi tau=0.9"],
        ["toma"],
    ] * 2
    assert {task.experiment for task in tasks} == {"smoke"}
    path = tmp_path / "plan.jsonl"
    path.write_text(dump(tasks))
    assert load(path) == tasks
    config = read_config(composed(tasks[2].cells[1].overrides))
    assert (config.model["name"], config.tau, config.method["name"]) == ("tiny_qwen", 0.9, "topi")
    assert len(plan(sweep, group=9)) == 2
    assert {task.gpu for task in plan(sweep, gpu="none")} == {"none"}


def test_a_plan_keeps_draws_apart_and_refuses_impossible_points():
    random_layers = ("experiment=smoke", "layers=random", "layers.seed=0,1", "ratio=0.5")
    assert sum(len(task.cells) for task in plan(random_layers, group=9)) == 2
    for overrides in (["tau=2"], ["method=tomi"], ["tau=["], ["taau=1"]):
        with pytest.raises(ToPiError):
            plan(["experiment=smoke", *overrides])
    with pytest.raises(ToPiError, match="--group 0"):
        plan(["experiment=smoke"], group=0)


CELL = {"label": "full", "overrides": ["method=full"]}
TASK = {"task": 0, "gpu": "a100", "model": "m", "experiment": None, "cells": [CELL]}


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n\n", "{}", "[1]", "not json"),
        *(
            json.dumps(TASK | wrong)
            for wrong in ({"task": True}, {"cells": []}, {"gpu": None}, {"cells": [{"label": "x"}]})
        ),
    ],
)
def test_what_is_not_a_plan_is_refused(tmp_path, text):
    path = tmp_path / "plan.jsonl"
    if text:
        path.write_text(text + "\n")
    with pytest.raises(ToPiError, match=r"plan\.jsonl.*topi plan"):
        load(path)


@pytest.mark.parametrize("gpu", ["tesla:v100", "gpu:a100:1", "", " ", "a100,h20", "a\n100"])
def test_a_gpu_that_cannot_be_submitted_is_refused(gpu):
    with pytest.raises(ToPiError, match="is not a valid type of GPU"):
        plan(["experiment=smoke"], gpu=gpu)


def test_a_task_occurs_once_in_a_plan(tmp_path):
    path = tmp_path / "plan.jsonl"
    path.write_text(2 * dump([Task(0, "none", "m", None, [PlannedCell("full", ["method=full"])])]))
    with pytest.raises(ToPiError, match="two tasks 0"):
        load(path)


def test_a_plan_takes_nothing_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    secret = "store=x/${oc.env:SECRET}"
    hidden = r"store=x/$\{oc.env\:SECRET\}"
    path = tmp_path / "plan.jsonl"
    path.write_text(dump([Task(0, "none", "m", None, [PlannedCell("x", [*SMOKE, hidden])])]))
    for refused in (lambda: load(path), lambda: plan(["experiment=smoke", secret])):
        with pytest.raises(ToPiError, match="write the value itself") as told:
            refused()
        assert "swordfish" not in str(told.value)
    (task,) = plan([*SMOKE, "model.height=${model.width}"], gpu="h100-80gb")
    assert task.gpu == "h100-80gb"
    path.write_text(dump([task]))
    assert load(path) == [task]


def test_a_plan_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "plan.jsonl"
    cell = PlannedCell("a label with \u2028 and \x85", ["method=full"])
    tasks = [Task(number, "none", "m", None, [cell]) for number in range(2)]
    path.write_text(dump(tasks))
    assert load(path) == tasks


def test_each_process_takes_a_gpu_of_its_own(tmp_path, monkeypatch):
    import torch

    from topi.bench.results import files
    from topi.bench.runs.gpu import claim_gpu

    class Gpu:
        def __init__(self, uuid):
            self.uuid = uuid

    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Gpu(f"GPU-{i}"))
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    with files.lock(tmp_path / ".gpus" / "GPU-0") as ours:
        assert ours
        assert claim_gpu(tmp_path) == 1
        assert claim_gpu(tmp_path) == 1  # it stays
        assert wait(fork(lambda: (claim_gpu.cache_clear(), claim_gpu(tmp_path))[1])) == 2
    assert taken == [1]
    claim_gpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert claim_gpu(Path("x")) is None
    claim_gpu.cache_clear()
