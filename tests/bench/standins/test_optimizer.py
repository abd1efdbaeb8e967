"""Muon and AdamW share out the weights, follow one learning rate and are saved as one."""

import copy

import torch

from topi.bench.editors.standin import FAMILIES
from topi.bench.standins.optimizer import StackedMuon, muon_and_adamw


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return FAMILIES["kontext"].new(heads=2, dual=1, single=1)


def give_gradients(transformer: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in transformer.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_every_weight_has_one_optimiser():
    transformer = model()
    muon, adamw = muon_and_adamw(transformer).parts
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    names = {weight: name for name, weight in transformer.named_parameters()}
    matrices = [names[w] for group in muon.param_groups for w in group["params"]]
    others = [names[w] for group in adamw.param_groups for w in group["params"]]
    assert sorted(matrices + others) == sorted(names.values())
    assert "transformer_blocks.0.attn.to_q.weight" in matrices
    assert "single_transformer_blocks.0.proj_mlp.weight" in matrices
    for name in ("x_embedder.weight", "proj_out.weight", "transformer_blocks.0.attn.to_q.bias"):
        assert name in others


def test_one_learning_rate_reaches_all():
    transformer = model()
    optimizer = muon_and_adamw(transformer)
    before = copy.deepcopy(transformer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    give_gradients(transformer, 0)
    optimizer.step()
    assert all(torch.equal(t, before[n]) for n, t in transformer.state_dict().items())
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step()
    weights = dict(transformer.named_parameters())
    assert not any(torch.equal(t, before[n]) for n, t in weights.items())
    optimizer.zero_grad()
    assert all(t.grad is None for t in weights.values())


def test_saved_and_loaded_it_goes_on_the_same(tmp_path):
    whole, first, second = model(), model(), model()
    optimizer = muon_and_adamw(whole)
    for seed in range(4):
        give_gradients(whole, seed)
        optimizer.step()
    optimizer = muon_and_adamw(first)
    for seed in range(2):
        give_gradients(first, seed)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(first.state_dict())
    optimizer = muon_and_adamw(second)
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in range(2, 4):
        give_gradients(second, seed)
        optimizer.step()
    expected = whole.state_dict()
    for name, tensor in second.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_stacked_matrices_step_as_one_by_one():
    """torch's own Muon, which orthogonalises in bf16, is the standard; shapes come mixed."""
    shapes = [(24, 24), (24, 96), (96, 24), (24, 24), (24, 96), (32, 24)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    one_by_one, stacked = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    how = dict(lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizers = (torch.optim.Muon(one_by_one, **how), StackedMuon(stacked, **how))
    for _ in range(3):
        for weight, other in zip(one_by_one, stacked, strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            other.grad = weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for begun, weight, other in zip(start, one_by_one, stacked, strict=True):
        assert (weight - other).norm() < 0.03 * (weight - begun).norm()
        momenta = [
            o.state[w]["momentum_buffer"] for o, w in zip(optimizers, (weight, other), strict=True)
        ]
        assert torch.allclose(*momenta)
