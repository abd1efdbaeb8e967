"""Steps, branches and restarts, from sequences of transformer calls."""

import pytest
import torch

from topi.engine.tracker import StepTracker


class Pipeline:
    """Calls a tracker as a pipeline would; each pipeline call makes its own positions."""

    def __init__(self, named):
        self.tracker = StepTracker()
        self.named = named

    def begin(self):
        self.positions = object()

    def step(self, timestep, branches=("cond", "uncond"), signature=0):
        latents = torch.zeros(1)
        return [
            self.tracker.observe(
                branch if self.named else None, timestep, latents, self.positions, signature
            )
            for branch in branches
        ]


def test_steps_and_branches_with_and_without_names():
    for named in (True, False):
        pipeline = Pipeline(named)
        pipeline.begin()
        assert pipeline.step(1.0) == [(True, 0, "cond"), (False, 0, "uncond")]
        assert pipeline.step(0.9) == [(False, 1, "cond"), (False, 1, "uncond")]
        assert pipeline.step(0.8, ["cond"]) == [(False, 2, "cond")]


def test_three_branches():
    pipeline = Pipeline(named=False)
    pipeline.begin()
    names = [branch for _, _, branch in pipeline.step(1.0, range(3))]
    assert names == ["cond", "uncond", "branch2"]


def test_second_order_schedulers_repeat_timesteps():
    for named in (True, False):
        pipeline = Pipeline(named)
        pipeline.begin()
        steps = [pipeline.step(t)[1] for t in (1.0, 0.9, 0.9, 0.8, 0.8)]
        assert steps == [(False, i, "uncond") for i in range(5)]


def test_first_timesteps_that_low_precision_makes_equal_are_steps_still():
    for named in (True, False):
        pipeline = Pipeline(named)
        pipeline.begin()
        assert [pipeline.step(1.0)[0][1] for _ in range(3)] == [0, 1, 2]


def test_a_new_pipeline_call_restarts_wherever_the_last_one_broke_off():
    for named in (True, False):
        for done in (1, 2, 3):
            pipeline = Pipeline(named)
            pipeline.begin()
            for timestep in (1.0, 0.9, 0.8)[:done]:
                pipeline.step(timestep)
            pipeline.begin()
            assert pipeline.step(1.0) == [(True, 0, "cond"), (False, 0, "uncond")]
            assert pipeline.step(0.9)[0] == (False, 1, "cond")


def test_a_call_that_broke_off_between_branches_restarts():
    for named in (True, False):
        pipeline = Pipeline(named)
        pipeline.begin()
        pipeline.step(1.0, ["cond"])
        pipeline.begin()
        assert pipeline.step(1.0)[0] == (True, 0, "cond")


def test_another_size_is_another_pipeline_call():
    pipeline = Pipeline(named=True)
    pipeline.begin()
    pipeline.step(1.0)
    assert pipeline.step(0.9, signature=1)[0] == (True, 0, "cond")


class Unread:
    """A timestep on a device that nobody may wait for."""

    def __float__(self):
        raise AssertionError("read")


class TestObjectsAlone:
    """Where a pipeline's schedule and positions are known, no timestep is read."""

    def start(self, named):
        tracker, schedule, positions, caller = StepTracker(), object(), object(), object()

        def see(branch, latents, timestep):
            return tracker.observe(
                branch if named else None, timestep, latents, positions, 0, schedule, caller
            )

        first = torch.zeros(1)
        assert see("cond", first, 1.0) == (True, 0, "cond")
        if named:  # its positions are not known yet
            assert see("uncond", first, 1.0) == (False, 0, "uncond")
        return see, first

    def test_branches_and_steps(self):
        for named in (True, False):
            see, latents = self.start(named)
            for step in range(3):
                if step or not named:
                    assert see("uncond", latents, Unread()) == (False, step, "uncond")
                latents = torch.zeros(1)
                assert see("cond", latents, Unread()) == (False, step + 1, "cond")

    def test_latents_that_were_written_to_may_be_those_of_another_step(self):
        see, latents = self.start(named=False)
        assert see("uncond", latents, Unread()) == (False, 0, "uncond")
        latents.add_(1)
        with pytest.raises(AssertionError, match="read"):
            see("cond", latents, Unread())
