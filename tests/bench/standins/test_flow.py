"""The equations of flow matching."""

import pytest
import torch

from topi.bench.standins.flow import guided, interpolate, noise_levels, sample, token_weights


def test_true_velocity_leads_from_noise_to_the_clean_tokens():
    clean, noise = torch.randn(2, 2, 9, 64)
    sampled = sample(lambda x, t: (x - clean) / t[:, None, None], noise, steps=4)
    assert torch.allclose(sampled, clean, atol=1e-4)
    x = interpolate(clean, noise, torch.tensor([0.25, 1.0]))
    assert torch.allclose(x[0], 0.75 * clean[0] + 0.25 * noise[0])
    assert torch.equal(x[1], noise[1])


def test_changed_tokens_weigh_more():
    reference = torch.zeros(1, 4, 64)
    clean = reference.clone()
    clean[0, 2] = 1.0
    weights = token_weights(clean, reference, changed=3.0)[0, :, 0]
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2, 2 / 3])
    assert torch.equal(token_weights(clean, reference[:, :3], 3.0), torch.ones(1, 4, 1))


def test_guidance_of_one_changes_nothing_and_more_keeps_the_norm():
    cond, uncond = torch.randn(2, 1, 5, 8)
    assert torch.allclose(guided(cond, uncond, 1.0), cond, atol=1e-6)
    assert torch.allclose(guided(cond, uncond, 4.0).norm(dim=-1), cond.norm(dim=-1), atol=1e-5)
    assert not torch.allclose(guided(cond, uncond, 4.0), cond, atol=0.1)


def test_noise_levels_are_logit_normal():
    t = noise_levels(20_000, torch.Generator().manual_seed(0))
    logits = torch.logit(t)
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(logits.std()) == pytest.approx(1.1, abs=0.03)
