"""The check passes the true edit, also a soft one, and nothing else that an editor might do."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from topi.bench.data import MiniEdit
from topi.bench.data.edit_check import TRUE, UNCHANGED, alternatives, check_edit, check_taken, judge
from topi.bench.data.mini_edit import draw_edit
from topi.bench.data.mini_edit_plus import MiniEditPlus, draw_plus_edit
from topi.bench.data.scene import Thing
from topi.bench.data.tasks import EDITS, TASKS, to_uint8

LOCAL = list(range(3, 80, 4))  # four samples of each task


def picture(scene, size=(128, 128)):
    return to_uint8(scene.render(size))


def with_three_things(task):
    """An edit in a scene of three things or more, on which all alternatives can be tried."""
    for seed in range(100):
        edit = EDITS[task](np.random.default_rng(seed), (128, 128))
        if len(edit.scene.things) >= 3:
            return edit
    raise AssertionError(task)


def test_true_edit_passes_and_reference_fails():
    data = MiniEdit("evaluation")
    for i in LOCAL:
        sample = data[i]
        verdict = check_edit("evaluation", i, 128, sample.target)
        assert verdict.made and verdict.nearest == TRUE and verdict.missing < 0.001
        verdict = check_edit("evaluation", i, 128, sample.references[0])
        assert not verdict.made and verdict.nearest == UNCHANGED
        assert verdict.missing == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("damage", ["blurred", "noisy", "shifted colours"])
def test_an_imperfect_true_edit_passes(damage):
    data = MiniEdit("evaluation")
    for i in LOCAL:
        image = data[i].target
        if damage == "blurred":
            image = image.filter(ImageFilter.GaussianBlur(1))
        else:
            noise = np.random.default_rng(i).normal(0, 12, (128, 128, 3))
            shift = noise if damage == "noisy" else 8
            image = Image.fromarray(np.uint8(np.clip(np.asarray(image, float) + shift, 0, 255)))
        assert check_edit("evaluation", i, 128, image).made, (i, data[i].instruction)


@pytest.mark.parametrize("task", TASKS["local_edit"])
def test_every_alternative_fails_under_its_own_name(task):
    edit = with_three_things(task)
    names = []
    for name, scene in alternatives(task, edit, (128, 128)).items():
        verdict = judge(task, edit, (128, 128), picture(scene))
        assert not verdict.made and verdict.nearest == name
        names.append(name)
    kinds = {name.split(":")[0] for name in names}
    assert len(names) == len(set(names))
    assert {UNCHANGED, "lost"} <= kinds
    expected = {
        "add": {"colour", "kind", "place"},
        "remove": {"object"},
        "replace": {"colour", "kind", "object", "removed"},
        "recolour": {"colour", "kind", "object", "removed", "also"},
        "move": {"colour", "kind", "object", "removed", "place", "doubled"},
    }
    assert kinds == expected[task] | {UNCHANGED, "lost"}


def test_wrong_colour_object_and_place_of_an_added_thing():
    index = next(i for i in LOCAL if draw_edit("evaluation", i, 128)[2] == "add")
    edit, *_ = draw_edit("evaluation", index, 128)
    new = edit.edited.things[-1]

    def verdict(**change):
        things = (*edit.scene.things, replace(new, **change))
        return check_edit("evaluation", index, 128, picture(replace(edit.scene, things=things)))

    other = "blue" if new.colour != "blue" else "red"
    assert verdict().made
    assert verdict(colour=other).nearest == f"colour: {other}"
    assert verdict(kind="fish" if new.kind != "fish" else "car").nearest.startswith("kind: ")
    for change in ({"colour": other}, {"kind": "ring"}, {"x": new.x - 20}, {"y": new.y + 20}):
        assert not verdict(**change).made
    assert verdict(x=new.x + 1).made  # not to the pixel


def test_a_blob_in_the_right_place_is_not_the_object():
    for i in LOCAL[:5]:
        edit, _, task = draw_edit("evaluation", i, 128)
        region = np.abs(edit.before - edit.after).max(-1) > 0.04
        image = edit.before.copy()
        image[region] = image[region].mean(0)
        assert not judge(task, edit, (128, 128), to_uint8(image)).made


def test_collateral_loss_fails_although_the_edit_was_made():
    edit = with_three_things("remove")
    other = next(j for j in range(len(edit.scene.things)) if j != edit.index)
    lost = edit.scene.things[other]
    both = replace(
        edit.scene,
        things=tuple(t for j, t in enumerate(edit.scene.things) if j not in (other, edit.index)),
    )
    verdict = judge("remove", edit, (128, 128), picture(both))
    assert not verdict.made and verdict.nearest == f"lost: {lost.name}"
    assert verdict.missing < 0.1


def test_what_cannot_be_seen_is_no_alternative():
    edit = with_three_things("recolour")
    front = edit.scene.things[edit.index]
    hidden = Thing("ball", "red", 10, front.x, front.y)  # behind the box that is recoloured
    front = replace(front, kind="box")
    scene = replace(edit.scene, things=(hidden, front))
    edited = replace(scene, things=(hidden, replace(front, colour="white")))
    front_colour = replace(scene, things=(hidden, replace(front, colour="blue")))
    covered = replace(
        edit,
        scene=front_colour,
        edited=edited,
        index=1,
        before=front_colour.render((128, 128)),
        after=edited.render((128, 128)),
    )
    assert judge("recolour", covered, (128, 128), to_uint8(covered.after)).nearest == TRUE


def test_other_shapes_are_checked_at_their_size():
    data = MiniEdit("evaluation", "mixed")
    for i in LOCAL[:6]:
        sample = data[i]
        assert check_edit("evaluation", i, sample.size, sample.target).made
        assert not check_edit("evaluation", i, sample.size, sample.copy).made


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match="only local edits"):
        check_edit("evaluation", 0, 128, np.zeros((128, 128, 3), np.uint8))
    with pytest.raises(ValueError, match="resize it first"):
        check_edit("evaluation", 3, 128, np.zeros((64, 128, 3), np.uint8))


@pytest.mark.parametrize("index, kind", [(0, "put"), (2, "swap"), (4, "put"), (6, "swap")])
def test_a_thing_of_the_second_image_has_to_be_that_thing(index, kind):
    sample = MiniEditPlus("evaluation")[index]
    edit, _, _ = draw_plus_edit("evaluation", index, 128)
    assert (edit.index is None) == (kind == "put")
    assert check_taken("evaluation", index, 128, sample.target).made
    assert check_taken("evaluation", index, 128, sample.copy).nearest == UNCHANGED
    taken = edit.edited.things[-1 if edit.index is None else edit.index]
    at = len(edit.scene.things) if edit.index is None else edit.index
    colour = "white" if taken.colour != "white" else "red"
    other = picture(edit.edited.swap(at, replace(taken, colour=colour)))
    verdict = check_taken("evaluation", index, 128, other)
    assert not verdict.made and verdict.nearest == f"colour: {colour}"
    with pytest.raises(ValueError, match="only taken things"):
        check_taken("evaluation", index + 1, 128, sample.target)
