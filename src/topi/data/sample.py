"""One in-context edit, the unit that every dataset yields and every editor consumes."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

#: The four AnyEdit groups that the paper reports (Table 1).
CATEGORIES = ("camera_move", "global_edit", "implicit_change", "local_edit")

#: A pixel counts as edited where some channel of the true edit differs by more than this ([0, 1]).
CHANGED_THRESHOLD = 0.04


@dataclass(frozen=True)
class EditSample:
    """A reference image (or several), the instruction, and the true edit if there is one.

    `id` is unique within its dataset and safe as a file name. `task` is the sub-task within the
    category ("pan", "recolour", ...).
    """

    id: str
    category: str
    task: str
    instruction: str
    references: tuple[Image.Image, ...]
    target: Image.Image | None = None

    @property
    def changed(self) -> np.ndarray | None:
        """[H, W] bool: where the true edit differs visibly from the first reference."""
        if self.target is None:
            return None
        before, after = (np.asarray(i, np.float32) / 255 for i in (self.references[0], self.target))
        return np.abs(after - before).max(-1) > CHANGED_THRESHOLD
