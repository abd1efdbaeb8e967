"""The unmodified full-context run: ground truth of quality and baseline of latency."""

from dataclasses import dataclass
from typing import ClassVar

from topi.methods.base import Method


@dataclass
class Full(Method):
    """Change nothing; record the calls."""

    variants: ClassVar = {"full": {}}
