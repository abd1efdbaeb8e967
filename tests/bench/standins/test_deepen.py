"""A deeper stand-in computes what the one it started as computes, until it is trained."""

import pytest
import torch

from topi.bench.config.schema import ConfigError
from topi.bench.editors.standin import FAMILIES
from topi.bench.standins.deepen import deepened, origins
from topi.models import Layout, adapter_for

DEPTHS = {"kontext": ({"dual": 1, "single": 3}, {"dual": 2, "single": 4})}
DEPTHS |= {"qwen_edit": ({"layers": 2}, {"layers": 5})}
SMALL = {"heads": 4, "head_dim": 16, "axes": [4, 6, 6]}


@pytest.fixture
def new():
    torch.manual_seed(0)

    def new(kind, depth, **options):
        return FAMILIES[kind].new(**{**SMALL, **depth, **options}).eval()

    return new


def test_copies_are_spread_evenly():
    assert origins(3, 4) == [(0, False), (0, True), (1, False), (2, False)]
    assert [block for block, copied in origins(6, 8) if not copied] == list(range(6))
    assert origins(2, 2) == [(0, False), (1, False)]
    assert origins(0, 0) == []


@torch.no_grad()
def outputs(transformer):
    adapter = adapter_for(transformer)
    inputs = adapter.inputs(Layout(3, (2, 2), ((2, 2),)), 1, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for name in ("hidden_states", "encoder_hidden_states"):
        inputs[name] = torch.randn(inputs[name].shape, generator=generator)
    return transformer(**inputs, return_dict=False)[0]


@pytest.mark.parametrize("kind", DEPTHS)
def test_it_computes_the_same_and_every_new_block_can_learn(kind, new):
    fewer, more = DEPTHS[kind]
    source = new(kind, fewer)
    deeper = deepened(source, new(kind, more))
    assert torch.equal(outputs(deeper), outputs(source))
    blocks = adapter_for(deeper).blocks
    assert len(blocks) == sum(more.values())
    kept = [block for block in blocks if any_output(block)]
    assert len(kept) == sum(fewer.values())
    loss = deeper(**ready(deeper), return_dict=False)[0].square().sum()
    loss.backward()
    for block in blocks:  # the last one's references and text feed nothing
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def any_output(block):
    linear = [m for name, m in block.named_modules() if name in ("attn.to_out.0", "proj_out")]
    return any(layer.weight.abs().sum() > 0 for layer in linear)


def ready(transformer):
    adapter = adapter_for(transformer)
    inputs = adapter.inputs(Layout(3, (2, 2), ((2, 2),)), 1, torch.device("cpu"))
    for name in ("hidden_states", "encoder_hidden_states"):
        inputs[name] = torch.randn(inputs[name].shape)
    return inputs


def test_what_cannot_be_deepened_is_said(new):
    source = new("qwen_edit", {"layers": 3})
    with pytest.raises(ConfigError, match="cannot remove layers"):
        deepened(source, new("qwen_edit", {"layers": 2}))
    with pytest.raises(ConfigError, match="changes no width"):
        deepened(source, new("qwen_edit", {"layers": 4}, heads=6))
