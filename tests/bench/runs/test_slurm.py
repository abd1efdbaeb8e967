"""A real SLURM, started for these tests on this machine, with stand-ins for the GPUs.

`slurm/test_cluster/install.sh` installs it. Without it these tests are skipped, and the launcher is
tried on submitit's local executor.
"""

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from job_server import serve
from small_cells import PATIENCE, SMOKE, assert_equal, fork, wait, wait_until

from topi.bench.config.compose import composed
from topi.bench.config.schema import read_config
from topi.bench.results import Store
from topi.bench.runs import compute
from topi.bench.runs.assemble import assemble
from topi.bench.runs.identify import identify
from topi.bench.runs.plan import PlannedCell, Task, dump, plan
from topi.bench.runs.work import run_tasks

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "slurm" / "test_cluster"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
OPTIONS = ("--cpus-per-task=1", "--mem=100M", "--time=60")

pytestmark = pytest.mark.slow


def free_port():
    """The first of two free ports in a row."""
    for _ in range(100):
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise OSError("no two free ports in a row")


def start_cluster(root):
    """Start it; returns why it cannot be, or None."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        return f"{', '.join(missing)} not installed; slurm/test_cluster/install.sh does that"
    if os.geteuid() != 0:
        return "it needs root"
    command = [str(CLUSTER / "up.sh"), str(root), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    return None if done.returncode == 0 else f"it does not start: {done.stderr[-1000:]}"


@pytest.fixture(scope="module")
def reason(calm):
    """Why there is no SLURM here; None: it runs, and `topi` in its jobs is `job_server`.

    `calm` has loaded the model by then.
    """
    root = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, as it holds sockets
    why = start_cluster(root)
    server = fork(lambda: serve(str(root / "topi")))
    topi = root / "topi.sh"
    topi.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {ROOT}/tests/job_server.py "$@"\n')
    topi.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(root / "slurm.conf"))
        patch.setenv("PATH", f"{CLUSTER}:{os.environ['PATH']}")  # for its sacct
        patch.setenv("TOPI", str(topi))
        patch.setenv("TOPI_SERVER", str(root / "topi"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield why
        os.kill(server, signal.SIGKILL)
        wait(server)
        if (root / "slurm.conf").exists():
            subprocess.run([str(CLUSTER / "down.sh"), str(root)], check=True)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def slurm(reason):
    if reason is not None:
        pytest.skip(f"no SLURM: {reason}")


def ask(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(plan_file, *options):
    """Submit a plan as a user does; returns the ids of the arrays."""
    log = plan_file.with_suffix(".%A_%a.log")
    command = ("bash", "slurm/array.sbatch", str(plan_file), f"--output={log}", *OPTIONS, *options)
    return [line.split()[-1] for line in ask(*command).splitlines()]


def jobs(*arrays):
    """State, start and end of every task: {"12_0": ("COMPLETED", start, end)}."""
    listed = ask("squeue", "-h", "-r", "-t", "all", "-j", ",".join(arrays), "-o", "%F_%K|%T|%S|%e")
    return {line.split("|")[0]: tuple(line.split("|")[1:]) for line in listed.splitlines()}


def wait_for_end(*arrays):
    over = ("COMPLETED", "FAILED", "CANCELLED")
    wait_until(lambda: all(job[0] in over for job in jobs(*arrays).values()), "the jobs end")
    return jobs(*arrays)


def test_the_sweep_of_the_card_on_both_types_of_gpu(slurm, tmp_path):
    store = tmp_path / "store"
    small = [word for word in SMOKE if not word.startswith("method.")]
    sweep = [*small, "method=topi,toma", "tau=0.8,0.85,0.9", f"store={store}"]
    on_a100 = plan(sweep, group=2)
    (on_h20,) = plan([*sweep, "seed=1"], group=4, gpu="h20")
    tasks = [*on_a100, Task(len(on_a100), *list(vars(on_h20).values())[1:])]
    path = tmp_path / "plan.jsonl"
    path.write_text(dump(tasks))
    # One cell cannot be written: what is damaged in it cannot be set aside.
    doomed = read_config(composed(on_h20.cells[1].overrides))
    key = identify(assemble(doomed))["key"]
    obstacle = store / "cells" / key / "quarantine"
    (obstacle.parent / "rows.jsonl").mkdir(parents=True)
    obstacle.touch()

    os.environ["TOPI_PARALLEL"] = "1"
    arrays = submit(path)
    del os.environ["TOPI_PARALLEL"]
    assert len(arrays) == 2
    ended = wait_for_end(*arrays)
    first, second = (ended[f"{arrays[0]}_{task}"] for task in (0, 1))
    assert first[0] == second[0] == "COMPLETED"
    assert min(first[2], second[2]) <= max(first[1], second[1])  # array_parallelism: in turn
    assert ended[f"{arrays[1]}_2"][0] == "FAILED"
    cells = Store(store).find_cells()
    assert len(cells) == 8
    assert sorted(cell.state.split(":")[0] for cell in cells) == ["complete"] * 7 + ["damaged"]
    assert [cell.key for cell in cells if not cell.complete] == [key]
    cells = Store(store).load_cells()
    assert {cell.manifest["job"]["slurm_array_job_id"] for cell in cells} == set(arrays)
    assert {cell.manifest["label"] for cell in cells} == {
        "topi tau=0.8",
        "topi tau=0.85",
        "topi tau=0.9",
        "toma",
    }
    obstacle.unlink()
    compute.run(doomed)
    assert len(Store(store).load_cells()) == 8
    assert all(cell.complete for cell in Store(store).load_cells())


@pytest.fixture
def job_process(tmp_path):
    """Hold the process that works on a plan still while something happens to its job."""

    @contextmanager
    def hold(plan_file, store, rows):
        def ready():
            cells = Store(store).load_cells()
            return cells and len(cells[0].rows) >= rows and workers(plan_file)

        (pid,) = wait_until(ready, f"{rows} rows")
        os.kill(pid, signal.SIGSTOP)
        yield len(Store(store).load_cells()[0].rows)
        if pid in workers(plan_file):
            os.kill(pid, signal.SIGCONT)

    return hold


def workers(plan_file):
    """The process that works on the only task of a plan, if there is one."""
    try:
        pid = int(Path(f"{plan_file}.0.pid").read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return []
    return [pid]


def restarts(job):
    words = ask("scontrol", "show", "job", job).split()
    return int(next(word.split("=")[1] for word in words if word.startswith("Restarts=")))


def test_a_job_is_requeued_preempted_and_cancelled_and_no_row_is_lost(slurm, tmp_path, job_process):
    count = 24
    store, path = tmp_path / "store", tmp_path / "plan.jsonl"

    def cell(root):
        return PlannedCell("topi", [*SMOKE, f"data.count={count}", f"store={root}"])

    path.write_text(dump([Task(0, "a100", "tiny_flux", None, [cell(store)])]))
    (array,) = submit(path)
    job = f"{array}_0"

    with job_process(path, store, 1) as first:
        ask("scancel", "--signal=USR2", "--batch", job)  # as two minutes before the limit
    wait_until(lambda: restarts(job) == 1, "the job is requeued before its limit")

    with job_process(path, store, first + 1) as second:
        urgent = ("--partition=high", "--gres=gpu:a100:2", f"--output={tmp_path / 'urgent.log'}")
        ask("sbatch", *urgent, *OPTIONS, "--wrap", "true")
        wait_until(lambda: restarts(job) == 2, "the job is preempted and requeued")

    with job_process(path, store, second + 1) as third:
        ask("scancel", job)
        wait_until(lambda: jobs(array)[job][0] == "CANCELLED", "the job is cancelled")
    wait_until(lambda: not workers(path), "its process ends")
    assert restarts(job) == 2
    (kept,) = Store(store).load_cells()
    assert kept.state == f"partial {len(kept.rows)}/{count}"
    assert third <= len(kept.rows) < count

    assert (
        run_tasks([Task(0, "a100", "tiny_flux", None, [cell(store), cell(tmp_path / "calm")])]) == 0
    )
    (kept,) = Store(store).load_cells()
    (calm,) = Store(tmp_path / "calm").load_cells()
    assert kept.complete
    assert_equal(kept, calm)
    attempts = [attempt["job"] for attempt in kept.manifest["resumed"]]
    assert [attempt.get("slurm_restart_count") for attempt in attempts] == ["1", "2", None]


def test_a_sweep_through_the_launcher(reason, tmp_path, monkeypatch):
    """On SLURM if it runs here, else in processes that submitit starts."""
    slurm = [
        "hydra/launcher=a100",
        "hydra.launcher.array_parallelism=2",
        "hydra.launcher.timeout_min=60",
    ]
    launcher = ["hydra/launcher=local"] if reason else [*slurm, "hydra.launcher.mem_gb=1"]
    monkeypatch.chdir(tmp_path)
    points = ["method=checker,random", "hydra.launcher.cpus_per_task=1"]
    command = ["run.py", "-m", "experiment=smoke", "latency.samples=0", *points, *launcher]
    monkeypatch.setattr(sys, "argv", command)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the launcher waits in vain"))
    signal.alarm(PATIENCE)
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    finally:
        signal.alarm(0)
    assert stopped.value.code == 0
    cells = Store("results").load_cells()
    assert {cell.manifest["method"] for cell in cells} == {"checker", "random"}
    assert {cell.state for cell in cells} == {"complete"}
    if not reason:
        jobs_used = {cell.manifest["job"]["slurm_array_job_id"] for cell in cells}
        assert len(jobs_used) == 1
        (script,) = Path("results").rglob("*_submission.sh")
        assert "#SBATCH --gres=gpu:a100:1" in script.read_text()
        assert "#SBATCH --array=0-1%2" in script.read_text()
