"""The floors that change the pipeline: fewer steps, smaller references."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from topi import DownscaledRef, FewerSteps, Full, TeaCache
from topi.engine.flops import count_trace
from topi.errors import ToPiError
from topi.methods.floors.fewer_steps import thinned
from topi.models.references import resized

KINDS = ["flux", "qwen", "qwen_plus", "flux2"]


def edit(method, pipe, arguments):
    with method(pipe):
        return pipe(**arguments).images


class TestFewerSteps:
    def test_noise_levels(self):
        levels = np.linspace(1, 1 / 28, 28)
        assert np.allclose(thinned(levels, 7), np.linspace(1, 1 / 7, 7))
        assert np.allclose(thinned(levels, 28), levels)
        assert np.allclose(thinned([1.0, 0.7, 0.6, 0.1], 2), [1.0, 0.6])

    @pytest.mark.parametrize("kind", KINDS[:3])  # FLUX.2 shifts its levels by their number
    def test_it_is_a_run_of_so_many_steps(self, tiny, kind):
        pipe, call = tiny(kind)
        expected = pipe(**call(steps=3)).images
        before = set(vars(pipe.scheduler))
        found = edit(FewerSteps(share=0.5), pipe, call(steps=6))
        assert set(vars(pipe.scheduler)) == before
        assert torch.equal(found, expected)
        assert torch.equal(edit(FewerSteps(share=1.0), pipe, call()), pipe(**call()).images)

    def test_each_step_stands_for_those_it_replaces(self, qwen):
        pipe, call = qwen
        with FewerSteps(share=0.4)(pipe) as method:
            pipe(**call(steps=7))
        assert [record.stands_for for record in method.trace] == [2, 2, 2, 2, 3, 3]
        assert count_trace(pipe.transformer, method.trace).speedup == pytest.approx(7 / 3)

    def test_it_stacks_with_a_cache(self, flux):
        pipe, call = flux
        cache = TeaCache(threshold=9.0, coefficients=(1.0, 0.0))
        with (FewerSteps(share=0.5) + cache)(pipe) as method:
            pipe(**call(steps=8))
        assert [record.skipped for record in method.trace] == [False, True, True, False]
        assert count_trace(pipe.transformer, method.trace).speedup > 3

    def test_what_is_refused(self, flux):
        with pytest.raises(ToPiError, match="share=0"):
            FewerSteps(share=0)
        with pytest.raises(ToPiError, match="attach to the pipeline"):
            edit(FewerSteps(), flux[0].transformer, {})


class TestDownscaledRef:
    def test_pictures_shrink_in_whole_tokens(self):
        flat = torch.full((1, 3, 1, 64, 96), 0.25)
        small = resized(flat, 0.71, 16)
        assert small.shape == (1, 3, 1, 48, 64)
        assert torch.allclose(small, torch.tensor(0.25))
        assert resized(flat, 0.01, 16).shape[-2:] == (16, 16)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_transformer_sees_smaller_references(self, tiny, kind):
        pipe, call = tiny(kind)
        plain = pipe(**call()).images
        own = set(vars(pipe))
        method = DownscaledRef(scale=0.5)
        with FlopCounterMode(display=False) as counter:
            small = edit(method, pipe, call())
        assert small.shape == plain.shape
        assert not torch.equal(small, plain)
        assert set(vars(pipe)) == own
        assert not pipe.transformer._forward_pre_hooks
        assert torch.equal(edit(DownscaledRef(scale=1.0), pipe, call()), plain)
        record = method.trace[0]
        wide = kind in ("qwen_plus", "flux2")
        assert record.layout.reference_grids == ((4, 4), (3, 5))[: 1 + wide]
        assert record.full_layout.reference_grids == ((8, 8), (6, 10))[: 1 + wide]
        assert record.keep_ratio == 0.25
        count = count_trace(pipe.transformer, method.trace)
        real = counter.get_flop_counts()[type(pipe.transformer).__name__]
        assert count.method == sum(real.values())
        with Full()(pipe) as full:
            pipe(**call())
        assert count.full == count_trace(pipe.transformer, full.trace).full

    def test_what_is_refused(self, flux):
        with pytest.raises(ToPiError, match="scale=2"):
            DownscaledRef(scale=2)
        with pytest.raises(ToPiError, match="attach to it"):
            edit(DownscaledRef(), flux[0].transformer, {})
        pipe, call = flux
        latents = torch.zeros(1, 16, 16, 16)
        with pytest.raises(ToPiError, match="given as latents"):
            edit(DownscaledRef(), pipe, call() | {"image": latents})
        with DownscaledRef()(pipe) as method:
            pipe(**call(references=[]))
        assert method.trace == []
