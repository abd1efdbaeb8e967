"""ToMA: hand examples, properties, and the tiny pipelines."""

import pytest
import torch
import torch.nn.functional as F

from topi.engine import Call, CallRecord
from topi.errors import ToPiError
from topi.methods import METHODS, make_method
from topi.methods.rivals.toma import (
    TileMerge,
    ToMA,
    destination_counts,
    facility_location,
    layer_plan,
    merge_map,
    tiles,
    tiling,
)
from topi.models import Layout, ModelFacts, adapter_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def one_tile(x, k, scale=1000.0):
    """Destinations, A and merge of a single tile of tokens x [n, D]."""
    cut = tiling(((1, len(x)),), (1, len(x)), (len(x) - k) / len(x), CPU)
    unit = F.normalize(x[None, None], dim=-1)
    destinations = facility_location(unit @ unit.mT, cut.valid, k)
    A = merge_map(unit, destinations, cut.served, cut.valid, scale)
    return destinations[0].tolist(), A[0, 0], TileMerge(A, destinations, cut, 0, "block", x.dtype)


def a_call(layout, step=0, branch="cond"):
    return Call(step, branch, layout, 1, CPU, CallRecord(step, branch, layout, 1))


# --- operators -----------------------------------------------------------------------------------


def test_two_groups_of_equal_tokens():
    x = torch.eye(3)[[0, 0, 1, 1, 1]]
    destinations, A, merge = one_tile(x, 2)
    assert destinations == [2, 0]
    third = 1 / 3
    rows = A / A.sum(-1, keepdim=True)
    torch.testing.assert_close(
        rows, torch.tensor([[0, 0, third, third, third], [0.5, 0.5, 0, 0, 0]])
    )
    torch.testing.assert_close(merge.unmerge(merge.merge(x[None])), x[None], rtol=0, atol=1e-6)


def test_all_tokens_as_destinations_is_a_permutation():
    x = torch.randn(12, 16)
    destinations, _, merge = one_tile(x, 12)
    assert sorted(destinations) == list(range(12))
    assert merge.rows.tolist() == destinations
    torch.testing.assert_close(merge.unmerge(merge.merge(x[None])), x[None])


def test_columns_and_rows_sum_to_one_and_constants_are_kept():
    _, A, merge = one_tile(torch.randn(16, 8), 5, scale=3.0)
    torch.testing.assert_close(A.sum(0), torch.ones(16))
    constant = torch.full((1, 16, 4), 2.5)
    torch.testing.assert_close(merge.merge(constant), constant[:, :5])
    torch.testing.assert_close(merge.unmerge(constant[:, :5]), constant)


def test_a_larger_choice_extends_a_smaller_one_without_repeats():
    x = torch.eye(3)[[0, 0, 1, 1, 1]]  # only two distinct tokens: the third pick gains nothing
    chosen = one_tile(x, 4)[0]
    assert chosen[:2] == one_tile(x, 2)[0] and len(set(chosen)) == 4


def test_every_choice_has_the_largest_gain():
    x = F.normalize(torch.randn(10, 3), dim=-1)
    S = x @ x.T
    picks = one_tile(x, 5)[0]
    assert S.sum(1)[picks[0]] == pytest.approx(float(S.sum(1).max()))
    for n in range(1, 5):  # gains, not indices: two tokens that need each other tie exactly
        gains = (S - S[picks[:n]].amax(0)).clamp(min=0).sum(1)
        gains[picks[:n]] = -1
        assert gains[picks[n]] == pytest.approx(float(gains.max()), abs=1e-5)


def test_padding_is_not_chosen_even_if_nothing_gains():
    valid = torch.tensor([[False, True, True, False]])
    assert facility_location(torch.zeros(1, 1, 4, 4), valid, 2).tolist() == [[1, 2]]


def test_zero_rows_are_harmless():
    for k in (1, 3):
        _, A, merge = one_tile(torch.zeros(6, 4), k)
        torch.testing.assert_close(A.sum(0), torch.ones(6))
        assert merge.merge(torch.randn(1, 6, 4)).isfinite().all()


def test_tiles_of_divisible_and_ragged_grids():
    assert tiles((4, 4), (2, 2)).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert tiles((3, 3), (2, 2)).tolist() == [
        [0, 1, 3, 4],
        [2, -1, 5, -1],
        [6, 7, -1, -1],
        [8, -1, -1, -1],
    ]


def test_destination_counts():
    whole, ragged = tiles((64, 64), (4, 4)), tiles((3, 3), (2, 2))
    for ratio, count in ((0.25, 12), (0.5, 8), (0.75, 4), (0.4, 9), (0.99, 1)):
        assert destination_counts(whole, ratio).unique().tolist() == [count]
    assert destination_counts(ragged, 0.5).tolist() == [2, 1, 1, 1]


def test_tiles_never_span_images_and_padding_is_never_used():
    cut = tiling(((3, 3), (2, 5)), (2, 2), 0.5, CPU)
    image = torch.tensor([0] * 9 + [1] * 10)
    for member, valid in zip(cut.member, cut.valid, strict=True):
        assert len(image[member[valid]].unique()) == 1
    assert cut.valid.sum() == 19
    x = torch.randn(2, 19, 6)
    unit = F.normalize(x[:, cut.member], dim=-1)
    destinations = facility_location(unit @ unit.mT, cut.valid, cut.k)
    A = merge_map(unit, destinations, cut.served, cut.valid, 1000.0)
    merge = TileMerge(A, destinations, cut, 0, "block", x.dtype)
    assert bool(cut.valid.gather(1, destinations)[cut.served].all())
    assert len(merge.rows) == len(set(merge.rows.tolist())) == int(cut.served.sum())
    assert bool((A[:, ~cut.served] == 0).all())
    torch.testing.assert_close(A.sum(-2), cut.valid.float().expand(2, -1, -1))
    ones = torch.ones(2, 19, 1)
    torch.testing.assert_close(merge.merge(ones), torch.ones(2, len(merge.rows), 1))
    torch.testing.assert_close(merge.unmerge(merge.merge(ones)), ones)
    own = merge.unmerge(x[:, merge.rows])[:, merge.rows]  # sharp: destinations stand for themselves
    torch.testing.assert_close(own, x[:, merge.rows], rtol=1e-3, atol=1e-3)


# --- the callback --------------------------------------------------------------------------------


def test_plans_of_the_real_models(flux, qwen):
    single, dual = ("attention", "block"), ("attention",)
    plan = layer_plan(ModelFacts("flux", (19, 38), (dual,) * 19 + (single,) * 38, None))
    assert [layer for layer, each in enumerate(plan) if each == (0, "attention")] == [*range(5, 19)]
    assert [layer for layer, each in enumerate(plan) if each == (1, "block")] == [*range(24, 57)]
    assert sum(each is None for each in plan) == 10
    plan = layer_plan(ModelFacts("qwen", (60,), (dual,) * 60, None))
    assert plan == [None] * 16 + [(0, "attention")] * 44


LAYOUT = Layout(5, (4, 4), ((4, 4), (3, 5)))


def prepared(flux, **params):
    method = ToMA(**params)
    method.prepare(adapter_for(flux[0]).facts)  # layers 1 (dual) and 3, 4, 5 (single) merge
    return method


def test_reference_only_leaves_target_rows_bit_identical(flux):
    states = torch.randn(2, 47, 8)
    merge = prepared(flux, reference_only=True).merge(a_call(LAYOUT), 1, states)
    merged = merge.merge(states)
    assert merge.rows[:16].tolist() == list(range(16))
    assert (merge.rows[16:] >= 16).all()
    assert torch.equal(merged[:, :16], states[:, :16])
    assert torch.equal(merge.unmerge(merged)[:, :16], states[:, :16])


def test_a_group_shares_its_map_and_branches_their_destinations(flux):
    method = prepared(flux)
    ask = lambda step, branch, layer: method.merge(  # noqa: E731
        a_call(LAYOUT, step, branch), layer, torch.randn(1, 47, 8)
    )
    first = ask(0, "cond", 3)
    assert ask(0, "cond", 4) is first and ask(0, "cond", 5) is first
    other = ask(0, "uncond", 3)
    assert torch.equal(other.rows, first.rows)
    probe = torch.randn(1, 47, 2)
    assert not torch.equal(other.merge(probe), first.merge(probe))
    assert not torch.equal(ask(0, "cond", 1).rows, first.rows)  # the dual group has its own
    assert ask(1, "cond", 3) is None and ask(2, "cond", 3) is None
    assert not torch.equal(ask(3, "cond", 3).rows, first.rows)
    method.reset()
    assert not torch.equal(ask(3, "uncond", 3).rows, first.rows)


def test_destinations_and_map_can_be_kept_over_steps(flux):
    method = prepared(flux, merge_every=1, destinations_every=4, map_every=2)
    merges = [method.merge(a_call(LAYOUT, step), 3, torch.randn(1, 47, 8)) for step in range(6)]
    assert merges[1] is merges[0] and merges[3] is merges[2] and merges[5] is merges[4]
    assert merges[2] is not merges[0] and torch.equal(merges[2].rows, merges[0].rows)
    assert not torch.equal(merges[4].rows, merges[0].rows)


def test_new_destinations_bring_every_branch_a_new_map(flux):
    method = prepared(flux, merge_every=1, destinations_every=2, map_every=4)
    rows = [
        method.merge(a_call(LAYOUT, step, branch), 3, torch.randn(1, 47, 8)).rows
        for step in (0, 2)
        for branch in ("cond", "uncond")
    ]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[2], rows[3])
    assert not torch.equal(rows[0], rows[2])


def test_untouched_layers_and_empty_merges(flux):
    states = torch.randn(1, 47, 8)
    assert prepared(flux).merge(a_call(LAYOUT), 0, states) is None
    assert prepared(flux, ratio=0.0).merge(a_call(LAYOUT), 3, states) is None
    assert len(prepared(flux, ratio=1.0).merge(a_call(LAYOUT), 3, states).rows) == 1 + 1 + 2


# --- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toma", "toma_ref"])
def test_names(name):
    method = make_method(name, ratio=0.25, tile=[2, 2])
    assert METHODS[name] is ToMA and method.name == name and method.tile == (2, 2)
    assert method.reference_only is (name == "toma_ref")


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "qwen_plus"])
@pytest.mark.parametrize("name", ["toma", "toma_ref"])
def test_pipelines(tiny, kind, name):
    pipe, arguments = tiny(kind, zero_cond_t=True) if kind == "qwen_plus" else tiny(kind)
    run = lambda: pipe(**arguments(steps=5, cfg=True)).images  # noqa: E731
    full = run()
    with make_method(name, ratio=0.0, merge_every=1)(pipe) as nothing:
        assert torch.equal(run(), full)
    assert len(nothing.trace) == 10 and not any(record.merged for record in nothing.trace)

    with make_method(name)(pipe) as method:
        first, second = run(), run()
    assert torch.equal(first, second) and not torch.equal(first, full)
    assert torch.equal(run(), full)  # nothing is left behind
    layout = method.trace[0].layout
    grids = layout.reference_grids
    start = layout.n_target if name == "toma_ref" else 0
    grids = grids if name == "toma_ref" else (layout.target_grid, *grids)
    length = start + sum(int(destination_counts(tiles(g, (4, 4)), 0.5).sum()) for g in grids)
    assert length < layout.n_image
    plan = {1: ("attention", length)} | dict.fromkeys((3, 4, 5), ("block", length))
    if kind not in ("flux", "flux2"):
        plan = dict.fromkeys(range(2, 6), ("attention", length))
    merged = [record.merged for record in method.trace]
    assert merged == [plan, plan, {}, {}, {}, {}, plan, plan, {}, {}]  # two branches, steps 0 and 3


def test_batch_odd_grids_and_bfloat16(tiny):
    for dtype in (torch.float32, torch.bfloat16):
        pipe, arguments = tiny("flux", dtype=dtype)
        with ToMA(merge_every=1)(pipe) as method:
            out = pipe(**arguments(steps=1, batch=2, size=(144, 112))).images
        assert out.shape[0] == 2 and out.isfinite().all()
        # 7 x 9 tokens: tiles of 16, 16, 4 and of 12, 12, 3 -> 8 + 8 + 2 + 6 + 6 + 2
        assert {n for _, n in method.trace[0].merged.values()} == {2 * 32}


def test_an_exception_drops_the_state(flux):
    pipe, arguments = flux

    def fail(*_):
        raise RuntimeError("stop")

    with ToMA()(pipe) as method:
        with pytest.raises(RuntimeError, match="stop"):
            pipe(**arguments(steps=2, callback_on_step_end=fail))
        after = pipe(**arguments(steps=2)).images
    with ToMA()(pipe):
        assert torch.equal(pipe(**arguments(steps=2)).images, after)
    assert method.trace[0].merged


@pytest.mark.parametrize(
    "params",
    [
        {"ratio": 2},
        {"merge_every": 0},
        {"tile": (0, 4)},
        {"tile": (4,)},
        {"scale": 0.0},
        {"map_every": 0},
    ],
)
def test_bad_parameters(params):
    with pytest.raises(ToPiError, match=next(iter(params))):
        ToMA(**params)
