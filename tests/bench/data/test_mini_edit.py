"""MiniEdit is deterministic, stratified, and its edits do what the instruction says."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from topi.bench.data import CATEGORIES, MiniEdit, MiniEditPlus
from topi.bench.data.mini_edit import COUNTS, SHAPES, draw_pair
from topi.bench.data.tasks import EDIT_TYPES, EDITS, MOVE, PAN, PHRASES, TASKS
from topi.errors import ToPiError

SIZES = [(64, 64), (96, 96), (128, 128), (104, 152), (152, 104)]


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


def test_evaluation_spans_simple_to_dense_scenes():
    data = MiniEdit("evaluation")
    assert len(data) == COUNTS["evaluation"] == 512
    objects = Counter((s.category, s.objects) for s in (data[i] for i in range(96)))
    assert {(c, n) for c in CATEGORIES for n in (1, 2, 3, 4)} == set(objects)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", sorted(EDITS))
def test_every_task_changes_the_image(task, size):
    changed = []
    for seed in range(6):
        edit = EDITS[task](np.random.default_rng(seed), size)
        assert edit.before.shape == edit.after.shape == (*size, 3)
        assert edit.instruction and edit.instruction == edit.instruction.strip()
        changed.append(np.abs(edit.before - edit.after).max() > 0.04)
    # An autumn without leaves or a far-off pan may leave one picture alone, never most of them.
    assert sum(changed) >= 4


@pytest.mark.parametrize("size", [(128, 128), (104, 168)])
@pytest.mark.parametrize("task", TASKS["local_edit"] + ("rotate", "resize"))
def test_object_edits_leave_the_rest_alone(task, size):
    for seed in range(6):
        edit = EDITS[task](np.random.default_rng(seed), size)
        share = (np.abs(edit.before - edit.after).max(-1) > 0.04).mean()
        assert 0 < share < 0.25


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_pan_shifts_the_view(size):
    shifts = {"left": (0, -PAN), "right": (0, PAN), "up": (-PAN, 0), "down": (PAN, 0)}
    for seed in range(4):
        edit = EDITS["pan"](np.random.default_rng(seed), size)
        dy, dx = shifts[edit.instruction.split()[-1]]
        y, x = max(dy, 0), max(dx, 0)
        h, w = size[0] - abs(dy), size[1] - abs(dx)
        moved = edit.after[y - dy : y - dy + h, x - dx : x - dx + w]
        assert np.array_equal(edit.before[y : y + h, x : x + w], moved)


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (64, 200)])
def test_zoom_fills_the_whole_view(size):
    phrases = set()
    for seed in range(8):
        edit = EDITS["zoom"](np.random.default_rng(seed), size)
        phrases.add(edit.instruction)
        assert edit.before.shape == edit.after.shape == (*size, 3)
    assert len(phrases) > 2  # both in and out


def test_moved_object_is_named_and_travels():
    edit = EDITS["move"](np.random.default_rng(2), (128, 128))
    assert edit.instruction.startswith(f"move the {edit.scene.things[edit.index].name} ")
    rows, columns = np.nonzero(np.abs(edit.before - edit.after).max(-1) > 0.04)
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


def test_every_task_stands_for_a_type_of_anyedit():
    assert set(EDIT_TYPES) == set(EDITS) == {t for tasks in TASKS.values() for t in tasks}


# ------------------------------------------------------------------------------------- shapes
def test_one_side_and_a_square_pair_are_the_same():
    for a, b in zip(draw_pair("train", 5, 96), draw_pair("train", 5, (96, 96)), strict=True):
        assert np.array_equal(a, b)


def test_a_reference_of_another_size_shows_the_same_view():
    before, after, *_ = draw_pair("evaluation", 3, (120, 120))
    small, same, *_ = draw_pair("evaluation", 3, (120, 120), (80, 80))
    assert small.shape == (80, 80, 3)
    assert np.array_equal(after, same)
    blocks = before.reshape(40, 3, 40, 3, 3).mean((1, 3))
    coarse = small.reshape(40, 2, 40, 2, 3).mean((1, 3))
    assert np.abs(blocks - coarse).mean() < 3


def test_mixed_shapes_meet_every_category_and_task():
    data = MiniEdit("evaluation", "mixed")
    met = Counter()
    for i in range(60):
        sample = data[i]
        target, reference = SHAPES[i % 3]
        assert sample.size == target == sample.target.size[::-1]
        assert sample.references[0].size[::-1] == reference
        met[sample.category, sample.size] += 1
        assert sample.changed.shape == target
    assert met == {(c, target): 5 for c in CATEGORIES for target, _ in SHAPES}
    assert any(t != r for t, r in SHAPES)
    assert any(n // 8 % 2 for t, _ in SHAPES for n in t)  # odd token grids


def test_ids_name_the_shape():
    def name(**options):
        return MiniEdit(**options)[1].id

    assert name() == "mini_edit-evaluation-128-00001"
    assert name(size=[64, 96]) == "mini_edit-evaluation-64x96-00001"
    assert name(size="mixed") == "mini_edit-evaluation-152x104from112x80-00001"


def test_fingerprint_tells_settings_apart():
    prints = {
        MiniEdit(split, *sizes).fingerprint()
        for split in ("train", "evaluation")
        for sizes in ((64,), (96,), ([64, 96],), (64, None, 96))
    }
    assert len(prints) == 8


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"split": "test"}, "choose from train, calibration, evaluation"),
        ({"size": 100}, "multiple of 8"),
        ({"size": [128, 100]}, "multiple of 8"),
        ({"size": [128]}, "multiple of 8"),
        ({"size": 40}, "too small"),
        ({"size": "large"}, '"mixed"'),
        ({"size": "mixed", "reference_size": 64}, "of its own"),
        ({"reference_size": 65}, "multiple of 8"),
        ({"references": 0}, "too few: mini_edit needs 1 or more"),
        ({"count": 0}, "between 1 and"),
        ({"count": 513}, "between 1 and 512"),
        ({"split": "calibration", "count": 49}, "between 1 and 48"),
    ],
)
def test_bad_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        MiniEdit(**arguments)


# --------------------------------------------------------------------- more references than needed
@pytest.mark.parametrize("cls", [MiniEdit, MiniEditPlus])
def test_further_references_change_nothing_else(cls):
    needed, three, four = cls(), cls(references=3), cls(references=4)
    for i in (5, 2):
        plain, more, most = needed[i], three[i], four[i]
        assert (more.id, more.instruction, more.category) == (
            plain.id,
            plain.instruction,
            plain.category,
        )
        assert more.target == plain.target and len(plain.references) == cls.needed
        assert (len(more.references), len(most.references)) == (3, 4)
        assert more.references[: cls.needed] == plain.references
        assert most.references[:3] == more.references
        assert len({image.tobytes() for image in most.references}) == 4
        assert cls(references=4)[i].references == most.references
    assert cls(references=cls.needed)[5].digest() == needed[5].digest()


def test_further_references_are_scenes_of_their_own():
    data = MiniEdit("evaluation", "mixed", references=3)
    seen = [image.tobytes() for i in range(8) for image in data[i].references]
    assert len(set(seen)) == 24
    other = MiniEdit("calibration", "mixed", references=3)[1].references[2]
    assert data[1].size == data[1].references[2].size[::-1] == other.size[::-1]
    assert data[1].references[2] != other


def test_the_number_of_references_makes_other_data():
    prints = [MiniEdit("evaluation", 64, references=n).fingerprint() for n in (None, 1, 2, 3)]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_a_needed_reference_that_differs_is_found_whatever_follows(monkeypatch):
    data = MiniEdit(references=2)
    drawn = data.draw(0)
    swapped = replace(drawn, references=drawn.references[::-1])
    monkeypatch.setattr(data, "draw", lambda index: swapped)
    with pytest.raises(ToPiError, match="is not that of MiniEdit"):
        data[0]
