"""The last block on target rows only: the same output, less work, off unless asked for."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from topi import Full, RandomTokens, TeaCache, ToMeSD, ToPi
from topi.engine.flops import FlopCounter, count_trace
from topi.models import Layout, adapter_for

small = {"ratio": 0.5, "front_layers": 1, "layers": (1, 3, 5), "first_anchor": 1, "update_every": 3}
CASES = {
    "flux": ("flux", {}, {}),
    "flux, dual blocks only": ("flux", {"dual": 3, "single": 0}, {}),
    "flux, batch of two": ("flux", {}, {"batch": 2, "cfg": True}),
    "flux2": ("flux2", {}, {"batch": 2, "cfg": True}),
    "qwen, padded text": ("qwen", {}, {"batch": 2, "padded": True}),
    "qwen plus, zero_cond_t": ("qwen_plus", {"zero_cond_t": True}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_full_gives_the_same_output(tiny, case):
    kind, options, arguments = CASES[case]
    pipe, call = tiny(kind, **options)
    plain = pipe(**call(steps=2, **arguments)).images
    with Full()(pipe, trim_last=True) as method:
        trimmed = pipe(**call(steps=2, **arguments)).images
    torch.testing.assert_close(trimmed, plain, rtol=0, atol=2e-6)
    assert all(record.trimmed for record in method.trace)


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen_plus"])
def test_in_float64_nothing_but_the_last_digits_differ(tiny, kind):
    pipe, _ = tiny(kind)
    pipe.transformer.double()
    adapter = adapter_for(pipe)
    inputs = adapter.inputs(Layout(5, (4, 6), ((4, 6), (2, 3))), 1, torch.device("cpu"))
    torch.manual_seed(0)
    inputs = {
        name: torch.randn_like(value, dtype=torch.double)
        if isinstance(value, torch.Tensor) and "ids" not in name
        else value
        for name, value in inputs.items()
    }
    try:
        with torch.no_grad():
            plain = pipe.transformer(**inputs).sample[:, :24]
            with Full()(pipe.transformer, trim_last=True):
                trimmed = pipe.transformer(**inputs).sample
    finally:
        pipe.transformer.float()
    assert trimmed.shape[1] == 24 + 30 and not trimmed[:, 24:].any()
    torch.testing.assert_close(trimmed[:, :24], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_topi_chooses_and_yields_the_same(tiny, kind):
    """Also where the last block is one of those that score."""
    pipe, call = tiny(kind)
    runs = []
    for trim_last in (False, True):
        with ToPi(**small)(pipe, trim_last=trim_last) as method:
            runs.append((pipe(**call(steps=3)).images, [record.kept for record in method.trace]))
    assert runs[0][1] == runs[1][1]
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=2e-6)


def test_what_it_saves_is_counted(tiny):
    pipe, call = tiny("flux")
    method = RandomTokens(front_layers=1, first_anchor=1)
    with method(pipe, trim_last=True), FlopCounterMode(display=False) as counter:
        pipe(**call(steps=3))
    real = sum(counter.get_flop_counts()["FluxTransformer2DModel"].values())
    count = count_trace(pipe.transformer, method.trace)
    assert count.method == real


def test_what_it_saves_by_hand(tiny):
    """Queries, MLP and output projection of |C| rows, and their rows of the attention."""
    pipe, call = tiny("flux")
    with Full()(pipe, trim_last=True) as method:
        pipe(**call(steps=1))
    (record,) = method.trace
    d, n, n_reference = 64, 12 + 64 + 64, 64
    count = FlopCounter(pipe.transformer).run([record])
    block = 20 * n_reference * d**2 + 4 * n_reference * n * d
    head = 2 * n_reference * d * 64
    modulation = 2 * d * 3 * d  # done once more, for the references' keys and values
    assert count.full - count.method == block + head - modulation


def test_it_is_off_and_left_out_where_tokens_are_merged(flux):
    pipe, call = flux
    plain = pipe(**call(steps=2)).images
    with Full()(pipe) as method:
        assert torch.equal(pipe(**call(steps=2)).images, plain)
    assert not any(record.trimmed for record in method.trace)
    with ToMeSD()(pipe, trim_last=True) as method:
        pipe(**call(steps=1))
    assert not any(record.trimmed for record in method.trace)


def test_a_cache_remembers_targets_as_before(flux):
    pipe, call = flux
    fit = {"coefficients": (1.0, 0.0), "ceiling": 9.0, "threshold": 2.0}
    with TeaCache(**fit)(pipe, trim_last=True) as method:
        pipe(**call(steps=4))
    assert {record.skipped for record in method.trace} == {True, False}
