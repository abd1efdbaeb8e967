"""Methods on FLUX Kontext with an IP-Adapter, whose processors attend twice and return three."""

from dataclasses import dataclass, fields

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from topi.engine import MergesTokens
from topi.errors import ToPiError
from topi.methods import METHODS, Merge, Method, make_method

EARLY = {"front_layers": 1, "layers": (1, 3), "first_anchor": 0, "update_every": 3}
EARLY |= {"merge_every": 1, "multiple": 1}
"""So that every method does its work within four steps."""


def early(name):
    """The method, as far as it has the parameters above."""
    cls = METHODS[name]
    given = {field.name for field in fields(cls) if field.init} - cls.variants[name].keys()
    return make_method(name, **{key: value for key, value in EARLY.items() if key in given})


@pytest.fixture(scope="module")
def pipelines(with_ip_adapter):
    return {scale: with_ip_adapter(scale) for scale in (0.0, 1.0)}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_adapter_of_weight_zero_is_none(flux, pipelines, name):
    """Also for a method's scores, stores and merges, which see the layer's own attention only."""
    outputs, traces = [], []
    for pipe, call in (flux, pipelines[0.0]):
        with early(name)(pipe) as method:
            outputs.append(pipe(**call(steps=4)).images)
        traces.append(method.trace)
    assert torch.equal(*outputs)
    assert traces[0] == traces[1]
    plain, pictured = (pipe(**call(steps=4)).images for pipe, call in pipelines.values())
    assert not torch.equal(plain, pictured)
    assert torch.equal(plain, outputs[0]) == (name == "full")


@pytest.mark.parametrize("name", ["ref_kv", "topi_kv"])
def test_what_is_stored_is_of_references(pipelines, name):
    pipe, call = pipelines[1.0]
    with early(name)(pipe) as method:
        pipe(**call(steps=3))
    last = method.trace[-1]
    assert last.stored and set(last.stored.values()) == {len(last.kept)}


class Reversed(Merge):
    """Tokens in reverse order: the same outputs, if each of them is put back in order."""

    def __init__(self, n):
        self.rows = torch.arange(n).flip(0)

    def merge(self, states):
        return states.flip(1)

    unmerge = merge


@dataclass
class Reverse(Method, MergesTokens):
    def merge(self, call, layer, states):
        return Reversed(states.shape[1])


def test_the_third_output_is_unmerged(pipelines):
    pipe, call = pipelines[1.0]
    plain = pipe(**call(steps=2)).images
    with Reverse()(pipe):
        torch.testing.assert_close(pipe(**call(steps=2)).images, plain, rtol=0, atol=1e-5)


def test_a_layer_that_shows_no_attention_of_its_own_is_named(flux, monkeypatch):
    """A processor that attends otherwise must not leave a method off without a word."""
    pipe, call = flux
    processor = pipe.transformer.transformer_blocks[0].attn.processor

    class Elsewhere(type(processor)):
        def __call__(self, attn, hidden_states, encoder_hidden_states, *rest, **more):
            states = hidden_states[:, :, None]
            dispatch_attention_fn(states, states[:, :4], states[:, :4])
            return hidden_states, encoder_hidden_states

    monkeypatch.setattr(pipe.transformer.transformer_blocks[0].attn, "processor", Elsewhere())
    with early("ref_kv")(pipe), pytest.raises(ToPiError, match=r"Layer 0 .* RefKV .* Elsewhere"):
        pipe(**call(steps=1))
