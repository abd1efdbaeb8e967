"""Edits that need the second image."""

from collections import Counter

import numpy as np
import pytest

from topi.bench.data import VISUAL, MiniEditPlus
from topi.bench.data.drawing import COLOURS
from topi.bench.data.mini_edit_plus import EDITS, TASKS, draw_plus, draw_plus_edit

ALL = [edit for edits in EDITS.values() for edit in edits]


def test_draws_two_references_and_the_edit():
    for index in range(8):
        first, second, edited, instruction, category, task = draw_plus("train", index, (104, 152))
        for image in (first, second, edited):
            assert image.shape == (104, 152, 3) and image.dtype == np.uint8
        assert "second image" in instruction
        assert category == VISUAL and task in TASKS


def test_splits_are_disjoint_and_held_out_ones_stratified():
    seen = {}
    for split in ("train", "calibration", "evaluation"):
        for i in range(16):
            for image in draw_plus(split, i, 64)[:2]:
                assert seen.setdefault(image.tobytes(), split) == split
    data = MiniEditPlus("calibration")
    assert len(data) == 48
    assert Counter(data[i].task for i in range(48)) == dict.fromkeys(TASKS, 24)
    drawn = Counter(draw_plus("train", i, 64)[5] for i in range(200))
    assert all(60 < drawn[task] < 140 for task in TASKS)


def test_a_sample_has_what_an_editor_needs():
    sample = MiniEditPlus("evaluation", "mixed")[1]
    assert [image.size for image in sample.references] == [(80, 112), (104, 152)]
    assert sample.size == (152, 104) == sample.target.size[::-1]
    assert sample.id == "mini_edit_plus-evaluation-152x104from112x80-00001"
    assert sample.changed.any() and not sample.changed.all()


@pytest.mark.parametrize("edit", EDITS["visual_reference"])
def test_the_thing_of_the_second_image_is_named_by_its_kind_alone(edit):
    for seed in range(8):
        done, second = edit(np.random.default_rng(seed), (128, 128))
        taken = done.instruction.split(" the ")[-1 if edit.__name__ == "swap" else 1].split()[0]
        shown = done.edited.things[-1 if done.index is None else done.index]
        words = done.instruction.replace(done.scene.things[done.index or 0].name, "")
        assert not set(words.split()) & set(COLOURS)
        assert second.shape == (128, 128, 3)
        if edit.__name__ == "put":
            assert shown.kind == taken


def test_the_second_image_decides_the_edit():
    """The same first image and words with another second image: another edit."""
    from topi.bench.data.mini_edit_plus import made_of

    edit, second = EDITS["visual_material_transfer"][0](np.random.default_rng(0), (128, 128))
    region = np.abs(edit.before - edit.after).max(-1) > 0.04
    other = made_of(edit.scene, edit.index, 1 - second)
    assert np.abs(other - edit.after)[region].mean() > 0.1
    assert np.allclose(other[~region], edit.after[~region], atol=0.1)


def test_a_material_shows_only_on_the_body():
    edit, *_ = EDITS["visual_material_transfer"][0](np.random.default_rng(3), (128, 128))
    share = (np.abs(edit.before - edit.after).max(-1) > 0.04).mean()
    assert 0 < share < 0.2
    assert edit.after.min() >= 0 and edit.after.max() < 1.02  # Lanczos rings


def test_a_background_is_that_of_the_second_image():
    edit, second = EDITS["visual_material_transfer"][1](np.random.default_rng(3), (96, 128))
    empty = np.abs(edit.after - second).max(-1) < 1e-6
    assert 0.4 < empty.mean() < 1


def test_what_is_drawn_is_known():
    edit, second, task = draw_plus_edit("evaluation", 0, 128)
    assert task == "visual_reference"
    assert len(edit.edited.things) == len(edit.scene.things) + 1
    assert second.shape == (128, 128, 3)


def test_two_references_are_needed():
    with pytest.raises(ValueError, match="too few: mini_edit_plus needs 2"):
        MiniEditPlus(references=1)
