"""One task of a plan: its cells in turn, and what to do when the cluster wants the node back."""

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import OmegaConf

from topi.bench.config.compose import composed
from topi.bench.config.schema import Config, check_literal, placed, read_config
from topi.bench.io.signals import Stopped
from topi.bench.results import Cell, Store
from topi.bench.runs.plan import PlannedCell, Task
from topi.errors import ToPiError

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
MAX_REQUEUES = 100
ENDING = ("COMPLETING", "CANCELLED", "PREEMPTED", "TIMEOUT")
"""States in which SLURM ends a job itself, and puts it back into the queue if it is to."""


class Interrupted(Stopped):
    """SLURM wants this process to end, and maybe to run again."""


def run_tasks(tasks: list[Task]) -> int:
    """Run the cells of these tasks; a cell that fails does not end the others.

    On SIGUSR2 (time limit) and SIGTERM (preemption) the sample at hand is given up, and the job
    goes back into SLURM's queue. The cells continue when it runs again.

    Returns:
        How many cells failed.

    Raises:
        SystemExit: with 128 + the signal, if one came.
    """
    failed = 0
    try:
        with interruptible():
            for task in tasks:
                for cell in task.cells:
                    failed += not _run(cell, task.experiment)
    except Interrupted as interrupted:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # requeue in peace
        log.warning("stopped by %s; what is finished is in the store", interrupted)
        requeue(os.environ)
        raise SystemExit(128 + interrupted.signum) from interrupted
    return failed


def _run(cell: PlannedCell, experiment: str | None) -> bool:
    return _attempt(cell.label, lambda: read_config(composed(cell.overrides)), experiment)


def retry(root: Path, wanted: Sequence[str] = ()) -> int:
    """Run cells of a store again as their manifests describe them.

    Args:
        root: of the store.
        wanted: keys or beginnings of keys; none: every cell that failed or is damaged.

    Returns:
        How many cells failed again.

    Raises:
        ToPiError: no cell has such a key, or no manifest tells how to compute it.
    """
    cells = Store(root).find_cells()
    if wanted:
        chosen = [cell for name in wanted for cell in matching(cells, name)]
    else:
        chosen = [cell for cell in cells if cell.state.startswith(("failed", "damaged"))]
    log.info("%d cells to run again", len(chosen))
    failed = 0
    for cell in chosen:
        about = dict.fromkeys(("label", "experiment")) | _manifest(cell)
        label = about["label"] or cell.key
        failed += not _attempt(label, lambda cell=cell: config_of(cell), about["experiment"])
    return failed


def matching(cells: Sequence[Cell], name: str) -> list[Cell]:
    """The cell of this key, or those whose keys begin so.

    Raises:
        ToPiError: there is none.
    """
    found = [cell for cell in cells if cell.key == name]
    found = found or [cell for cell in cells if cell.key.startswith(name)]
    if not found:
        raise ToPiError(f"No cell has the key {name}: `topi status` lists them.")
    return found


def config_of(cell: Cell) -> Config:
    """The configuration in a manifest; the store is where the cell is now.

    Relative paths are taken from the folder in which the cell was begun, if they lead anywhere.

    Raises:
        ToPiError: the manifest is damaged or of another version of this program, or has an
            interpolation.
    """
    content = cell.manifest.get("config")
    if not isinstance(content, dict):
        raise ToPiError(f"The manifest of {cell.key} has no configuration.")
    store = str(cell.path.parents[1])
    data = content.get("data") or {}
    if data.get("cache") == f"{content.get('store')}/data":  # as `conf/data/anyedit.yaml` says
        content = content | {"data": data | {"cache": f"{store}/data"}}
    content = content | {"store": store, "resume": content.get("resume", "same")}
    content = placed(content, cell.manifest.get("folder", ""))
    check_literal(content, f"The configuration of {cell.key}")
    return read_config(OmegaConf.create(content))


def _manifest(cell: Cell) -> dict[str, Any]:
    try:
        return cell.manifest
    except ToPiError:
        return {}


def _attempt(label: str, configure: Callable[[], Config], experiment: str | None) -> bool:
    """Run a cell; log why if it fails."""
    from topi.bench.runs.compute import run  # loads torch

    try:
        run(configure(), experiment)
    except ToPiError as error:
        log.error("%s: %s", label, error)
    except Exception:
        log.exception("%s failed", label)
    else:
        return True
    return False


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGUSR2 and SIGTERM into an `Interrupted`."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = {each: signal.signal(each, interrupt) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def requeue(environment: Mapping[str, str]) -> bool:
    """Put the SLURM job of this process back into the queue, unless SLURM is ending it.

    SLURM requeues a preempted job by itself once it has ended it, and a cancelled one must not come
    back. But a job that ends by itself, in the grace time or before its limit, counts as done.

    Returns:
        Whether the job was requeued from here.
    """
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return False
    if int(environment.get("SLURM_RESTART_COUNT") or 0) >= MAX_REQUEUES:
        log.error("job %s was requeued %d times; leaving it ended", job, MAX_REQUEUES)
        return False
    state = _ask("squeue", "--noheader", "--jobs", job, "--format", "%T")
    if state is None or state.strip() in ENDING:
        return False
    log.info("requeueing job %s", job)
    return _ask("scontrol", "requeue", job) is not None


def _ask(*command: str) -> str | None:
    """What a command prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s: %s", command[0], error)
        return None
    if done.returncode:
        log.warning("%s: %s", " ".join(command), done.stderr.strip())
        return None
    return done.stdout
