"""Refuse results that were computed on other samples than those that are drawn today."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from topi.bench.data.manifest import VERSION
from topi.bench.data.mini_edit import MiniEdit
from topi.bench.data.mini_edit_plus import MiniEditPlus
from topi.errors import ToPiError

_DRAWN = {cls.name: cls for cls in (MiniEdit, MiniEditPlus)}


def check_result(about: Mapping[str, Any]) -> None:
    """Compare the data fingerprint in a cell's manifest with MiniEdit's; other data always pass.

    Raises:
        ToPiError: the cell rests on other samples, or MiniEdit is not the frozen one.
    """
    data = about.get("config", {}).get("data", {})
    if data.get("name") not in _DRAWN or "data" not in about:
        return
    sizes = (data.get("size", 128), data.get("reference_size"))
    sizes = tuple(tuple(size) if isinstance(size, list) else size for size in sizes)
    split, references = data.get("split", "evaluation"), data.get("references")
    now = _fingerprint(data["name"], split, *sizes, references)
    if now != about["data"]:
        raise ToPiError(
            f"the cell {about.get('key')} was computed on other samples than MiniEdit {VERSION} "
            f"has (fingerprint {about['data']}, now {now}): remove it and run it again, or read it "
            "with the version that wrote it"
        )


@cache
def _fingerprint(
    name: str, split: str, size: Any, reference_size: Any, references: int | None
) -> str:
    _DRAWN[name].verify()
    return _DRAWN[name](split, size, None, reference_size, references).fingerprint()
