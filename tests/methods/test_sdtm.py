"""SDTM: hand examples, properties, and the tiny pipelines."""

import pytest
import torch

from topi import TaylorSeer
from topi.engine import Call, CallRecord
from topi.errors import ToPiError
from topi.evaluation.flops import count_trace
from topi.methods import METHODS, make_method
from topi.methods.sdtm import (
    SDTM,
    Blended,
    collapse,
    frequency_priority,
    highest_in_window,
    merge_share,
    structure_priority,
    window_count,
    windows,
)
from topi.methods.tomesd import BagMerge
from topi.models import Layout, ModelFacts

CPU = torch.device("cpu")
LAYOUT = Layout(3, (4, 4), ((8, 8),))
FACTS = ModelFacts(
    "Flux", (1, 1), (("attention", "mlp", "both"), ("attention", "mlp", "block")), None
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def a_call(step=0, branch="cond", layout=LAYOUT, n_steps=10):
    record = CallRecord(step, branch, layout, 1)
    return Call(step, branch, layout, 1, CPU, record, n_steps)


def prepared(**params):
    method = SDTM(**{"multiple": 1, "attended": "frequency", **params})
    method.prepare(FACTS)
    return method


# --- equations -----------------------------------------------------------------------------------


def test_the_share_of_merged_tokens_falls_along_a_cosine():
    assert merge_share(0, 50, 0.3, 0.2) == pytest.approx(0.5)
    assert merge_share(49, 50, 0.3, 0.2) == pytest.approx(0.1)
    assert merge_share(10, 31, 0.3, 0.2) == pytest.approx(0.1 + 0.4 * 0.75**0.5)  # p = 1/3
    assert {merge_share(step, 7, 0.4, 0) for step in range(7)} == {0.4}
    assert merge_share(0, 1, 0.3, 0.2) == pytest.approx(0.5)


def test_window_counts_of_the_specification():
    assert window_count(64, 0.75, 4, 16, multiple=16) == 16  # 48 // 48 * 16: all of them
    assert window_count(64, 0.5, 4, 16, multiple=16) == 0  # 32 // 48
    assert window_count(64, 0.5, 4, 16, multiple=1) == 10
    assert window_count(64, 1.0, 4, 16, multiple=1) == 16  # no more than there are


def test_windows_leave_ragged_borders_out():
    found = windows(((2, 5), (3, 2)), (2, 2), CPU)
    assert found.tolist() == [[0, 1, 5, 6], [2, 3, 7, 8], [10, 11, 12, 13]]


def test_frequency_is_relative_to_the_image():
    u, image = torch.tensor([0, 2, 4, 3, 3]), torch.tensor([0, 0, 0, 1, 1])
    assert frequency_priority(u, image).tolist() == pytest.approx([0, 1, 2, 1, 1], abs=1e-5)
    assert frequency_priority(0 * u, image).tolist() == [0] * 5


def test_priority_of_windows_by_hand():
    """Four equal tokens: 1. Three e1 and one e2: (9 + 1) / 16. And a_s times the mean of P_fre."""
    states = torch.eye(2)[[0, 0, 0, 0, 0, 0, 0, 1]][None]
    places = torch.arange(8).view(2, 4)
    nothing = torch.zeros(8)
    assert structure_priority(states, places, nothing, 0.05).tolist() == pytest.approx([1, 0.625])
    often = torch.tensor([0.0, 0, 0, 0, 8, 8, 8, 8])
    assert structure_priority(states, places, often, 0.05).tolist() == pytest.approx([1, 1.025])


def test_priority_is_the_mean_of_all_pairwise_cosines():
    states, places = torch.randn(1, 16, 5), windows(((4, 4),), (2, 2), CPU)
    unit = states[0] / states[0].norm(dim=-1, keepdim=True)
    expected = [(unit[each] @ unit[each].T).mean() for each in places]
    found = structure_priority(states, places, torch.zeros(16), 0)
    torch.testing.assert_close(found, torch.stack(expected))


def test_constant_windows_collapse_and_come_back_exactly():
    cells = torch.randn(2, 2, 8).repeat_interleave(2, 0).repeat_interleave(2, 1)
    x = cells.reshape(1, 16, 8)
    bag, rows = collapse(windows(((4, 4),), (2, 2), CPU), 16, torch.tensor([0, 1, 2, 3]))
    merge = BagMerge(bag, rows, 0, "both")
    assert rows.tolist() == [0, 3, 12, 15]
    assert merge.merge(x).shape == (1, 4, 8)
    assert torch.equal(merge.unmerge(merge.merge(x)), x)


def test_a_collapsed_window_is_the_mean_of_its_tokens():
    x = torch.randn(1, 16, 3)
    bag, rows = collapse(torch.tensor([[2, 3, 6, 7]]), 16, torch.tensor([3]))
    merge = BagMerge(bag, rows, 0, "both")
    assert rows.tolist() == [0, 1, 4, 5, *range(8, 16), 7]
    torch.testing.assert_close(merge.merge(x)[0, -1], x[0, [2, 3, 6, 7]].mean(0))


def test_the_highest_in_window_of_a_window():
    places = windows(((2, 4),), (2, 2), CPU)
    assert highest_in_window(places, torch.tensor([0.0, 1, 5, 2, 3, 0, 5, 1])).tolist() == [4, 2]
    assert highest_in_window(places, torch.zeros(8)).tolist() == [0, 2]  # ties: the first


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_merged_tokens_blend_with_what_is_stored(weight):
    x, old = torch.randn(1, 16, 3), torch.randn(1, 16, 3)
    bag, rows = collapse(torch.tensor([[2, 3, 6, 7]]), 16, torch.tensor([0]))
    merged = torch.tensor([2, 3, 6, 7])
    merge = Blended(BagMerge(bag, rows, 0, "both"), merged, {"main": old}, weight, 0)
    out, shared = merge.unmerge(merge.merge(x))[0], x[0, merged].mean(0)
    torch.testing.assert_close(out[merged], weight * shared + (1 - weight) * old[0, merged])
    assert weight or torch.equal(out[merged], old[0, merged])
    fresh = [t for t in range(16) if t not in (2, 3, 6, 7)]
    assert torch.equal(out[fresh], x[0, fresh])
    torch.testing.assert_close(merge.unmerge_mlp(merge.merge(x))[0, 2], shared)  # nothing stored


# --- the callback --------------------------------------------------------------------------------


@pytest.mark.parametrize("reference_only", [False, True])
def test_stages_scopes_and_counts(reference_only):
    method = prepared(reference_only=reference_only, ratio=0.5, deviation=0.25)
    states, n = torch.randn(1, 80, 6), 64 if reference_only else 80
    seen = {}
    for step in (1, 4, 5, 8):
        for layer in (0, 1):
            merge = method.merge(a_call(step), layer, states)
            r = int(n * merge_share(step, 10, 0.5, 0.25))
            gone = r // 3 * 3 if step <= 4 else r
            assert len(merge.rows) == len(set(merge.rows.tolist())) == 80 - gone
            assert not reference_only or merge.rows[:16].tolist() == list(range(16))
            seen[step, layer] = merge.scope
    assert [seen[step, 0] for step in (1, 4, 5, 8)] == ["both", "both", "mlp", "mlp"]
    assert [seen[step, 1] for step in (1, 4, 5, 8)] == ["block", "block", "mlp", "mlp"]


def test_reference_only_leaves_target_rows_bit_identical():
    states = torch.randn(1, 80, 6)
    merge = prepared(reference_only=True).merge(a_call(1), 0, states)
    out = merge.unmerge(merge.merge(states))
    assert torch.equal(out[:, :16], states[:, :16])
    assert not torch.equal(out[:, 16:], states[:, 16:])


def test_merges_are_counted_until_a_token_is_computed_by_itself():
    method = prepared(structure=0.1, ratio=0.3, deviation=0, reference_only=True)
    expected = torch.zeros(64, dtype=torch.long)
    for step in (1, 2, 4, 5):  # one of the structure stage, then the detail stage
        merge = method.merge(a_call(step), 0, torch.randn(1, 80, 6))
        merged = torch.zeros(64, dtype=torch.bool).index_fill(0, merge._merged, True)
        expected = torch.where(merged, expected + 1, 0)
        assert method._of(a_call()).merged_for.tolist() == expected.tolist()
    assert set(expected.tolist()) > {0, 1, 2}


def test_protected_steps_store_for_the_stage_that_follows():
    method = prepared(structure=0.3)
    states = torch.randn(1, 80, 6)
    watch = method.merge(a_call(0), 0, states)
    assert watch.rows is None and watch.scope == "both"
    assert torch.equal(watch.unmerge(watch.merge(states)), states)
    watch.unmerge_mlp(2 * states)
    blended = method.merge(a_call(1), 0, states)
    out = blended.unmerge_mlp(blended.merge(states))[0, blended._merged]
    shared = BagMerge.unmerge(blended._inner, blended.merge(states))[0, blended._merged]
    torch.testing.assert_close(out, 0.1 * shared + 0.9 * 2 * states[0, blended._merged])
    assert method.merge(a_call(3), 0, states).scope == "mlp"  # step 4 is of the detail stage
    assert prepared(merge_weight=1).merge(a_call(0), 0, states) is None
    assert prepared(protect_every=0).merge(a_call(0), 0, states).rows is not None


def test_too_small_or_narrow_images_are_left_alone():
    thin = Layout(3, (1, 16), ((1, 40),))
    for step in (1, 8):
        assert prepared().merge(a_call(step, layout=thin), 0, torch.randn(1, 56, 6)) is None
        few = prepared(multiple=16, reference_only=True)
        assert few.merge(a_call(step, n_steps=10), 0, torch.randn(1, 80, 6)) is None


def test_attended_tokens_are_those_with_attention(flux):
    """The attention of the layer before decides; of the target tokens over all keys."""
    pipe, call = flux
    seen = {}

    class Spy(SDTM):
        def _detail(self, call, body, grids, rho):
            seen[call.step, len(seen)] = self._of(call).received
            return super()._detail(call, body, grids, rho)

    with Spy(multiple=1, structure=0, protect_every=0)(pipe) as method:
        pipe(**call(steps=1))
    first, *others = seen.values()
    assert first is None and len(others) == 5
    for received in others:  # of 64 target rows: all but the share of the text
        assert received.shape == (128,) and 0 < float(received.sum()) < 64
    assert {scope for scope, _ in method.trace[0].merged.values()} == {"mlp"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ratio": 1.5}, r"ratio=1.5 must be a number in \[0, 1\]"),
        ({"ratio": 0.1}, "deviation=0.2 must be at most ratio=0.1"),
        ({"protect_every": -1}, "protect_every=-1"),
        ({"multiple": 0}, "multiple=0"),
        ({"window": (1, 1)}, "at least two tokens"),
        ({"a_p": 0}, "a_p must be positive"),
        ({"attended": "luck"}, "attended='luck' is unknown; choose one of: attention, frequency"),
    ],
)
def test_what_is_refused(params, message):
    with pytest.raises(ToPiError, match=message):
        SDTM(**params)


def test_it_must_know_the_number_of_steps(flux):
    pipe, call = flux
    with SDTM()(pipe.transformer), pytest.raises(ToPiError, match="attach it to the pipeline"):
        pipe(**call(steps=2))


# --- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "qwen_plus"])
@pytest.mark.parametrize("name", ["sdtm", "sdtm_ref"])
def test_pipelines(tiny, kind, name):
    pipe, arguments = tiny(kind, zero_cond_t=True) if kind == "qwen_plus" else tiny(kind)
    run = lambda: pipe(**arguments(steps=5, cfg=True)).images  # noqa: E731
    full = run()
    with make_method(name, multiple=1)(pipe) as method:
        first, again = run(), run()
    assert torch.equal(first, again) and not torch.equal(first, full)
    assert METHODS[name] is SDTM and method.name == name
    stages = [{scope for scope, _ in r.merged.values()} for r in method.trace if r.branch == "cond"]
    structure = {"both", "block"} if kind in ("flux", "flux2") else {"both"}
    assert stages == [set(), structure, structure, set(), {"mlp"}]
    detail = [r.merged for r in method.trace if r.branch == "cond"][-1]
    assert set(detail) == set(range(2 if kind == "flux2" else 6))  # single blocks have no MLP apart
    for cond, uncond in zip(method.trace[::2], method.trace[1::2], strict=True):
        assert cond.merged == uncond.merged


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_flops_are_those_of_the_formula(tiny, kind):
    """24 d^2 per token and 4 d S^2 of a merged layer; around the MLP 16 d^2, its first half 8."""
    pipe, arguments = tiny(kind)
    with make_method("sdtm", multiple=1)(pipe) as method:
        pipe(**arguments(steps=3, cfg=False))
    d, saved = 64, 0
    for record in method.trace:
        text, n = record.layout.n_text, record.layout.n_image
        for layer, (scope, m) in record.merged.items():
            core = 4 * d * ((text + n) ** 2 - (text + m) ** 2)
            first_half = 8 if kind == "flux" and layer >= 2 else 16
            saved += (n - m) * d**2 * (first_half if scope == "mlp" else 24)
            saved += 0 if scope == "mlp" else core
    count = count_trace(pipe.transformer, method.trace)
    assert count.full - count.method == saved > 0


def test_stacked_with_a_temporal_cache(flux):
    """A skipped step is none to SDTM, so every third computed one is protected."""
    pipe, call = flux
    with (make_method("sdtm_ref", multiple=1) + TaylorSeer(interval=2, warmup=1))(pipe) as method:
        pipe(**call(steps=9))
    log = "".join("s" if r.skipped else "m" if r.merged else "." for r in method.trace)
    assert log == ".smsms.sm"
