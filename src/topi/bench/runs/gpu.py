"""One GPU per process: how cells share the GPUs of a machine, and processes a cell."""

import logging
import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment

from topi.bench.results import files
from topi.bench.results.links import guard
from topi.errors import ToPiError

log = logging.getLogger(__name__)

_held = ExitStack()  # until the process ends


@lru_cache
def claim_gpu(store: Path) -> int | None:
    """Take the first GPU that no other process on this store has, and make it "cuda".

    Cells that run at the same time, from `hydra/launcher=parallel` or from several shells, so get
    one each. With one GPU or none there is nothing to choose.

    Args:
        store: where the locks are, named by the GPUs' serial numbers.

    Returns:
        Its index among the visible ones; None if there is no choice, or no free one.
    """
    guard(store)
    if torch.cuda.device_count() < 2:
        return None
    for index in range(torch.cuda.device_count()):
        serial = torch.cuda.get_device_properties(index).uuid
        if _held.enter_context(files.lock(store / ".gpus" / str(serial))):
            torch.cuda.set_device(index)
            return index
    log.warning("all GPUs are taken; sharing one")
    return None


def share(number: int, action: Callable[..., None], *arguments: Any) -> None:
    """Call `action(rank, number, *arguments)` in so many processes, through Lightning Fabric.

    On GPUs they are fresh processes, each with a GPU of its own; on cores they are forks. They do
    not talk to each other. If one fails the others are ended, and so they are if we are.

    Args:
        number: of processes.
        action: of a module, as fresh processes look it up.

    Raises:
        Exception: what the first of them that failed raised, with its trace as text.
    """
    cuda = torch.cuda.is_available()
    if cuda and number > (there := torch.cuda.device_count()):
        raise ToPiError(f"devices={number}, but this machine has {there} GPUs: ask for fewer.")
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=number,
        strategy="ddp_spawn" if cuda else "ddp_fork",
        plugins=[LightningEnvironment()],  # we start the processes, also inside a SLURM job
    )
    before = set(multiprocessing.active_children())
    try:
        fabric.launch(_rank, action, arguments, logging.getLogger().level)
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
            child.join()


def _rank(
    fabric: Fabric, action: Callable[..., None], arguments: tuple[Any, ...], level: int
) -> None:
    logging.basicConfig(level=level, format=f"[{fabric.global_rank}] %(message)s")  # if fresh
    action(fabric.global_rank, fabric.world_size, *arguments)
