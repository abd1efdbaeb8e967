"""RegionE-like freezing: the region by hand, frozen tokens against Euler steps by hand."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from topi import RefKV, RegionE
from topi.engine import Call, CallRecord
from topi.errors import ToPiError
from topi.methods.rivals.regione import clean, edited_tokens, grow
from topi.models import Layout, ModelFacts
from topi.models.tiny import random_image

EARLY = {"first_anchor": 0, "update_every": 3, "last_full": 1}


def picture(*rows):
    return torch.tensor([[square == "x" for square in row] for row in rows])


class TestRegion:
    def test_erosion_and_dilation(self):
        blob = picture("x....", ".....", "..x..", ".xxx.", "..x..")
        assert clean(blob).nonzero().tolist() == [[3, 2]]
        assert grow(clean(blob)).sum() == 4 * 5  # rows 1 to 4
        assert clean(torch.ones(2, 4, 3, dtype=torch.bool)).all()

    def test_only_the_border_differs_from_the_released_code(self):
        """Which convolves with zero padding and counts."""

        def released(mask, outside):
            cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
            padded = F.pad(mask[None, None].float(), (1,) * 4, value=outside)
            eroded = (F.conv2d(padded, cross[None, None]) == 5).float()
            return F.conv2d(eroded, torch.ones(1, 1, 5, 5), padding=2)[0, 0] > 0

        def ours(mask):
            return grow(clean(mask))

        generator = torch.Generator().manual_seed(0)
        for share in torch.linspace(0.5, 1, 20):
            mask = torch.rand(16, 12, generator=generator) < share
            assert torch.equal(ours(mask), released(mask, outside=1))
            inside = mask.clone()
            inside[[0, -1]], inside[:, [0, -1]] = False, False
            assert torch.equal(ours(inside), released(inside, outside=0))
        top = torch.arange(16)[:, None].expand(16, 16) < 2  # 48 tokens against none
        assert (ours(top).sum(), released(top, outside=0).sum()) == (48, 0)

    def test_tokens_unlike_their_reference(self):
        final = torch.zeros(1, 6, 7, 2)
        final[..., 0] = 1
        reference = final.clone()
        final[0, 0:2, 0:2] = torch.tensor([0.0, 1.0])
        final[0, 5, 6] = -1  # a token of its own is noise
        found = edited_tokens(final, reference, 0.93)
        assert found.shape == (1, 6, 7)
        assert found[0].nonzero().tolist() == [[i, j] for i in range(3) for j in range(3)]
        assert edited_tokens(final, reference, 1.0).all()
        assert not edited_tokens(final, reference, -1.5).any()


ROW = Layout(1, (1, 12), ((1, 12),))


class Drive:
    """RegionE call by call, on straight paths x_t = final + t velocity of samples [B, 12, 2]."""

    def __init__(self, **params):
        self.method = RegionE(**EARLY | {"last_full": 0} | params)
        self.method.prepare(ModelFacts("Flux", (1, 1), (("attention",),) * 2, None))

    def begin(self, step, latents, branch="cond"):
        """What it is to compute, None for all."""
        timestep = 0.9 - step / 10
        record = CallRecord(step, branch, ROW, len(latents))
        call = Call(
            step, branch, ROW, len(latents), torch.device("cpu"), record, 10, latents, timestep
        )
        self.method.begin(call)
        if record.anchor:
            self.method._store.put(branch, 0, *torch.zeros(2, len(latents), 24, 1, 1))
        self.call = call
        active = self.method.active(call)
        record.computed = None if active is None else len(active)
        return None if active is None else active.tolist()

    def along(self, step, *edited, seed=0):
        """Each sample ends as its reference, but for three tokens in a row from the given one."""
        reference = torch.tensor([1.0, 0]).expand(len(edited), 12, 2)
        final = reference.clone()
        for sample, first in zip(final, edited, strict=True):
            sample[first : first + 3] = torch.tensor([-1.0, 0])
        velocity = torch.randn(final.shape, generator=torch.Generator().manual_seed(seed))
        return torch.cat([final + (0.9 - step / 10) * 5 * velocity, reference], dim=1)


class TestRegionByStep:
    def test_each_anchor_finds_its_own(self):
        """Three tokens erode to one and grow to five, where the straight path ends elsewhere."""
        drive, found = Drive(), []
        for step in range(6):
            first, seed = (2, 0) if step < 3 else (8, 1)
            found.append(drive.begin(step, drive.along(step, first, seed=seed)))
        before, after = [1, 2, 3, 4, 5], [7, 8, 9, 10, 11]
        assert found == [None, before, before, None, after, after]

    def test_a_batch_computes_what_any_sample_edits(self):
        drive = Drive()
        drive.begin(0, drive.along(0, 0, 9))
        assert drive.begin(1, drive.along(1, 0, 9)) == [0, 1, 2, 3, 8, 9, 10, 11]

    def test_if_nothing_is_edited_it_is_the_token_least_like_its_reference(self):
        drive = Drive(threshold=-2.0)
        for step in (0, 1):
            latents = drive.along(step, 12)  # behind the last token
            latents[0, 6, 1] += 0.5
            found = drive.begin(step, latents)
        assert found == [6]

    def test_the_step_before_the_last_full_ones_is_no_anchor(self):
        """RegionE runs 0 to 5, 15, 26 and 27 of 28 in full, not 25; here 7 of 10 is no anchor."""
        drive, anchors, full = Drive(update_every=2, first_anchor=1, last_full=2), [], []
        for step in range(10):
            for branch in ("cond", "uncond"):
                drive.begin(step, drive.along(step, 2), branch)
                if drive.call.record.anchor:
                    anchors.append((step, branch))
                if drive.method.runs_in_full(drive.call):
                    full.append((step, branch))
        both = [(step, branch) for step in (1, 3, 5) for branch in ("cond", "uncond")]
        assert anchors == both
        assert {step for step, _ in full} == {0, 1, 3, 5, 8, 9}

    def test_without_last_full_steps_the_last_one_may_be_an_anchor(self):
        drive = Drive(last_full=0)
        found = [drive.begin(step, drive.along(step, 2)) for step in range(10)]
        assert [step for step in range(10) if found[step] is None] == [0, 3, 6, 9]

    def test_frozen_tokens_keep_the_output_of_the_anchor_of_their_branch(self):
        drive, anchors, outputs = Drive(), {}, torch.randn(6, 1, 24, 3)
        for step in range(6):
            for branch in ("cond", "uncond"):
                active = drive.begin(step, drive.along(step, 2), branch)
                output = outputs[step] + (branch == "uncond")
                if active is None:
                    anchors[branch] = output
                    assert drive.method.complete(drive.call, output) is output
                    continue
                expected = anchors[branch][:, :12].clone()
                expected[:, active] = output[:, active]
                found = drive.method.complete(drive.call, output[:, active])
                assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_if_all_is_edited_it_is_reference_kv_caching(tiny, kind):
    pipe, call = tiny(kind)
    images = []
    for method in (RegionE(threshold=2.0, **EARLY | {"last_full": 0}), RefKV(update_every=3)):
        with method(pipe):
            images.append(pipe(**call(steps=5)).images)
    assert torch.allclose(*images, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "batch"), [("flux", 1), ("flux", 2), ("qwen", 1), ("qwen_plus", 1)]
)
def test_frozen_tokens_go_straight_on(tiny, kind, batch):
    """Between anchors they have one velocity, guidance included: that of the anchor."""
    pipe, call = tiny(kind)
    seen = []

    def note(pipe, step, timestep, kwargs):
        seen.append(kwargs["latents"])
        return {}

    arguments = call(steps=6, batch=batch, cfg=True, callback_on_step_end=note)
    with RegionE(threshold=0.0, **EARLY)(pipe) as method:
        pipe(**arguments)
    levels = pipe.scheduler.sigmas
    records = {record.step: record for record in method.trace if record.branch == "cond"}
    assert [records[step].anchor for step in range(6)] == [True, False, False] * 2
    assert [records[step].computed is None for step in range(6)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    velocities = [
        (after - before) / (levels[step + 1] - levels[step])
        for step, (before, after) in enumerate(pairwise(seen), start=1)
    ]
    at_anchor, after = velocities[2], velocities[3]  # of steps 3 and 4
    n_active = records[4].computed
    assert 0 < n_active < 64
    straight = (after - at_anchor).abs().amax((0, 2)) < 1e-4
    assert straight.sum() == 64 - n_active
    uncond = {r.step: r.computed for r in method.trace if r.branch == "uncond"}
    assert all(records[step].computed == computed for step, computed in uncond.items())


def test_thresholds_are_those_published_for_the_models(flux, qwen):
    for pipe, threshold in ((flux[0], 0.93), (qwen[0], 0.8)):
        for given, expected in ((None, threshold), (0.5, 0.5)):
            method = RegionE(threshold=given)
            with method(pipe):
                assert method._threshold == expected


def test_one_token_is_always_computed(flux):
    pipe, call = flux
    with RegionE(threshold=-2.0, **EARLY)(pipe) as method:
        pipe(**call(steps=4))
    assert method.trace[1].computed == 1


def test_what_is_refused(flux, qwen_plus, recorded):
    pipe, call = flux
    kwargs, alone = recorded(pipe, call(steps=1))[0], RegionE(**EARLY)(pipe.transformer)
    with pytest.raises(ToPiError, match="attach it to the pipeline"), alone:
        pipe.transformer(**kwargs)
    pipe, call = qwen_plus
    wide = [random_image((160, 96), 4)]
    with pytest.raises(ToPiError, match="give the reference the size"), RegionE(**EARLY)(pipe):
        pipe(**call(steps=3, references=wide))
    for bad in ({"threshold": "high"}, {"last_full": -1}, {"update_every": -1}):
        with pytest.raises(ToPiError, match=f"{next(iter(bad))}="):
            RegionE(**bad)
