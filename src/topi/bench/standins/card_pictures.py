"""Pictures of the model card: grids of edits, and recorded edits that a machine can repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from topi.bench.data import MiniEdit
from topi.bench.data.mini_edit_plus import EDITS, MiniEditPlus
from topi.bench.editors.editor import Editor

RECORDED_STEPS = 4


def picture_grid(editor: Editor, chosen: Mapping[str, Sequence[int]]) -> Image.Image:
    """Reference, edit and true edit of chosen samples, one category per row."""
    evaluation = MiniEdit("evaluation", editor.config.height)
    return _grid(
        [
            [(s.copy, editor.edit(s), s.target) for s in (evaluation[k] for k in indices)]
            for indices in chosen.values()
        ]
    )


def recorded_edits(editor: Editor) -> Image.Image:
    """Four held-out edits with few steps, side by side. Another machine should repeat them.

    They are one of each category, or one of each kind of edit with two references.
    """
    data = MiniEditPlus if editor.config.kind == "qwen_edit_plus" else MiniEdit
    quick = Editor(replace(editor.config, steps=RECORDED_STEPS), editor.pipe, editor.fingerprint())
    edits = [quick.edit(sample) for sample in data("evaluation", editor.config.height, 4)]
    return Image.fromarray(np.concatenate([np.asarray(edit.convert("RGB")) for edit in edits], 1))


def recording(name: str, folder: Path) -> Path:
    """The file of `recorded_edits` beside the weights."""
    return folder / f"recorded_{name}.png"


def two_reference_grid(editor: Editor, rows: int = 4) -> Image.Image:
    """First and second reference, edit and true edit; one column for each kind of edit."""
    kinds = sum(map(len, EDITS.values()))
    samples = list(MiniEditPlus("evaluation", editor.config.height, rows * kinds))
    groups = [(*s.references, editor.edit(s), s.target) for s in samples]
    return _grid([groups[k : k + kinds] for k in range(0, len(groups), kinds)])


def _grid(rows: Sequence[Sequence[Sequence[Image.Image]]]) -> Image.Image:
    """Pictures of one size: rows of groups, with white between the groups."""
    lines = []
    for groups in rows:
        cells = []
        for images in groups:
            cells += [np.asarray(image.convert("RGB")) for image in images]
            cells.append(np.full((cells[0].shape[0], 8, 3), 255, np.uint8))
        lines += [np.concatenate(cells, 1), np.full((8, sum(c.shape[1] for c in cells), 3), 255)]
    return Image.fromarray(np.concatenate(lines).astype(np.uint8))
