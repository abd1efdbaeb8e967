"""Uploading offline W&B runs from a machine that has internet."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from topi.bench.results import Store
from topi.bench.results.files import is_locked
from topi.bench.tracking.wandb_log import read_log

log = logging.getLogger(__name__)

QUIET = 600
"""Seconds without a word after which a run without an end counts as cut off."""


MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline"}
MODES |= {"dryrun": "offline", "disabled": "none"}
"""What WANDB_MODE may say -> the mode that it stands for."""


def wandb_mode(wanted: str) -> str:
    """What is done on W&B: "online", "offline" or "none".

    Args:
        wanted: the mode that is configured. WANDB_MODE goes before it, but never turns W&B on.
    """
    said = os.environ.get("WANDB_MODE", "").strip().lower()
    if wanted == "none" or not said:
        return wanted
    if said not in MODES:
        log.warning("WANDB_MODE=%s is none of %s, so it is not heeded", said, ", ".join(MODES))
    return MODES.get(said, wanted)


def offline_runs(store: Store) -> list[Path]:
    """The folders of the offline runs of a store, oldest first."""
    return sorted((store.root / "wandb").rglob("offline-run-*"), key=lambda path: path.name)


def runs_of(store: Store, key: str) -> list[Path]:
    """The folders of the offline runs of one cell: one for each time it was started."""
    return [folder for folder in offline_runs(store) if folder.name.split("-", 3)[-1] == key]


def unsynced(store: Store, now: float | None = None) -> list[Path]:
    """The offline runs that are not uploaded yet and that no process is writing.

    A run in the midst would be uploaded up to there, and count as uploaded.
    """
    return [
        folder
        for folder in offline_runs(store)
        if not list(folder.glob("*.wandb.synced")) and not _in_progress(store, folder, now)
    ]


def _in_progress(store: Store, folder: Path, now: float | None) -> bool:
    key = folder.name.split("-", 3)[-1]
    if is_locked(store.root / "cells" / key / ".lock"):
        return True
    try:
        if read_log(folder).exit is not None:
            return False
    except Exception as error:
        log.warning("%s: %s", folder.name, error)
    written = max((path.stat().st_mtime for path in folder.glob("*.wandb")), default=0)
    return (time.time() if now is None else now) - written < QUIET


def sync(store: Store, run: Callable[[Sequence[str]], int] = subprocess.call) -> int:
    """Hand all runs that are ready to `wandb sync`, which knows the user's login.

    The runs of a cell that was resumed have one id, so they become one run.

    Args:
        run: runs a command and returns its exit code.

    Returns:
        How many runs were not uploaded although they are ready.
    """
    ready = unsynced(store)
    for folder in ready:
        log.info("uploading %s", folder.name)
    if ready:
        run([sys.executable, "-m", "wandb", "sync", *map(str, ready)])
    return len(set(ready) & set(unsynced(store)))
