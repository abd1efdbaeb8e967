"""SDTM: hand examples, properties, and the tiny pipelines."""

import pytest
import torch

from topi import TaylorSeer
from topi.engine import Call, CallRecord
from topi.engine.flops import count_trace
from topi.errors import ToPiError
from topi.methods import METHODS, make_method
from topi.methods.rivals.sdtm import (
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
from topi.methods.rivals.tomesd import BagMerge
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
    assert windows(((3, 7),), (1, 3), CPU).tolist() == [
        [first, first + 1, first + 2] for first in (0, 3, 7, 10, 14, 17)
    ]
    assert windows(((4, 6),), (2, 3), CPU)[[1, 2]].tolist() == [
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
    ]


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


@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_merged_tokens_blend_with_what_is_stored(weight, start):
    x, old = torch.randn(1, start + 16, 3), torch.randn(1, 16, 3)
    bag, rows = collapse(torch.tensor([[2, 3, 6, 7]]), 16, torch.tensor([0]))
    merged = torch.tensor([2, 3, 6, 7])
    merge = Blended(BagMerge(bag, rows, start, "both"), merged, {"main": old}, weight, start)
    out, shared = merge.unmerge(merge.merge(x))[0], x[0, start + merged].mean(0)
    expected = x[0].clone()
    expected[start + merged] = weight * shared + (1 - weight) * old[0, merged]
    torch.testing.assert_close(out, expected)
    assert weight or torch.equal(out[start + merged], old[0, merged])
    fresh = [t for t in range(start + 16) if t - start not in (2, 3, 6, 7)]
    assert torch.equal(out[fresh], x[0, fresh])
    torch.testing.assert_close(
        merge.unmerge_mlp(merge.merge(x))[0, start + 2], shared
    )  # not stored


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


@pytest.mark.parametrize("reference_only", [False, True])
def test_protected_steps_store_for_the_stage_that_follows(reference_only):
    method = prepared(structure=0.3, reference_only=reference_only)
    states = torch.randn(1, 80, 6)
    watch = method.merge(a_call(0), 0, states)
    assert watch.rows is None and watch.scope == "both"
    assert torch.equal(watch.unmerge(watch.merge(3 * states)), 3 * states)
    watch.unmerge_mlp(2 * states)
    blended = method.merge(a_call(1), 0, states)
    rows = blended._merged + (16 if reference_only else 0)
    for unmerge, stored in ((blended.unmerge, 3), (blended.unmerge_mlp, 2)):
        out = unmerge(blended.merge(states))[0, rows]
        shared = BagMerge.unmerge(blended._inner, blended.merge(states))[0, rows]
        torch.testing.assert_close(out, 0.1 * shared + 0.9 * stored * states[0, rows])
    assert method.merge(a_call(3), 0, states).scope == "mlp"  # step 4 is of the detail stage
    assert method._of(a_call()).stored == {0: {}}  # which does not read what attention added
    for full in ({"merge_weight": 1}, {"protect_every": 1}):  # nobody will read it
        assert prepared(**full).merge(a_call(0), 0, states) is None
    assert prepared(protect_every=0).merge(a_call(0), 0, states).rows is not None


def test_too_small_or_narrow_images_are_left_alone():
    thin = Layout(3, (1, 16), ((1, 40),))
    for step in (1, 8):
        assert prepared().merge(a_call(step, layout=thin), 0, torch.randn(1, 56, 6)) is None
        few = prepared(multiple=16, reference_only=True)
        assert few.merge(a_call(step, n_steps=10), 0, torch.randn(1, 80, 6)) is None


TWO_WINDOWS = Layout(3, (2, 2), ((2, 4),))
"""The references' windows are 0, 1, 4, 5 and 2, 3, 6, 7; the target's four tokens come before."""


def a_detail(**params):
    """The detail stage at its first step, of reference tokens, by attention."""
    plain = {"structure": 0, "protect_every": 0, "deviation": 0, "reference_only": True}
    return prepared(**{"attended": "attention", "ratio": 0.25, **plain, **params})


def test_a_detail_step_by_hand():
    """Tokens 1 and 7 receive most in their windows; 0 is merged into 7, and 6 into 1."""
    method, call = a_detail(), a_call(layout=TWO_WINDOWS)
    received = [0.1, 0.4, 0.1, 0.2, 0.2, 0.3, 0.3, 0.9]
    method._of(call).received = torch.tensor([9.0] * 4 + received)  # the target's own do not count
    near = {0: [0.1, 1], 1: [1, 0], 6: [1, 0.2], 7: [0, 1]}
    body = torch.tensor([near.get(j, [-1, -1]) for j in range(8)], dtype=torch.float32)
    states = torch.cat([torch.zeros(4, 2), body])[None]
    merge = method.merge(call, 0, states)
    assert merge.scope == "mlp" and merge._merged.tolist() == [0, 1, 6, 7]
    assert merge.rows.tolist() == [0, 1, 2, 3] + [4 + j for j in (2, 3, 4, 5, 1, 7)]
    out = merge.unmerge_mlp(merge.merge(states))[0, 4:]
    torch.testing.assert_close(out[[1, 6]], body[[1, 6]].mean(0).expand(2, 2))
    torch.testing.assert_close(out[[7, 0]], body[[7, 0]].mean(0).expand(2, 2))
    assert torch.equal(out[2:6], body[2:6])


@pytest.mark.parametrize(("a_d", "attended"), [(0.0, 1), (0.04, 1), (0.06, 2)])
def test_tokens_that_were_merged_often_count_as_attended(a_d, attended):
    """Over the mean they receive 1, 1.2, 1 and 0.8; P_fre of the third is 4: from 0.05 it wins."""
    call = a_call(layout=Layout(3, (2, 2), ((2, 2),)))
    method = a_detail(a_d=a_d)
    past = method._of(call)
    past.received = torch.tensor([1.0] * 4 + [10, 12, 10, 8])
    past.merged_for = torch.tensor([0, 0, 3, 0])
    assert method.merge(call, 0, torch.randn(1, 8, 5)).rows[-1] == 4 + attended


def test_what_a_token_receives_is_summed_over_target_tokens_in_the_detail_stage_only():
    layout = Layout(1, (1, 2), ((1, 2),))
    query, key = torch.randn(2, 2, 5, 3, 4)  # batch 2, [text | target | reference], 3 heads of 4
    scores = torch.einsum("bihd,bjhd->bhij", query, key) / 2
    received = scores.softmax(-1)[:, :, 1:3].sum(2).mean((0, 1))[1:]
    method = prepared(attended="attention", structure=0.4)
    for step, seen in ((2, False), (6, False), (7, True)):  # structure stage, protected, detail
        method.attend(a_call(step, layout=layout), 0, query, key, key, None)
        assert (method._of(a_call()).received is not None) is seen
    torch.testing.assert_close(method._of(a_call()).received, received)


def test_the_text_weighs_more_where_attention_is_merged():
    method, states = prepared(a_p=3.0, structure=0.4), torch.randn(1, 80, 6)
    weights = []
    for step in (1, 3, 4, 7, 2):  # structure stage, protected, structure stage, detail stage
        method.merge(a_call(step), 0, states)
        weights.append(method.text_weight(a_call(step), 0))
    assert weights == [3, 1, 3, 1, 3]


def test_a_structure_step_by_hand():
    """Of windows of 1 x 3 the third is uniform and collapses into its first token."""
    layout = Layout(3, (2, 2), ((2, 6),))
    method = prepared(window=(1, 3), ratio=0.25, deviation=0, reference_only=True, use_rand=False)
    states = torch.randn(1, 16, 32)
    states[:, 10:13] = states[:, 10:11]
    merge = method.merge(a_call(1, layout=layout), 0, states)
    assert merge._merged.tolist() == [6, 7, 8]
    assert merge.rows.tolist() == [j for j in range(16) if j not in (10, 11, 12)] + [10]


@pytest.mark.parametrize(("a_s", "chosen"), [(0.05, [0, 1, 4, 5]), (5.0, [2, 3, 6, 7])])
def test_windows_that_were_merged_often_come_first(a_s, chosen):
    method, call = a_detail(structure=1, ratio=0.4, a_s=a_s), a_call(1, layout=TWO_WINDOWS)
    method._of(call).merged_for = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    states = torch.randn(1, 12, 32)
    states[:, [4, 5, 8, 9]] = 1.0  # the first window is uniform
    assert method.merge(call, 0, states)._merged.tolist() == chosen


def test_the_token_that_stands_for_a_window_is_drawn_for_each_step_and_layer():
    states = torch.randn(1, 80, 6)

    def drawn(step=1, layer=0, branch="cond", **more):
        method = prepared(a_s=0, ratio=0.75, deviation=0, reference_only=True, **more)
        return method.merge(a_call(step, branch), layer, states).rows[16:].tolist()

    assert drawn() == drawn(branch="uncond")
    others = [drawn(step=2), drawn(layer=1), drawn(seed=1), drawn(use_rand=False)]
    assert len({tuple(rows) for rows in (drawn(), *others)}) == 5


def test_branches_are_counted_apart():
    method = prepared()
    method.merge(a_call(1, "cond"), 0, torch.randn(1, 80, 6))
    assert method._of(a_call(1, "uncond")).merged_for is None


def test_prompt_reweighting_reaches_the_model(flux):
    pipe, call = flux
    options = {"multiple": 1, "protect_every": 0, "structure": 1.0, "attended": "frequency"}
    with SDTM(a_p=1, **options)(pipe):
        plain = pipe(**call(steps=1)).images
    with SDTM(a_p=2, **options)(pipe):
        assert not torch.equal(pipe(**call(steps=1)).images, plain)


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
        ({"a_p": 0}, "a_p=0 must be a number that is positive"),
        ({"attended": "luck"}, "attended='luck' is unknown; choose one of: attention, frequency"),
    ],
)
def test_what_is_refused(params, message):
    with pytest.raises(ToPiError, match=message):
        SDTM(**params)


def test_it_must_know_the_number_of_steps(flux, recorded):
    pipe, call = flux
    kwargs = recorded(pipe, call(steps=1))[0]
    with SDTM()(pipe.transformer), pytest.raises(ToPiError, match="attach it to the pipeline"):
        pipe.transformer(**kwargs)


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
