"""FirstBlockCache and TaylorSeer against cache-dit: the same steps skipped, the same latents.

cache-dit is a test-only dependency. Its DBCache with no last blocks (Bn = 0) is our FirstBlockCache
over all image rows, each CFG branch for itself, for thresholds between 0 and 1: it skips every step
from 1 on, and no step at a change of just the threshold. Its TaylorSeer forecasts what DBCache puts
in place of the blocks, here the states behind the last one, at the steps a mask gives; it estimates
no derivative before its fourth step, so ours is compared with five steps of warm-up.
"""

import pytest
import torch

from topi import FirstBlockCache, TaylorSeer
from topi.models import tiny

cache_dit = pytest.importorskip("cache_dit", reason="it is in requirements.txt")


@pytest.fixture(scope="module", params=["flux", "qwen"])
def pipes(request):
    """Ours, theirs and the maker of arguments: cache-dit leaves a rewritten `forward` behind."""
    build = getattr(tiny, f"tiny_{request.param}")
    (ours, call), (theirs, _) = build(), build()
    return ours, theirs, call


def _skipped_by_both(pipes, method, steps, calibrator=None, **config):
    """The steps that both skipped, as (cond, uncond), after a check that all is the same."""
    ours, theirs, call = pipes
    with method(ours):
        latents = ours(**call(steps=steps, cfg=True)).images
    skipped = tuple(
        [record.step for record in method.trace if record.branch == branch and record.skipped]
        for branch in ("cond", "uncond")
    )
    config = cache_dit.DBCacheConfig(Bn_compute_blocks=0, enable_separate_cfg=True, **config)
    try:
        cache_dit.enable_cache(theirs, config, calibrator)
        torch.testing.assert_close(latents, theirs(**call(steps=steps, cfg=True)).images)
        assert skipped == (theirs.transformer._cached_steps, theirs.transformer._cfg_cached_steps)
    finally:
        cache_dit.disable_cache(theirs)
    return skipped


@pytest.mark.parametrize(
    ("threshold", "blocks", "warmup", "max_skips"),
    [(0.5, 1, 0, None), (0.7, 1, 0, 1), (0.7, 2, 3, 2), (0.3, 1, 0, None)],
)
def test_first_block_cache(pipes, threshold, blocks, warmup, max_skips):
    method = FirstBlockCache(
        "separate", threshold=threshold, first_blocks=blocks, warmup=warmup, max_skips=max_skips
    )
    skipped = _skipped_by_both(
        pipes,
        method,
        steps=8,
        Fn_compute_blocks=blocks,
        residual_diff_threshold=threshold,
        max_warmup_steps=warmup,
        max_continuous_cached_steps=-1 if max_skips is None else max_skips,
    )
    assert [bool(steps) for steps in skipped] == [threshold > 0.3] * 2


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylorseer(pipes, order):
    calibrator = cache_dit.TaylorSeerCalibratorConfig(
        taylorseer_order=order, calibrator_cache_type="hidden_states"
    )
    skipped = _skipped_by_both(
        pipes,
        TaylorSeer(warmup=5, interval=3, order=order),
        steps=12,
        calibrator=calibrator,
        Fn_compute_blocks=1,
        max_warmup_steps=0,
        steps_computation_mask=[1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0],
        steps_computation_policy="static",
    )
    assert skipped == ([5, 7, 8, 10, 11],) * 2
