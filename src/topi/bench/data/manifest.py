"""What MiniEdit 1.0 is, and whether the samples of today are still the frozen ones."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from topi.bench.data.sample import EditSample
from topi.errors import ToPiError

FILE = Path(__file__).with_name("mini_edit.json")
VERSION = "1.0"


@lru_cache(maxsize=1)
def manifest() -> dict[str, Any]:
    """The frozen manifest; empty before the first `python -m topi.bench.data.freeze`."""
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


@lru_cache(maxsize=32)
def hashes(key: str) -> tuple[str, ...]:
    """The frozen hashes of the samples of `<dataset>-<split>-<size>`, by index; maybe none."""
    return tuple(manifest().get("hashes", {}).get(key, "").split())


def check(key: str, index: int, sample: EditSample) -> None:
    """Compare a sample with the manifest.

    Raises:
        ToPiError: it is not listed, or its pixels or its instruction are not the frozen ones.
    """
    frozen = hashes(key)
    if index >= len(frozen):
        raise ToPiError(f"{FILE.name} does not list {sample.id}: reinstall the package")
    if sample.digest() != frozen[index]:
        raise ToPiError(
            f"sample {sample.id} is not that of MiniEdit {VERSION}: its hash is {sample.digest()}, "
            f"the manifest has {frozen[index]}. Either numpy or Pillow differ from the versions in "
            "requirements.txt, or the generator was changed; results of the two do not mix."
        )
