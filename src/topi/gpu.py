"""One GPU per process: how several cells share the GPUs of a machine."""

import logging
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

import torch

from topi.results import files

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
    if torch.cuda.device_count() < 2:
        return None
    for index in range(torch.cuda.device_count()):
        serial = torch.cuda.get_device_properties(index).uuid
        if _held.enter_context(files.lock(store / ".gpus" / str(serial))):
            torch.cuda.set_device(index)
            return index
    log.warning("all GPUs are taken; sharing one")
    return None
