"""Our rivals against their official code, where that installs: the same inputs, the same outputs.

tomesd is a test-only dependency. The hooks of diffusers run on the same tiny pipeline as ours.
"""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks.first_block_cache import _FBC_BLOCK_HOOK, _FBC_LEADER_BLOCK_HOOK
from diffusers.hooks.mag_cache import _MAG_CACHE_BLOCK_HOOK, _MAG_CACHE_LEADER_BLOCK_HOOK
from diffusers.hooks.taylorseer_cache import TaylorSeerState

from topi import FirstBlockCache, MagCache
from topi.methods.caches.taylorseer import backward_differences, taylor
from topi.methods.rivals.tomesd import BagMerge, bipartite_soft_matching, draw_destinations
from topi.models.tiny import tiny_qwen


@pytest.fixture(scope="module")
def qwen():
    """A pipeline of their own: the hooks of diffusers leave empty registries behind."""
    return tiny_qwen()


@pytest.mark.parametrize("r", [5, 20, 99])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize(("grid", "cell"), [((6, 8), (2, 2)), ((7, 9), (2, 2)), ((6, 9), (2, 3))])
def test_tomesd(grid, cell, drawn, r):
    """Merged and unmerged again, every token has the value that the official operator gives it."""
    official = pytest.importorskip("tomesd.merge", reason="it is in requirements.txt")
    torch.manual_seed(0)
    (rows, cols), (sy, sx) = grid, cell
    metric, x = torch.randn(2, 1, rows * cols, 6)
    seeded = [torch.Generator().manual_seed(3) if drawn else None for _ in range(2)]
    merge, unmerge = official.bipartite_soft_matching_random2d(
        metric, cols, rows, sx, sy, r, no_rand=not drawn, generator=seeded[0]
    )
    destinations = draw_destinations(grid, sx, sy, seeded[1])
    ours = BagMerge(*bipartite_soft_matching(metric, destinations, r), 0, "attention")
    assert ours.merge(x).shape == merge(x).shape
    torch.testing.assert_close(ours.unmerge(ours.merge(x)), unmerge(merge(x)))


def _run(pipe, call, **arguments):
    return pipe(**call(steps=8, **arguments)).images


def _with_hooks(pipe, config, names, run):
    """What `run` gives while diffusers' own cache is on; computed blocks are counted."""
    computed = []
    block = pipe.transformer.transformer_blocks[-1]
    hook = block.img_mlp.register_forward_hook(lambda *_: computed.append(1))
    try:
        pipe.transformer.enable_cache(config)
        return run(), len(computed)
    finally:
        hook.remove()
        pipe.transformer.disable_cache()
        for block in pipe.transformer.transformer_blocks:
            registry = HookRegistry.check_if_exists_or_initialize(block)
            assert not any(registry.get_hook(name) for name in names)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_first_block_cache_of_diffusers(qwen, threshold):
    pipe, call = qwen
    names = (_FBC_BLOCK_HOOK, _FBC_LEADER_BLOCK_HOOK)
    config = FirstBlockCacheConfig(threshold=threshold)
    theirs, computed = _with_hooks(pipe, config, names, lambda: _run(pipe, call))
    with FirstBlockCache(threshold=threshold, cfg_decision="separate")(pipe) as ours:
        torch.testing.assert_close(_run(pipe, call), theirs)
    assert sum(not record.skipped for record in ours.trace) == computed
    assert 2 < computed < 16


@pytest.mark.parametrize("threshold", [0.03, 0.2])
def test_magcache_of_diffusers(qwen, threshold):
    pipe, call = qwen
    ratios = [1.0, 1.1, 0.99, 1.02, 0.98, 1.01, 1.0, 0.95]
    names = (_MAG_CACHE_BLOCK_HOOK, _MAG_CACHE_LEADER_BLOCK_HOOK)
    config = MagCacheConfig(
        threshold=threshold, max_skip_steps=2, num_inference_steps=8, mag_ratios=ratios
    )
    theirs, computed = _with_hooks(pipe, config, names, lambda: _run(pipe, call))
    cache = MagCache("separate", threshold=threshold, max_skips=2, ratios=ratios)
    with cache(pipe) as ours:
        torch.testing.assert_close(_run(pipe, call), theirs)
    assert sum(not record.skipped for record in ours.trace) == computed
    assert 2 < computed < 16


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylorseer_of_diffusers(order):
    """Their state, in fp32, after the same computed steps."""
    torch.manual_seed(0)
    state = TaylorSeerState(torch.float32, order)
    factors, before = [], 0
    for step in (0, 1, 4, 6):
        states = torch.randn(1, 5, 3)
        state.current_step = step
        state.update((states,))
        factors = backward_differences(states, factors, step - before, order)
        before = step
        for ahead in (1, 3):
            state.current_step = step + ahead
            (theirs,) = state.predict()
            torch.testing.assert_close(taylor(factors, ahead), theirs)
