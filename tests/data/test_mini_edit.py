"""MiniEdit is deterministic, stratified, and its edits do what the instruction says."""

from collections import Counter

import numpy as np
import pytest

from topi.data import CATEGORIES, MiniEdit
from topi.data.mini_edit import EDITS, MOVE, PAN, PHRASES, TASKS, draw_pair


def pixels(image) -> np.ndarray:
    return np.asarray(image, np.int16)


def test_sample_depends_on_split_index_and_size_alone():
    first, again = MiniEdit("evaluation"), MiniEdit("evaluation")
    for i in (0, 7, 3):  # out of order
        a, b = first[i], again[i]
        assert a.instruction == b.instruction
        assert np.array_equal(pixels(a.references[0]), pixels(b.references[0]))
        assert np.array_equal(pixels(a.target), pixels(b.target))


def test_splits_share_no_reference():
    seen = {}
    for split in ("train", "calibration", "evaluation"):
        for i in range(48):
            reference = draw_pair(split, i, 64)[0].tobytes()
            assert seen.setdefault(reference, split) == split
    assert len(seen) == 3 * 48


def test_any_first_samples_are_stratified():
    data = MiniEdit("calibration")
    assert len(data) == 48
    samples = [data[i] for i in range(48)]
    assert Counter(s.category for s in samples) == dict.fromkeys(CATEGORIES, 12)
    for category, tasks in TASKS.items():
        assert len(tasks) >= 4
        assert {s.task for s in samples if s.category == category} == set(tasks)
    assert len({s.id for s in samples}) == 48


@pytest.mark.parametrize("size", [64, 96, 128])
@pytest.mark.parametrize("task", sorted(EDITS))
def test_every_task_changes_the_image(task, size):
    changed = []
    for seed in range(6):
        before, after, instruction = EDITS[task](np.random.default_rng(seed), size)
        assert before.shape == after.shape == (size, size, 3)
        assert instruction and instruction == instruction.strip()
        changed.append(np.abs(before - after).max() > 0.04)
    # An autumn without leaves or a far-off pan may leave one picture alone, never most of them.
    assert sum(changed) >= 4


@pytest.mark.parametrize("task", TASKS["local_edit"] + ("rotate", "resize"))
def test_object_edits_leave_the_rest_alone(task):
    for seed in range(6):
        before, after, _ = EDITS[task](np.random.default_rng(seed), 128)
        share = (np.abs(before - after).max(-1) > 0.04).mean()
        assert 0 < share < 0.25


def test_pan_shifts_the_view():
    shifts = {"left": (0, -PAN), "right": (0, PAN), "up": (-PAN, 0), "down": (PAN, 0)}
    for seed in range(4):
        before, after, instruction = EDITS["pan"](np.random.default_rng(seed), 64)
        dy, dx = shifts[instruction.split()[-1]]
        y, x = max(dy, 0), max(dx, 0)
        h, w = 64 - abs(dy), 64 - abs(dx)
        moved = after[y - dy : y - dy + h, x - dx : x - dx + w]
        assert np.array_equal(before[y : y + h, x : x + w], moved)


def test_moved_object_is_named_and_travels():
    before, after, instruction = EDITS["move"](np.random.default_rng(2), 128)
    assert instruction.startswith("move the ")
    rows, columns = np.nonzero(np.abs(before - after).max(-1) > 0.04)
    span = max(np.ptp(rows), np.ptp(columns))
    assert span >= MOVE


def test_every_phrase_asks_for_one_effect():
    phrases = [p for effects in PHRASES.values() for ways in effects.values() for p in ways]
    assert len(phrases) == len(set(phrases))


def test_changed_mask_marks_the_true_edit():
    sample = MiniEdit("evaluation")[3]  # local_edit: add
    assert sample.task == "add"
    difference = np.abs(pixels(sample.references[0]) - pixels(sample.target)).max(-1)
    assert np.array_equal(sample.changed, difference > 0.04 * 255)


def test_fingerprint_tells_settings_apart():
    prints = {
        MiniEdit(split, size).fingerprint()
        for split in ("train", "evaluation")
        for size in (64, 96)
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"split": "test"}, "choose from train, calibration, evaluation"),
        ({"size": 100}, "multiple of 8"),
        ({"count": 0}, "between 1 and"),
    ],
)
def test_bad_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        MiniEdit(**arguments)
