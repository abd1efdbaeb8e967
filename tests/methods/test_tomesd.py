"""ToMeSD: hand examples, properties, and the tiny pipelines."""

import pytest
import torch

from topi.engine import Call, CallRecord
from topi.errors import ToPiError
from topi.methods import METHODS, make_method
from topi.methods.rivals.tomesd import BagMerge, ToMeSD, bipartite_soft_matching, draw_destinations
from topi.models import Layout, adapter_for

FOUR = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.0]]])  # a 2 x 2 grid


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def matched(x, grid, r):
    bag, rows = bipartite_soft_matching(x, draw_destinations(grid), r)
    return BagMerge(bag, rows, 0, "attention")


def a_call(layout, step=0, branch="cond", batch=1):
    record = CallRecord(step, branch, layout, batch)
    return Call(step, branch, layout, batch, torch.device("cpu"), record)


# --- operators -----------------------------------------------------------------------------------


def test_constant_cells_merge_and_unmerge_exactly():
    cells = torch.randn(2, 2, 8).repeat_interleave(2, 0).repeat_interleave(2, 1)
    x = cells.reshape(1, 16, 8)
    merge = matched(x, (4, 4), 12)
    assert merge.rows.tolist() == [0, 2, 8, 10]
    assert merge.merge(x).shape == (1, 4, 8)
    assert torch.equal(merge.unmerge(merge.merge(x)), x)


def test_most_similar_source_goes_to_its_destination():
    merge = matched(FOUR, (2, 2), 1)
    assert torch.equal(merge.merge(FOUR), torch.tensor([[[1.0, 0.1], [0.0, 1.0], [1.0, 0.0]]]))
    assert merge.rows.tolist() == [1, 2, 0]
    assert torch.equal(merge.unmerge(merge.merge(FOUR)), FOUR)


@pytest.mark.parametrize("r", [3, 99])
def test_all_sources_average_with_their_destination(r):
    merge = matched(FOUR, (2, 2), r)
    torch.testing.assert_close(merge.merge(FOUR), torch.tensor([[[0.75, 0.275]]]))
    expected = torch.tensor([0.75, 0.275]).expand(1, 4, 2)
    torch.testing.assert_close(merge.unmerge(merge.merge(FOUR)), expected)


def test_border_tokens_of_an_odd_grid_are_sources():
    assert draw_destinations((3, 3)).tolist() == [0]
    assert matched(torch.randn(1, 9, 4), (3, 3), 8).merge(torch.randn(1, 9, 4)).shape == (1, 1, 4)


def test_destinations_lie_one_in_each_cell():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_destinations((5, 9), sx=3, sy=2, generator=generator) for _ in range(20)]
    cells = [[(t // 9 // 2, t % 9 // 3) for t in tokens.tolist()] for tokens in drawn]
    assert all(each == [(r, c) for r in range(2) for c in range(3)] for each in cells)
    assert len({tuple(tokens.tolist()) for tokens in drawn}) > 1
    assert draw_destinations((1, 7)).tolist() == draw_destinations((7, 1)).tolist() == []


def test_merging_is_the_mean_of_a_brute_force_matching():
    x = torch.randn(1, 24, 6)
    destinations = draw_destinations((4, 6), generator=torch.Generator().manual_seed(1))
    bag, rows = bipartite_soft_matching(x, destinations, 10)
    unit = x[0] / x[0].norm(dim=-1, keepdim=True)
    dst = sorted(destinations.tolist())
    src = [t for t in range(24) if t not in dst]
    best = {s: max(dst, key=lambda d: float(unit[s] @ unit[d])) for s in src}
    merged = sorted(src, key=lambda s: -float(unit[s] @ unit[best[s]]))[:10]
    members = {t: [t] for t in range(24) if t not in merged}
    for s in merged:
        members[best[s]].append(s)
    order = [t for t in src if t not in merged] + dst
    assert rows.tolist() == order
    expected = torch.stack([x[0, members[t]].mean(0) for t in order])
    torch.testing.assert_close(BagMerge(bag, rows, 0, "attention").merge(x)[0], expected)


def test_zero_rows_and_ties_are_harmless():
    x = torch.zeros(1, 16, 4)
    merge = matched(x, (4, 4), 5)
    assert merge.rows.tolist() == [7, 9, 11, 12, 13, 14, 15, 0, 2, 8, 10]  # ties by lower index
    assert merge.merge(x).isfinite().all()


def test_a_batch_shares_one_matching():
    x = torch.randn(3, 16, 4)
    merge = matched(x, (4, 4), 6)
    merged = merge.merge(x)
    assert merged.shape == (3, 10, 4)
    for one in range(3):
        torch.testing.assert_close(merge.merge(x[one : one + 1])[0], merged[one])


# --- the callback --------------------------------------------------------------------------------

LAYOUT = Layout(5, (4, 4), ((4, 4), (3, 5)))


def prepared(flux, **params):
    method = ToMeSD(**params)
    method.prepare(adapter_for(flux[0]).facts)
    return method


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
def test_counts(flux, ratio):
    states = torch.randn(1, 47, 8)
    merge = prepared(flux, ratio=ratio).merge(a_call(LAYOUT), 0, states)
    assert len(merge.rows) == 47 - min(int(47 * ratio), 47 - (4 + 4 + 2))
    assert len(set(merge.rows.tolist())) == len(merge.rows)
    merge = prepared(flux, ratio=ratio, reference_only=True).merge(a_call(LAYOUT), 0, states)
    assert len(merge.rows) == 47 - min(int(31 * ratio), 31 - (4 + 2))


def test_reference_only_leaves_target_rows_bit_identical(flux):
    states = torch.randn(2, 47, 8)
    merge = prepared(flux, reference_only=True).merge(a_call(LAYOUT, batch=2), 0, states)
    merged = merge.merge(states)
    assert merge.rows[:16].tolist() == list(range(16)) and merge.rows[16:].min() >= 16
    assert torch.equal(merged[:, :16], states[:, :16])
    assert torch.equal(merge.unmerge(merged)[:, :16], states[:, :16])
    assert not torch.equal(merge.unmerge(merged)[:, 16:], states[:, 16:])


def test_branches_share_a_draw_and_steps_and_layers_do_not(flux):
    states = torch.ones(1, 47, 8)  # rows depend on the draw alone
    method = prepared(flux)

    def rows(step, branch, layer):
        return method.merge(a_call(LAYOUT, step, branch), layer, states).rows.tolist()

    first = rows(0, "cond", 0)
    assert rows(0, "uncond", 0) == first
    assert rows(1, "cond", 0) != first
    assert rows(0, "cond", 1) != first
    fixed = prepared(flux, use_rand=False)
    assert all(t in fixed.merge(a_call(LAYOUT, 3), 1, states).rows.tolist() for t in (0, 2, 8, 10))


def test_per_image_never_merges_across_images(flux):
    states = torch.zeros(1, 47, 2)
    states[:, :16, 0] = 1  # target and references 1 and 2: three directions, but the second
    states[:, 16:32, 1] = 1  # reference looks like the target
    states[:, 32:, 0] = 1
    image = torch.tensor([0] * 16 + [1] * 16 + [2] * 15)
    marked = torch.nn.functional.one_hot(image, 3).float()[None]

    def mixes(per_image):
        merge = prepared(flux, per_image=per_image, ratio=1.0, use_rand=False).merge(
            a_call(LAYOUT), 0, states
        )
        return bool(((merge.merge(marked) > 0).sum(-1) > 1).any())

    assert mixes(False) and not mixes(True)


def test_an_image_too_narrow_for_a_cell_has_no_destination(flux):
    states = torch.randn(1, 14, 4)
    thin = a_call(Layout(3, (1, 4), ((1, 10),)))
    assert prepared(flux).merge(thin, 0, states) is None
    beside = a_call(Layout(3, (1, 4), ((2, 5),)))
    merge = prepared(flux, per_image=True, ratio=1.0).merge(beside, 0, states)
    assert merge.rows.tolist()[:4] == [0, 1, 2, 3] and len(merge.rows) == 4 + 2


# --- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tomesd", "tomesd_ref"])
def test_names(name):
    method = make_method(name, ratio=0.25)
    assert METHODS[name] is ToMeSD and method.name == name
    assert method.reference_only is (name == "tomesd_ref")


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "qwen_plus"])
@pytest.mark.parametrize("name", ["tomesd", "tomesd_ref"])
def test_pipelines(tiny, kind, name):
    pipe, arguments = tiny(kind, zero_cond_t=True) if kind == "qwen_plus" else tiny(kind)
    run = lambda: pipe(**arguments(steps=2, cfg=True)).images  # noqa: E731
    full = run()
    with make_method(name, ratio=0.0)(pipe) as nothing:
        assert torch.equal(run(), full)
    assert len(nothing.trace) == 4 and not any(record.merged for record in nothing.trace)

    with make_method(name)(pipe) as method:
        first, second = run(), run()
    assert torch.equal(first, second) and not torch.equal(first, full)
    assert torch.equal(run(), full)  # nothing is left behind
    layout = method.trace[0].layout
    region = layout.n_reference if name == "tomesd_ref" else layout.n_image
    length = layout.n_image - int(region * 0.5)
    expected = dict.fromkeys(range(6), ("attention", length))
    if kind == "flux2":  # whose single blocks are one module each
        expected |= dict.fromkeys(range(2, 6), ("block", length))
    assert [record.merged for record in method.trace] == [expected] * 4


def test_batch_odd_grids_and_bfloat16(tiny):
    for dtype in (torch.float32, torch.bfloat16):
        pipe, arguments = tiny("flux", dtype=dtype)
        with ToMeSD()(pipe) as method:
            out = pipe(**arguments(steps=1, batch=2, size=(144, 112))).images
        assert out.shape[0] == 2 and out.isfinite().all()
        assert method.trace[0].layout.target_grid == (7, 9)
        assert {n for _, n in method.trace[0].merged.values()} == {126 - 63}


def test_scope_and_skipped_layers(flux, qwen):
    pipe, arguments = flux
    with ToMeSD(scope="block", skip_layers=1)(pipe) as method:
        pipe(**arguments(steps=1))
    scopes = {layer: scope for layer, (scope, _) in method.trace[0].merged.items()}
    assert scopes == {1: "attention", 2: "block", 3: "block", 4: "block", 5: "block"}
    with pytest.raises(ToPiError, match="scope=attention"), ToMeSD(scope="block")(qwen[0]):
        pass


@pytest.mark.parametrize(
    "params", [{"ratio": 1.2}, {"ratio": -0.1}, {"sx": 0}, {"scope": "mlp"}, {"skip_layers": 6}]
)
def test_bad_parameters(flux, params):
    with pytest.raises(ToPiError, match=next(iter(params))), ToMeSD(**params)(flux[0]):
        pass
