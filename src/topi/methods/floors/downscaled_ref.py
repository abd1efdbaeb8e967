"""A smaller reference: the floor of all that makes do with fewer reference tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from topi.methods.base import Call, Method
from topi.methods.parameters import check_number
from topi.models.adapter import Grid
from topi.models.references import resized_references


@dataclass
class DownscaledRef(Method):
    """Resize the reference pictures before they become tokens; the trace counts against whole ones.

    Args:
        scale: of each side, in (0, 1]; 0.71 leaves half of the tokens.
    """

    variants: ClassVar = {"downscaled_ref": {}}

    scale: float = 0.71
    _grids: list[Grid] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the scale.

        Raises:
            ToPiError: it is out of range.
        """
        super().__post_init__()
        check_number("scale", self.scale, "in (0, 1]", lambda number: 0 < number <= 1)

    @contextmanager
    def around(self, model: Any) -> Iterator[None]:
        """Hold the pipeline, which resizes."""
        if self.scale == 1:
            yield
            return
        with resized_references(model, self.scale) as self._grids:
            yield

    def begin(self, call: Call) -> None:
        """Tell what the full run would have had."""
        if self._grids:
            full = replace(call.layout, reference_grids=tuple(self._grids))
            call.record.full_layout = full
