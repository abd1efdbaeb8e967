"""Batches are a function of the step."""

import numpy as np
import pytest
import torch

from topi.bench.data.mini_edit import draw_pair, train_task
from topi.bench.data.mini_edit_plus import draw_plus, train_plus_task
from topi.bench.editors.standin import FAMILIES
from topi.bench.standins.stream import (
    STRIDE,
    Draw,
    displaced,
    draw_batch,
    index_among,
    loader,
    resized,
    validation_batches,
)

KONTEXT, QWEN = (FAMILIES[kind].reference_size for kind in ("kontext", "qwen_edit"))
SIZES = [(64, 64), (48, 80)]


def digest_of(image: torch.Tensor) -> bytes:
    return image.numpy().tobytes()


def digest(batch) -> int:
    pixels = torch.cat([x.flatten() for x in (batch.edited, *batch.references)]).long()
    return int((pixels * torch.arange(1, len(pixels) + 1)).sum())


def test_batches_differ_by_step_and_phase():
    draw = Draw(SIZES, 2, KONTEXT, shift=3, scale=1.2)
    digests = [digest(draw_batch(draw, step, phase)) for step, phase in ((0, 0), (7, 0), (7, 1))]
    assert len(set(digests)) == 3
    assert digest(draw_batch(draw, 7, 1)) == digests[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_goes_on_where_it_is_told_to(workers):
    draw = Draw([(48, 48)], 1, KONTEXT)
    batches = iter(loader(draw, 0, 5, workers))
    for step in (5, 6, 7):
        assert digest(next(batches)) == digest(draw_batch(draw, step))


def test_drawing_takes_no_threads_from_the_training():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        next(iter(loader(Draw([(48, 48)], 1, KONTEXT), 0, 0, 0)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_larger_images_make_smaller_batches():
    counts = {
        tuple(b.edited.shape[1:3]): len(b.prompts)
        for b in (draw_batch(Draw([(48, 48), (96, 96)], 8, KONTEXT), k) for k in range(12))
    }
    assert counts == {(48, 48): 8, (96, 96): 2}


def test_references_have_the_size_that_the_pipeline_gives_them():
    batch = draw_batch(Draw([(104, 152)], 1, QWEN), 0)
    assert batch.edited.shape[1:] == (104, 152, 3)  # 13 x 19 tokens
    assert batch.references[0].shape[1:] == (96, 160, 3)  # 12 x 20: multiples of 32 px
    batch = draw_batch(Draw([(104, 152)], 1, KONTEXT), 0)
    assert batch.references[0].shape == batch.edited.shape


def test_enlarged_pictures_are_the_same_on_a_finer_grid():
    plain, large = (draw_batch(Draw([(48, 64)], 2, KONTEXT, enlarge=n), 3) for n in (1, 2))
    assert large.edited.shape == large.references[0].shape == (2, 96, 128, 3)
    assert large.prompts == plain.prompts
    for small, wide in zip(plain.edited, large.edited, strict=True):
        assert (resized(wide.numpy(), (48, 64)).astype(int) - small.numpy()).std() < 10


def test_chosen_tasks_are_drawn_alone_or_by_their_share():
    def share(focus):
        draw = Draw([(48, 48)], 40, KONTEXT, focus=focus, focus_on=("add", "zoom"))
        batch = draw_batch(draw, 0)
        assert len({digest_of(image) for image in batch.edited}) == 40
        asked = [prompt.split()[0] in ("add", "zoom", "move") for prompt in batch.prompts]
        return sum(asked) / 40

    assert share(1.0) == 1 > share(0.5) > share(0.0)
    index = index_among(("add", "zoom"), 3, train_task)
    assert index >= 3 and index % STRIDE == 3  # no other index of the batch can come to be the same
    assert draw_pair("train", index, 48)[4] == train_task(index)
    assert train_task(index) in ("add", "zoom")


def test_chosen_tasks_with_two_references_are_drawn_alone():
    def batch(*tasks):
        return draw_batch(Draw([(48, 48)], 24, KONTEXT, plus=1.0, focus=1.0, focus_on=tasks), 0)

    def takes_a_thing(prompt):
        return prompt.startswith(("put", "add", "replace"))

    assert all(map(takes_a_thing, batch("visual_reference", "zoom").prompts))
    assert not any(map(takes_a_thing, batch("visual_material_transfer").prompts))
    either = batch("zoom").prompts  # names no task with two references: these are all drawn
    assert 0 < sum(map(takes_a_thing, either)) < 24
    for index in range(8):
        assert draw_plus("train", index, 48)[5] == train_plus_task(index)


def test_references_may_have_a_size_of_their_own():
    draw = Draw([(48, 64, 64, 72)], 2, KONTEXT)
    (held_out,) = validation_batches(draw, count=4)
    for batch in (draw_batch(draw, 0), held_out):
        assert batch.edited.shape[1:3] == (48, 64) and batch.references[0].shape[1:3] == (64, 72)
    plain = draw_batch(Draw([(48, 64)], 2, KONTEXT), 0)
    assert torch.equal(plain.edited, draw_batch(draw, 0).edited)
    (wide,) = draw_batch(Draw([(48, 64, 64, 72)], 2, KONTEXT, enlarge=2), 0).references
    assert wide.shape[1:3] == (128, 144)


def test_an_unrelated_scene_stands_beside_the_reference():
    plain, beside = (draw_batch(Draw([(48, 64)], 3, KONTEXT, beside=b), 5) for b in (0.0, 1.0))
    (references,) = beside.references
    assert references.shape == (3, 48, 128, 3) and beside.prompts == plain.prompts
    assert torch.equal(references[:, :, :64], plain.references[0])
    others = {digest_of(image) for image in references[:, :, 64:]}
    assert len(others) == 3 and not others & {digest_of(image) for image in plain.references[0]}


@pytest.mark.parametrize("share, width", [(0.1, 64), (1.0, 128)])
def test_validation_shows_an_unrelated_scene_where_training_does(share, width):
    (batch,) = validation_batches(Draw([(48, 64)], 1, KONTEXT, beside=share), count=4)
    assert batch.references[0].shape[1:3] == (48, width)


def test_displaced_moves_the_picture_by_at_most_its_shift():
    image = np.zeros((32, 32, 3), np.uint8)
    image[15:17, 15:17] = 255
    rng = np.random.default_rng(0)
    assert displaced(image, 0, 1.0, rng) is image
    places = set()
    for _ in range(40):
        rows, columns, _ = displaced(image, 4, 1.0, rng).nonzero()
        places.add((int(rows.min()) - 15, int(columns.min()) - 15))
    assert all(abs(v) <= 4 for place in places for v in place) and len(places) > 15
    wide = [(displaced(image, 0, 2.0, rng) > 127).any((0, 2)).sum() for _ in range(40)]
    assert min(wide) <= 1 and max(wide) >= 3  # half and twice the width


def test_resized_leaves_the_right_size_alone():
    image = np.zeros((16, 24, 3), np.uint8)
    assert resized(image, (16, 24)) is image
    assert resized(image, (8, 16)).shape == (8, 16, 3)


def test_validation_holds_every_category_equally():
    (batch,) = validation_batches(Draw([(64, 64)], 1, KONTEXT))
    assert [batch.categories.count(c) for c in dict.fromkeys(batch.categories)] == [6, 6, 6, 6]


def test_validation_has_other_shapes_and_two_references_if_training_does():
    draw = Draw([(64, 64), (64, 72), (48, 64, 64, 72)], 1, KONTEXT)
    first, other = validation_batches(draw, count=8)
    assert (first.name, first.edited.shape[:3]) == ("", (8, 64, 64))
    assert (other.name, other.edited.shape[:3]) == ("other_shape", (4, 48, 64))
    assert other.references[0].shape[1:3] == (64, 72)
    draw = Draw([(64, 64), (64, 64)], 1, QWEN, plus=0.25)
    first, two = validation_batches(draw, count=8)
    assert first.name == "" and len(first.references) == 1
    assert two.name == "two_references" and [len(r) for r in two.references] == [4, 4]
    assert all("second image" in prompt for prompt in two.prompts)


def test_batches_with_two_references():
    draw = Draw([(104, 152)], 2, QWEN, plus=0.5)
    counts = [len(draw_batch(draw, step).references) for step in range(8)]
    assert set(counts) == {1, 2}
    batch = draw_batch(draw, counts.index(2))
    assert [r.shape for r in batch.references] == [(2, 96, 160, 3)] * 2
    assert all("second image" in prompt for prompt in batch.prompts)
