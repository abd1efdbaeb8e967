"""One in-context edit, the unit that every dataset yields and every editor consumes."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

#: The four AnyEdit groups that the paper reports (Table 1).
CATEGORIES = ("camera_move", "global_edit", "implicit_change", "local_edit")
#: AnyEdit's fifth group, edits by a second image: not in Table 1.
VISUAL = "visual_edit"

#: A pixel counts as edited where some channel of the true edit differs by more than this ([0, 1]).
CHANGED_THRESHOLD = 0.04


@dataclass(frozen=True)
class EditSample:
    """A reference image (or several), the instruction, and the true edit if there is one.

    `id` is unique within its dataset and safe as a file name. `category` is one of CATEGORIES, or
    VISUAL; `task` is the sub-task within it ("pan", "recolour", ...). `size` is the (height, width)
    that the output should have, in pixels; None leaves it to the model. `objects` counts the named
    things in the first reference, where they are known: a measure of difficulty.
    """

    id: str
    category: str
    task: str
    instruction: str
    references: tuple[Image.Image, ...]
    target: Image.Image | None = None
    size: tuple[int, int] | None = None
    objects: int | None = None

    @property
    def copy(self) -> Image.Image:
        """The first reference at the size of the true edit: the output if nothing is done."""
        if self.target is None or self.references[0].size == self.target.size:
            return self.references[0]
        return self.references[0].resize(self.target.size, Image.BICUBIC)

    @property
    def changed(self) -> np.ndarray | None:
        """[H, W] bool: where the true edit differs visibly from the first reference."""
        if self.target is None:
            return None
        before, after = (np.asarray(i, np.float32) / 255 for i in (self.copy, self.target))
        return np.abs(after - before).max(-1) > CHANGED_THRESHOLD

    def digest(self) -> str:
        """A hash over the instruction and over size and pixels of all images."""
        digest = hashlib.sha256(self.instruction.encode())
        for image in (*self.references, *([self.target] if self.target else [])):
            digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
        return digest.hexdigest()[:12]
