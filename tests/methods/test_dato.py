"""DaTo: hand examples, properties, and the tiny pipelines."""

import pytest
import torch

from topi import TaylorSeer
from topi.engine import BlockInput, Call, CallRecord
from topi.engine.flops import count_trace
from topi.errors import ToPiError
from topi.methods import METHODS, make_method
from topi.methods.rivals.dato import DaTo, PruneMerge, dynamics, nearest_survivor
from topi.methods.rivals.tomesd import draw_destinations
from topi.models import Layout, ModelFacts

CPU = torch.device("cpu")
LAYOUT = Layout(3, (4, 4), ((4, 6),))
FACTS = ModelFacts("Flux", (2, 4), (("attention",),) * 6, None)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def a_call(step=0, branch="cond", n_steps=8):
    return Call(step, branch, LAYOUT, 1, CPU, CallRecord(step, branch, LAYOUT, 1), n_steps)


def prepared(**params):
    method = DaTo(**{"front_layers": 2, **params})
    method.prepare(FACTS)
    return method


# --- operators -----------------------------------------------------------------------------------


def test_dynamics_by_hand():
    before = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    now = torch.tensor([[[2.0, 0.0], [0.5, 0.0]]])
    assert dynamics(now, before).tolist() == [1.5, 0.25]


def test_pruned_tokens_take_the_nearest_survivor_base_or_not():
    """Token 3 (cosine 1) is nearest to base 0, token 2 to the surviving token 1."""
    x = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.5, 0.87], [1.0, 0.0]]])
    bases = torch.tensor([0])
    home, rows = nearest_survivor(x, bases, 1)
    assert (rows.tolist(), home.tolist()) == ([1, 2, 0], [2, 0, 1, 2])
    home, rows = nearest_survivor(x, torch.tensor([0, 1]), 2)
    merge = PruneMerge(home, rows, 0)
    assert (rows.tolist(), home.tolist()) == ([0, 1], [0, 1, 1, 0])
    assert torch.equal(merge.merge(x), x[:, :2])  # no mean: bases keep their own value
    assert torch.equal(merge.unmerge(merge.merge(x)), x[:, [0, 1, 1, 0]])
    x = torch.tensor([[[1.0, 0.0], [0.95, 0.31], [0.9, 0.44], [0.0, 1.0]]])
    home, rows = nearest_survivor(x, bases, 1)
    assert (rows.tolist(), home.tolist()) == ([2, 3, 0], [2, 0, 0, 1])  # 1 goes to 2, not to base 0


def test_duplicated_cells_are_recovered_exactly():
    cells = torch.randn(2, 3, 8).repeat_interleave(2, 0).repeat_interleave(2, 1)
    x = cells.reshape(1, 24, 8)
    home, rows = nearest_survivor(x, draw_destinations((4, 6)), 18)
    merge = PruneMerge(home, rows, 0)
    assert merge.merge(x).shape == (1, 6, 8)
    assert torch.equal(merge.unmerge(merge.merge(x)), x)


def test_survivors_of_a_brute_force_search():
    x, bases = torch.randn(1, 24, 6), draw_destinations((4, 6))
    home, rows = nearest_survivor(x, bases, 10)
    cosine = torch.nn.functional.cosine_similarity(x[0][:, None], x[0][None], dim=-1)
    others = [t for t in range(24) if t not in bases.tolist()]
    pruned = sorted(others, key=lambda t: -float(cosine[t, bases].max()))[:10]
    survivors = [t for t in others if t not in pruned] + bases.tolist()
    assert rows.tolist() == survivors
    for t in range(24):
        expected = max(survivors, key=lambda s, t=t: float(cosine[t, s])) if t in pruned else t
        assert survivors[home[t]] == expected


# --- the callbacks -------------------------------------------------------------------------------


def test_without_dynamics_the_bases_are_the_first_of_their_patches():
    merge = prepared(ratio=1.0).merge(a_call(), 0, torch.randn(1, 40, 5))
    first = [*draw_destinations((4, 4)), *(16 + draw_destinations((4, 6)))]
    assert merge.rows.tolist() == first


def test_the_most_dynamic_token_of_a_patch_is_its_base():
    method = prepared(ratio=1.0, reference_only=True)
    output = torch.zeros(1, 40, 3)
    method.complete(a_call(0), output)
    moved = output.clone()
    moved[:, 16 + 7], moved[:, 16 + 1], moved[:, 16 + 16] = 3, 2, -1
    method.complete(a_call(1), moved)
    merge = method.merge(a_call(2), 0, torch.randn(1, 40, 5))
    assert merge.rows[:16].tolist() == list(range(16))
    # patches of the 4 x 6 grid begin at 0, 2, 4, 12, 14 and 16; 7 and 1 both lie in the first
    assert [t - 16 for t in merge.rows[16:].tolist()] == [2, 4, 7, 12, 14, 16]


def test_every_step_has_the_bases_of_its_own_dynamics():
    method, states = prepared(ratio=1.0), torch.randn(1, 40, 5)
    method.complete(a_call(0), torch.zeros(1, 40, 3))
    for step, moved in ((1, 5), (2, 1)):  # both of the target's first patch, 0, 1, 4, 5
        output = torch.zeros(1, 40, 3)
        output[:, moved] = 10 * step
        method.complete(a_call(step), output)
        for layer in (0, 1):
            rows = method.merge(a_call(step + 1), layer, states).rows.tolist()
            assert {0, 1, 4, 5} & {*rows} == {moved}


def test_noise_is_in_units_of_the_dynamics():
    """A hundredth of their standard deviation does not change who moved most."""
    outputs, bases = 1e-3 * torch.arange(40.0).sqrt()[None, :, None], []
    for noise in (0.0, 0.01, 10.0):
        method = prepared(ratio=1.0, noise=noise)
        method.complete(a_call(0), torch.zeros(1, 40, 1))
        method.complete(a_call(1), outputs)
        bases.append(method.merge(a_call(2), 0, torch.randn(1, 40, 5)).rows.tolist())
    assert bases[0] == bases[1] != bases[2]


def test_dynamics_of_references_hold_over_cached_steps():
    method = prepared()
    method.complete(a_call(0), torch.zeros(1, 40, 3))
    method.complete(a_call(1), torch.ones(1, 40, 3))
    method.complete(a_call(2), torch.full((1, 16, 3), 3.0))
    assert method._of(a_call(2)).dynamics.tolist() == [2.0] * 16 + [1.0] * 24
    method.complete(a_call(3), torch.full((1, 40, 3), 3.5))
    assert method._of(a_call(3)).dynamics.tolist() == [0.5] * 16 + [2.5] * 24


def test_branches_share_bases_unless_told_otherwise():
    states = torch.randn(1, 40, 5)
    for align in (True, False):
        method = prepared(ratio=1.0, align_cfg=align)
        for branch in ("cond", "uncond"):
            method.complete(a_call(0, branch), torch.zeros(1, 40, 3))
            method.complete(a_call(1, branch), torch.randn(1, 40, 3))
        rows = [method.merge(a_call(2, b), 0, states).rows.tolist() for b in ("cond", "uncond")]
        assert (rows[0] == rows[1]) is align


@pytest.mark.parametrize("params", [{"noise": 0.5}, {"random_bases": True}])
def test_drawn_bases_change_with_step_and_seed_only(params):
    states = torch.randn(1, 40, 5)

    def rows(step, layer=0, **more):
        return (
            prepared(ratio=1.0, **params, **more).merge(a_call(step), layer, states).rows.tolist()
        )

    assert rows(1) == rows(1) == rows(1, layer=3)
    assert rows(1) != rows(2) and rows(1) != rows(1, seed=1)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
def test_counts(ratio):
    states = torch.randn(1, 40, 5)
    rows = prepared(ratio=ratio).merge(a_call(), 0, states).rows
    assert len(rows) == len(set(rows.tolist())) == 40 - min(int(40 * ratio), 30)
    rows = prepared(ratio=ratio, reference_only=True).merge(a_call(), 0, states).rows
    assert len(rows) == 40 - min(int(24 * ratio), 18)
    steps = prepared(ratio=[0.0, ratio])
    assert steps.merge(a_call(0), 0, states) is None
    assert len(steps.merge(a_call(1), 0, states).rows) == 40 - min(int(40 * ratio), 30)


def drive(method, steps, depth=6):
    """Add 1 per layer at each step; which layer was first skipped, and the target states."""
    method.prepare(FACTS)
    method.reset()
    did, out = [], []
    for step in range(steps):
        call = a_call(step, n_steps=steps)
        method.begin(call)
        states, skipped = torch.full((1, 40, 1), 10.0 * step), None
        for layer in range(depth):
            if layer in method.decides_before:
                skipped = method.skip(call, layer, BlockInput(states, lambda: None))
                if skipped is not None:
                    did.append(layer)
                    break
            states = states + 1 + step
        if skipped is None:
            did.append(None)
            skipped = states[:, :16]
            method.remember(call, skipped)
        out.append(float(skipped[0, 0, 0]))
    return did, out


def test_cached_steps_add_what_the_layers_added_before():
    did, out = drive(DaTo(cache_every=3, front_layers=2), 5)
    assert did == [None, 2, 2, None, 2]
    # 10 step, the front layers' 2 (1 + step), and 4 (1 + computed step) of the others
    assert out == [0 + 6, 10 + 4 + 4, 20 + 6 + 4, 30 + 24, 40 + 10 + 16]


def test_a_schedule_of_depths():
    did, out = drive(DaTo(depths=[0, 0, 4, 6, 3]), 5)
    assert did == [None, 0, 4, None, 3]
    assert out == [6, 10 + 6, 20 + 12 + 2, 30 + 24, 40 + 15 + 12]
    assert drive(DaTo(cache_every=1), 3)[0] == [None] * 3


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ratio": 1.5}, r"ratio=1.5 must be a number in \[0, 1\]"),
        ({"ratio": [0.5, -1]}, "ratio=-1"),
        ({"cache_every": 0}, "cache_every=0"),
        ({"depths": [3, -1]}, "depths=-1"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"patch": (1, 1)}, "at least two tokens"),
    ],
)
def test_what_is_refused(params, message):
    with pytest.raises(ToPiError, match=message):
        DaTo(**params)


def test_what_does_not_fit_the_model_or_the_steps():
    with pytest.raises(ToPiError, match="leaves none of the 6 layers"):
        DaTo(front_layers=6).prepare(FACTS)
    DaTo(front_layers=6, cache_every=1).prepare(FACTS)
    for params in ({"depths": [6] * 7}, {"ratio": [0.5] * 9}):
        with pytest.raises(ToPiError, match=r"schedule of [79] steps, but there are 8"):
            prepared(**params).begin(a_call())


# --- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "qwen_plus"])
@pytest.mark.parametrize("name", ["dato", "dato_ref"])
def test_pipelines(tiny, kind, name):
    pipe, arguments = tiny(kind, zero_cond_t=True) if kind == "qwen_plus" else tiny(kind)
    run = lambda: pipe(**arguments(steps=4, cfg=True)).images  # noqa: E731
    full = run()
    with make_method(name, front_layers=2)(pipe) as method:
        first, again = run(), run()
    assert torch.equal(first, again) and not torch.equal(first, full)
    assert METHODS[name] is DaTo and method.name == name
    assert [r.skipped_from for r in method.trace if r.branch == "cond"] == [None, 2, None, 2]
    n, whole = method.trace[0].layout.n_image, method.trace[0].layout
    r = int((n if name == "dato" else whole.n_reference) * 0.4)
    for record in method.trace:
        layers = range(record.skipped_from or 6)
        fused = range(2 if kind == "flux2" else 6, 6)  # single blocks that are one module each
        assert record.merged == {
            layer: ("block" if layer in fused else "attention", n - r) for layer in layers
        }


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_flops_are_those_of_the_formula(tiny, kind):
    """Without r tokens an attention saves 6 or 8 d^2 of each, by the projection it has alone."""
    pipe, arguments = tiny(kind)
    with make_method("dato", cache_every=1)(pipe) as method:
        pipe(**arguments(steps=1, cfg=False))
    d, saved = 64, 0
    for record in method.trace:
        text, n = record.layout.n_text, record.layout.n_image
        for layer, (_, m) in record.merged.items():
            own = 6 if kind == "flux" and layer >= 2 else 8
            saved += own * (n - m) * d**2 + 4 * d * ((text + n) ** 2 - (text + m) ** 2)
    count = count_trace(pipe.transformer, method.trace)
    assert count.full - count.method == saved > 0


def test_stacked_with_a_temporal_cache(flux):
    with pytest.raises(ToPiError, match=r"DaTo brings a cache of its own, .* TaylorSeer"):
        DaTo() + TaylorSeer()
    pipe, call = flux
    with (make_method("dato_ref", cache_every=1) + TaylorSeer(interval=2, warmup=1))(pipe) as both:
        pipe(**call(steps=5))
    assert ["s" if r.skipped else "m" if r.merged else "." for r in both.trace] == list("msmsm")
