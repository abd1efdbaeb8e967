"""Whatever else holds the same blocks is refused by name."""

import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, ModelHook, apply_first_block_cache

from topi import Full, ToPi
from topi.errors import ToPiError

CONFIGS = {
    "first_block_cache": FirstBlockCacheConfig(),
    "pyramid_attention_broadcast": PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
    "faster_cache": FasterCacheConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
}


@pytest.fixture
def flux(tiny):
    """Of its own: diffusers leaves empty registries behind."""
    return tiny("flux", seed=3)


small = {"tau": 1.0, "front_layers": 1, "layers": (1, 3), "first_anchor": 1}


class TestCachesOfDiffusers:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_refused_at_attach_and_at_the_call(self, flux, name):
        pipe, call = flux
        plain, refused = pipe(**call(steps=2)).images, pytest.raises(ToPiError, match=name)
        pipe.transformer.enable_cache(CONFIGS[name])
        try:
            with refused, ToPi(**small)(pipe):
                pass
        finally:
            pipe.transformer.disable_cache()
        with ToPi(**small)(pipe):
            pipe.transformer.enable_cache(CONFIGS[name])
            try:
                with refused:
                    pipe(**call(steps=2))
            finally:
                pipe.transformer.disable_cache()
            assert torch.equal(pipe(**call(steps=2)).images, plain)

    def test_also_if_put_on_by_its_function(self, flux):
        pipe, call = flux
        with Full()(pipe):
            apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig())
            try:
                with pytest.raises(ToPiError, match="first_block_cache"):
                    pipe(**call(steps=1))
            finally:
                pipe.transformer._cache_config = FirstBlockCacheConfig()
                pipe.transformer.disable_cache()

    def test_hooks_that_change_no_result_are_not(self, flux):
        pipe, call = flux
        block = pipe.transformer.transformer_blocks[0]
        registry = HookRegistry.check_if_exists_or_initialize(block)
        registry.register_hook(ModelHook(), "of_a_user")
        with Full()(pipe) as method:
            pipe(**call(steps=1))
        registry.remove_hook("of_a_user")
        assert len(method.trace) == 1


def test_cache_dit(tiny):
    cache_dit = pytest.importorskip("cache_dit", reason="it is in requirements.txt")
    pipe, _ = tiny("flux", seed=2)  # of which it leaves a rewritten `forward` behind
    cache_dit.enable_cache(pipe, cache_dit.DBCacheConfig())
    try:
        with pytest.raises(ToPiError, match="cache-dit"), Full()(pipe):
            pass
    finally:
        cache_dit.disable_cache(pipe)


@pytest.mark.parametrize("name", ["controlnet_block_samples", "controlnet_single_block_samples"])
def test_residuals_of_a_controlnet(flux, recorded, name):
    pipe, call = flux
    with_references, without = (
        recorded(pipe, call(steps=1, **more))[0] for more in ({}, {"references": []})
    )
    with Full()(pipe), torch.no_grad():
        residual = torch.zeros(1, with_references["hidden_states"].shape[1], 64)
        with pytest.raises(ToPiError, match=f"ControlNet.*{name}"):
            pipe.transformer(**with_references | {name: [residual]})
        residual = torch.zeros(1, without["hidden_states"].shape[1], 64)
        pipe.transformer(**without | {name: [residual]})


def test_layers_of_a_picture_are_no_references(qwen, recorded):
    """As QwenImageLayeredPipeline calls: all but the last grid is computed, not given."""
    pipe, call = qwen
    kwargs = recorded(pipe, call(steps=1))[0]
    kwargs["additional_t_cond"] = torch.zeros(1, dtype=torch.long)
    with Full()(pipe), pytest.raises(ToPiError, match="QwenImageLayeredPipeline"):
        pipe.transformer(**kwargs)
