"""Where a result comes from: code, versions, the kind of machine, the job that computed it."""

import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("topi", "torch", "diffusers", "transformers", "torchmetrics", "lpips", "numpy")
PACKAGE = Path(__file__).resolve().parents[2]
CHECKOUT = PACKAGE.parents[1]
COMPUTING = ("models", "engine", "methods", "bench/data", "bench/editors", "bench/runs")
"""The sub-packages whose code decides the numbers of a row."""
SKEW = timedelta(minutes=5)
"""How far apart the clocks of two nodes may be."""
JOB = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")
"""The only environment variables that are recorded, as others may hold keys."""


def provenance(device: str, threads: int, gpus: int = 0, cuda: str | None = None) -> dict[str, Any]:
    """Under which conditions a run takes place.

    Args:
        device: the processor the model runs on, "cpu" or the name of the GPU.
        threads: CPU threads of one operation.
        gpus: how many the process sees.
        cuda: the version that torch was built for.
    """
    return {
        "git": commit(),
        "code": code_digest(),
        "lock": _file_digest(CHECKOUT / "requirements.txt"),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": {
            "name": device,
            "count": gpus,
            "cuda": cuda,
            "driver": _driver() if gpus else None,
            "threads": threads,
            "machine": platform.machine(),
        },
        "job": {
            "host": socket.gethostname(),
            **{name.lower(): os.environ[name] for name in JOB if name in os.environ},
        },
    }


def differences(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """Sentences on what changed between two attempts at a cell and must not.

    The code that computes rows, the versions of what it stands on, and the direction of time.
    Machines, drivers, jobs and commits that touch other files may change; the GPU's name is part of
    a cell's key.

    Args:
        earlier: manifest of the attempt before.
        later: manifest of this one.
    """
    changes = []
    before, now = _moment(earlier.get("created")), _moment(later.get("created"))
    if before and now and now < before - SKEW:
        changes.append(f"the clock says {later['created']}, which is before {earlier['created']}")
    if (before := earlier.get("code")) != (now := later.get("code")) and before and now:
        changes.append(f"code {before[:8]} is now {now[:8]}")
    before, now = earlier.get("versions") or {}, later.get("versions") or {}
    for name in sorted(before.keys() & now.keys() - {"topi"}):
        if before[name] != now[name]:
            changes.append(f"{name} {before[name]} is now {now[name]}")
    return changes


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@lru_cache
def commit(folder: Path = CHECKOUT) -> dict[str, Any] | None:
    """The commit of the checkout this package runs from and whether files differ from it.

    `diff` names how tracked files differ: the start of the SHA-256 of `git diff`. None outside a
    checkout, or without git.
    """
    if not (folder / ".git").exists():
        return None
    head, status, diff = (
        _git(folder, *arguments)
        for arguments in (
            ("rev-parse", "HEAD"),
            ("status", "--porcelain"),
            ("diff", "--binary", "HEAD"),
        )
    )
    if head is None or status is None:
        return None
    about = {"commit": head.decode().strip(), "dirty": bool(status)}
    return about | ({"diff": hashlib.sha256(diff).hexdigest()[:16]} if diff else {})


@lru_cache
def code_digest(package: Path = PACKAGE) -> str:
    """The start of the SHA-256 of the source files that decide the numbers of a row."""
    sha = hashlib.sha256()
    for file in sorted(file for name in COMPUTING for file in (package / name).rglob("*.py")):
        content = file.read_bytes()
        sha.update(f"{file.relative_to(package)} {len(content)}\n".encode() + content)
    return sha.hexdigest()[:16]


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def _git(folder: Path, *arguments: str) -> bytes | None:
    return _output("git", "-C", str(folder), *arguments)


@lru_cache
def _driver() -> str | None:
    """The version of the NVIDIA driver."""
    output = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return output.decode().split("\n")[0].strip() if output else None


def _output(*command: str) -> bytes | None:
    """What a command prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
