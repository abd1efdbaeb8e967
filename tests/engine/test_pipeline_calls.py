"""Where a pipeline call begins and ends, and pipelines that share one transformer."""

import copy
from threading import Thread

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline

from topi import SDTM, Full, ToPi
from topi.errors import ToPiError
from topi.models.tiny import random_image

small = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 3}
LOW = np.linspace(0.4, 0.1, 4)


def kept(method):
    return [(record.step, record.branch, record.anchor, record.kept) for record in method.trace]


def sibling(pipe, kind=FluxKontextPipeline):
    """A pipeline on the same modules, with a scheduler of its own."""
    other = kind.from_pipe(pipe, scheduler=copy.deepcopy(pipe.scheduler))
    other.set_progress_bar_config(disable=True)
    return other


def in_a_thread(run):
    """What `run` returns or raises in a thread of its own."""
    results = []

    def collect():
        try:
            results.append(run())
        except Exception as error:
            results.append(error)

    thread = Thread(target=collect)
    thread.start()
    thread.join()
    return results[0]


def at_step(step, action):
    """A callback of pipelines that acts at the end of one step."""

    def callback(pipe, now, timestep, kwargs):
        if now == step:
            action()
        return {}

    return callback


def stop():
    raise RuntimeError("stop")


class TestCutShort:
    @pytest.mark.parametrize("cfg", [False, True])
    @pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "qwen_plus"])
    def test_the_next_call_may_begin_at_a_lower_timestep(self, tiny, kind, cfg):
        pipe, call = tiny(kind)
        arguments = {"cfg": cfg, "references": [random_image(seed=9)], "sigmas": LOW}
        cut = {"cfg": cfg, "references": [random_image()], "callback_on_step_end": at_step(2, stop)}
        with ToPi(**small)(pipe) as method:
            clean, trace = pipe(**call(**arguments)).images, kept(method)
        with ToPi(**small)(pipe) as method:
            with pytest.raises(RuntimeError, match="stop"):
                pipe(**call(**cut))
            assert torch.equal(pipe(**call(**arguments)).images, clean)
            assert kept(method) == trace

    def test_a_transformer_follows_the_pipelines_that_use_it(self, flux):
        pipe, call = flux
        arguments = {"references": [random_image(seed=9)], "sigmas": LOW}
        with ToPi(**small)(pipe) as method:
            pipe(**call(**arguments))
            trace = kept(method)
        with ToPi(**small)(pipe.transformer) as method:
            with pytest.raises(RuntimeError, match="stop"):
                pipe(**call(callback_on_step_end=at_step(2, stop)))
            pipe(**call(**arguments))
            assert kept(method) == trace


@pytest.fixture
def loops(flux, recorded):
    """`loops(seed)` -> the arguments of each step of an edit, that of one picture or another."""
    pipe, call = flux
    return lambda seed, **more: recorded(pipe, call(references=[random_image(seed=seed)], **more))


@torch.no_grad()
def loop(transformer, steps):
    return [transformer(**kwargs)[0] for kwargs in steps]


class TestLoopsOfOnesOwn:
    def test_other_references_begin_a_call(self, flux, loops):
        """Also if all that is new is what they show: the positions may be kept for all pictures."""
        transformer = flux[0].transformer
        first, second = loops(1), loops(2, sigmas=LOW)
        with ToPi(**small)(transformer) as method:
            loop(transformer, second)
            trace = kept(method)
        for positions in (second[0]["img_ids"], first[0]["img_ids"]):
            steps = [kwargs | {"img_ids": positions} for kwargs in second]
            with ToPi(**small)(transformer) as method:
                loop(transformer, first[:3])
                loop(transformer, steps)
                assert kept(method) == trace

    def test_references_may_be_written_to_in_place(self, flux, loops):
        transformer = flux[0].transformer
        first, second = loops(1), loops(2, sigmas=LOW)
        buffer = torch.empty_like(first[0]["hidden_states"])
        with ToPi(**small)(transformer) as method, torch.no_grad():
            for kwargs in (*first[:3], *second):
                buffer.copy_(kwargs["hidden_states"])
                transformer(**kwargs | {"hidden_states": buffer})
            assert [record.step for record in method.trace] == [0, 1, 2, 3]

    def test_a_new_schedule_with_new_positions_begins_a_call(self, flux, loops):
        pipe, _ = flux
        steps = loops(1)
        with ToPi(**small)(pipe) as method:
            loop(pipe.transformer, steps[:3])
            pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
            positions = steps[0]["img_ids"].clone()
            loop(pipe.transformer, [kwargs | {"img_ids": positions} for kwargs in steps[2:]])
            assert [record.step for record in method.trace] == [0, 1]

    def test_another_schedule_than_the_pipelines_is_followed(self, flux, loops):
        """The pipeline's scheduler takes no part, and the positions are kept for all pictures."""
        pipe, _ = flux
        steps = loops(1)
        with ToPi(**small)(pipe) as method:
            for _ in range(2):
                loop(pipe.transformer, steps[:3])
                assert [record.step for record in method.trace] == [0, 1, 2]

    def test_loops_in_turn_in_two_threads(self, flux, loops):
        """Each step begins a call: nothing is saved, and nothing is taken from the other."""
        transformer = flux[0].transformer
        ones, others = loops(1), loops(1)
        plain = [loop(transformer, [kwargs])[0] for kwargs in ones]
        with ToPi(**small)(transformer):
            for one, other, whole in zip(ones, others, plain, strict=True):
                assert torch.equal(loop(transformer, [one])[0], whole)
                assert torch.equal(
                    in_a_thread(lambda step=other: loop(transformer, [step])[0]), whole
                )


class TestOneTransformerForSeveralPipelines:
    @pytest.mark.parametrize("where", [in_a_thread, lambda run: run()], ids=["thread", "nested"])
    def test_calls_at_once_are_refused_and_the_first_goes_on(self, flux, where):
        pipe, call = flux
        other, refused = sibling(pipe), []
        arguments = {"seed": 5, "references": [random_image(seed=9)]}

        def intrude():
            try:
                refused.append(where(lambda: other(**call(**arguments))))
            except ToPiError as error:
                refused.append(error)

        with ToPi(**small)(pipe) as method:
            clean, trace = pipe(**call()).images, kept(method)
            theirs = other(**call(**arguments)).images
            image = pipe(**call(callback_on_step_end=at_step(1, intrude))).images
            assert isinstance(refused[0], ToPiError)
            assert "Two calls at once run through one FluxTransformer2DModel" in str(refused[0])
            assert torch.equal(image, clean) and kept(method) == trace
            assert torch.equal(other(**call(**arguments)).images, theirs)

    def test_a_pipeline_that_shows_no_references_is_refused_as_well(self, flux):
        pipe, call = flux
        other, refused = sibling(pipe), []
        run = lambda: other(**call(references=[]))  # noqa: E731
        with ToPi(**small)(pipe):
            pipe(**call(callback_on_step_end=at_step(1, lambda: refused.append(in_a_thread(run)))))
        assert isinstance(refused[0], ToPiError)

    def test_transformer_calls_at_once(self, flux, loops):
        pipe, call = flux
        step, refused = loops(1)[0], []

        def intrude(module, args):
            hook.remove()
            refused.append(in_a_thread(lambda: loop(pipe.transformer, [step])))

        with ToPi(**small)(pipe):
            clean = pipe(**call()).images
            hook = pipe.transformer.transformer_blocks[1].register_forward_pre_hook(intrude)
            assert torch.equal(pipe(**call()).images, clean)
        assert isinstance(refused[0], ToPiError)

    def test_the_end_of_another_call_ends_nothing(self, flux):
        pipe, call = flux

        class Idle(FluxKontextPipeline):
            interrupt = True

        other = sibling(pipe, Idle)
        run = lambda: in_a_thread(lambda: other(**call()))  # noqa: E731
        with ToPi(**small)(pipe) as method:
            pipe(**call())
            trace = kept(method)
            pipe(**call(callback_on_step_end=at_step(1, run)))
            assert kept(method) == trace

    def test_branch_names_are_each_threads_own(self, qwen):
        pipe, call = qwen

        def elsewhere(*_):
            with pipe.transformer.cache_context("elsewhere"):
                pass

        with Full()(pipe) as method:
            hook = pipe.transformer.register_forward_pre_hook(lambda *_: in_a_thread(elsewhere))
            pipe(**call(steps=2))
            hook.remove()
        assert [record.branch for record in method.trace] == ["cond", "uncond"] * 2

    def test_the_number_of_steps_is_that_of_the_pipeline_that_runs(self, flux):
        pipe, call = flux
        other = sibling(pipe)
        pipe(**call(steps=2))
        with SDTM()(other):
            expected = other(**call(steps=5)).images
        for model in (pipe, pipe.transformer):
            with SDTM()(model):
                assert torch.equal(other(**call(steps=5)).images, expected)
