"""Where a result comes from: the commit, the versions, the kind of machine (never its name)."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("topi", "torch", "diffusers", "transformers", "torchmetrics", "lpips", "numpy")


def provenance(device: str, threads: int) -> dict[str, Any]:
    """What must be told of the circumstances of a run.

    Args:
        device: the processor the model runs on, "cpu" or the name of the GPU.
        threads: CPU threads of one operation.
    """
    return {
        "git": commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": {"name": device, "threads": threads, "machine": platform.machine()},
    }


def commit(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit of the checkout this package runs from and whether files differ from it.

    None outside a checkout, or without git.
    """
    folder = folder or Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    head, status = (
        _git(folder, *arguments) for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    return None if status is None else {"commit": head, "dirty": bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
