"""The identity of a result: a hash over everything it depends on, and nothing else."""

import hashlib
import json
from typing import Any


def canonical(content: Any) -> str:
    """One text for equal content: sorted keys, no spaces; tuples are lists, 1.0 is 1.

    Raises:
        TypeError: the content is not plain data.
    """
    return json.dumps(_plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(content: Any, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of the canonical text."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:length]


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float) and content.is_integer():
        return int(content)  # tau=1 and tau=1.0 are one cell
    return content
