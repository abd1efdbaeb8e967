"""ToPi: selection by hand, scores against naive attention, schedule, and the pruned run itself."""

import copy
from dataclasses import replace

import pytest
import torch

from topi import ToPi
from topi.engine import Call, CallRecord
from topi.errors import ToPiError
from topi.methods.paper.topi import SCORES, influence, smallest_set
from topi.methods.parts.anchor_masks import CFG_MASKS, static_set
from topi.methods.parts.scores import attention, leave_one_out, similarity, value_norm
from topi.models import Layout, adapter_for
from topi.models.rebind import rebind


def select(scores, tau, order="highest"):
    """Eq. 10 as ascending indices."""
    return smallest_set(scores, tau, order).nonzero().flatten()


def top_k(scores, ratio, order="highest"):
    """Static Top-K as ascending indices."""
    return static_set(scores, ratio, order).nonzero().flatten()


small = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 3}


class TestSelect:
    """Eq. 10: the fewest tokens that hold tau of the total."""

    scores = torch.tensor([1.0, 4.0, 2.0, 3.0])

    @pytest.mark.parametrize(
        ("tau", "kept"),
        [
            (0.0, [1]),
            (0.4, [1]),
            (0.7, [1, 3]),  # 7 >= 7
            (0.71, [1, 2, 3]),
            (0.9, [1, 2, 3]),
            (0.91, [0, 1, 2, 3]),
            (1.0, [0, 1, 2, 3]),
        ],
    )
    def test_by_hand(self, tau, kept):
        assert select(self.scores, tau).tolist() == kept

    def test_lowest_order(self):
        assert select(self.scores, 0.3, "lowest").tolist() == [0, 2]
        assert top_k(self.scores, 0.5, "lowest").tolist() == [0, 2]

    def test_ties_go_to_the_lower_index(self):
        ties = torch.ones(64)
        assert select(ties, 0.25).tolist() == list(range(16))
        assert top_k(ties, 0.25).tolist() == list(range(16))

    def test_keep_all_even_where_scores_vanish(self):
        scores = torch.tensor([1.0, 0.0, 1e-30])
        assert select(scores, 1.0).tolist() == [0, 1, 2]

    @pytest.mark.parametrize("bad", [torch.zeros(3), torch.tensor([1.0, torch.nan, 1.0])])
    def test_scores_that_tell_nothing_keep_all(self, bad):
        assert select(bad, 0.5).tolist() == [0, 1, 2]

    def test_mass_is_summed_in_double(self):
        scores = torch.tensor([2.0**25] + [1.0] * 1000)  # in single, 2**25 + 1 == 2**25
        assert len(select(scores, (2**25 + 10) / (2**25 + 1000))) == 11

    @pytest.mark.parametrize(("ratio", "count"), [(0.0, 1), (0.1, 1), (0.5, 2), (0.7, 3), (1.0, 4)])
    def test_top_k_counts(self, ratio, count):
        kept = top_k(self.scores, ratio).tolist()
        assert kept == sorted(torch.tensor([1, 3, 2, 0])[:count].tolist())


def single_query(weights, values):
    """q, k, v of one head whose only target attends with `weights` to itself and references."""
    layout = Layout(0, (1, 1), ((1, len(weights) - 1),))
    n = len(weights)
    query = torch.ones(1, n, 1, 1)
    key = torch.tensor(weights).log().reshape(1, n, 1, 1)
    value = torch.tensor(values).reshape(1, n, 1, -1)
    return query, key, value, layout, None


class TestScores:
    def test_the_value_norm_reverses_the_rank_of_attention(self):
        case = single_query([0.25, 0.5, 0.25], [[0.0, 0.0], [1.0, 0.0], [0.0, 4.0]])
        torch.testing.assert_close(attention(*case), torch.tensor([[0.5, 0.25]]))
        torch.testing.assert_close(value_norm(*case), torch.tensor([[1.0, 4.0]]))
        torch.testing.assert_close(influence(*case), torch.tensor([[0.5, 1.0]]))

    def test_leave_one_out_by_hand(self):
        case = single_query([0.25, 0.5, 0.25], [[0.0], [1.0], [4.0]])
        # y = 0.5 + 1 = 1.5; without the first: (0 + 4) / 2 = 2; without the second: 0.5 / 0.75
        torch.testing.assert_close(leave_one_out(*case), torch.tensor([[0.5, 1.5 - 2 / 3]]))

    def test_similarity_by_hand(self):
        case = single_query([0.25, 0.5, 0.25], [[1.0, 0.0], [-3.0, 0.0], [2.0, 2.0]])
        torch.testing.assert_close(similarity(*case), torch.tensor([[0.0, (1 + 0.5**0.5) / 2]]))

    @pytest.mark.parametrize("kind", ["flux", "qwen", "qwen_plus"])
    def test_influence_of_a_pipeline_equals_a_naive_softmax(self, tiny, kind):
        """Sum over layers and heads; text, target and reference keys; padded text left out."""
        pipe, call = tiny(kind)
        seen, checked = {}, []

        class Watched(ToPi):
            def attend(self, call, layer, query, key, value, mask):
                super().attend(call, layer, query, key, value, mask)
                if call.record.anchor and layer in (1, 3):
                    seen.setdefault(call.branch, []).append((query, key, value, mask))

            def end(self, call):
                super().end(call)
                if not call.record.anchor:
                    return
                expected = 0
                for *qkv, mask in seen.pop(call.branch):
                    q, k, v = (states.double().transpose(1, 2) for states in qkv)
                    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
                    if mask is not None:
                        logits = logits.masked_fill(~mask, -torch.inf)
                    weights = logits.softmax(-1)[:, :, call.layout.targets, call.layout.references]
                    norms = v[:, :, call.layout.references].norm(dim=-1)
                    expected = expected + (norms * weights.sum(2)).sum(1)
                torch.testing.assert_close(
                    self._scores[call.branch].double(), expected, rtol=1e-5, atol=0
                )
                checked.append(len(expected))

        arguments = {"batch": 2, "padded": True} if kind == "qwen" else {}
        with Watched(**small)(pipe):
            pipe(**call(steps=5, **arguments))
        branches, batch = {"flux": (1, 1), "qwen": (2, 2), "qwen_plus": (2, 1)}[kind]
        assert checked == [batch] * branches * 2  # anchors at 1 and 4

    @pytest.mark.parametrize("score", SCORES)
    @pytest.mark.parametrize("kind", ["flux", "qwen_plus"])
    def test_every_score_prunes(self, tiny, kind, score):
        pipe, call = tiny(kind)
        with ToPi(tau=0.5, score=score, **small)(pipe) as method:
            pipe(**call(steps=3))
        assert 0 < method.trace[-1].keep_ratio < 0.75


@pytest.fixture(params=["flux", "qwen"])
def forty_steps(request, tiny):
    pipe, call = tiny(request.param)
    lengths = []
    hook = pipe.transformer.proj_out.register_forward_pre_hook(
        lambda module, args: lengths.append(args[0].shape[1])
    )
    with ToPi(front_layers=1, layers=(1, 3))(pipe) as method:
        pipe(**call(steps=40))
    hook.remove()
    return method.trace, lengths


def test_schedule_of_forty_steps(forty_steps):
    trace, lengths = forty_steps
    branches = len({record.branch for record in trace})
    assert [record.step for record in trace] == [i for i in range(40) for _ in range(branches)]
    anchors = {record.step for record in trace if record.anchor}
    full = {record.step for record in trace if record.kept is None}
    assert anchors == {2, 12, 22, 32}
    assert full == {0, 1} | anchors
    for record, length in zip(trace, lengths, strict=True):
        kept = record.n_reference if record.kept is None else len(record.kept)
        assert length == 64 + kept  # what the model really computed
        assert record.keep_ratio == kept / record.n_reference
        if record.step not in full:
            assert kept < record.n_reference
            assert list(record.kept) == sorted(set(record.kept))
        assert (record.scoring_seconds > 0) == record.anchor
    chose = [record.step for record in trace if record.selection_seconds > 0]
    assert chose == [2, 12, 22, 32]  # once for both branches
    masks = [{r.kept for r in trace if first < r.step < first + 10} for first in (2, 12, 22, 32)]
    assert all(len(kept) == 1 for kept in masks)  # constant in between (Eq. 11) ...
    assert len(set.union(*masks)) > 1  # ... and renewed at anchors


class Oracle:
    """Runs a pipeline in full, with dropped reference keys at -inf in each layer from K on.

    Written without the engine: torch's own hooks say which call and layer runs.
    """

    def __init__(self, pipe, trace):
        self.pipe, self.trace = pipe, trace
        self.call, self.layer = -1, -1

    def __enter__(self):
        transformer = self.pipe.transformer
        self.hooks = [transformer.register_forward_pre_hook(self.next_call)]
        self.processors = []
        for layer, block in enumerate(adapter_for(self.pipe).blocks):
            self.hooks.append(
                block.register_forward_pre_hook(
                    lambda module, args, layer=layer: setattr(self, "layer", layer)
                )
            )
            processor = block.attn.processor
            cls = type(processor)
            self.dispatch = cls.__call__.__globals__["dispatch_attention_fn"]
            biased = rebind(cls.__call__, dispatch_attention_fn=self.attend)
            self.processors.append((processor, cls))
            processor.__class__ = type("Biased", (cls,), {"__call__": biased})

    def __exit__(self, *exception):
        for hook in self.hooks:
            hook.remove()
        for processor, cls in self.processors:
            processor.__class__ = cls

    def next_call(self, module, args):
        self.call += 1

    def attend(self, query, key, value, attn_mask=None, **rest):
        record = self.trace[self.call]
        if record.kept is not None and self.layer >= record.front_layers:
            bias = torch.zeros(key.shape[1])
            bias[record.layout.references] = -torch.inf
            bias[[record.layout.references.start + j for j in record.kept]] = 0
            if attn_mask is not None:
                bias = bias + torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -torch.inf)
            attn_mask = bias.expand(len(query), 1, query.shape[1], -1)
        return self.dispatch(query, key, value, attn_mask=attn_mask, **rest)


@pytest.mark.parametrize("front", [0, 1, 3])
@pytest.mark.parametrize(
    ("kind", "options", "arguments"),
    [
        ("flux", {}, {}),
        ("flux", {}, {"cfg": True}),
        ("flux", {}, {"batch": 2}),
        ("flux2", {}, {"batch": 2, "cfg": True}),
        ("qwen", {}, {}),
        ("qwen", {}, {"batch": 2, "padded": True}),
        ("qwen_plus", {}, {}),
        ("qwen_plus", {"zero_cond_t": True}, {}),
    ],
)
def test_pruning_equals_dropped_keys_at_minus_infinity(tiny, kind, options, arguments, front):
    pipe, call = tiny(kind, **options)
    arguments = call(steps=5, **arguments)
    twin = copy.deepcopy(arguments["generator"])
    plain = pipe(**{**arguments, "generator": copy.deepcopy(twin)}).images
    with ToPi(tau=0.6, **{**small, "front_layers": front})(pipe) as method:
        pruned = pipe(**arguments).images
    assert min(record.keep_ratio for record in method.trace) < 0.8
    with Oracle(pipe, method.trace):
        oracle = pipe(**{**arguments, "generator": twin}).images
    assert (pruned - oracle).abs().max() <= 1e-5
    assert (pruned - plain).abs().max() > 1e-3


def seen_by_transformer(pipe, arguments):
    """The keyword arguments of a pipeline's first transformer call."""
    seen = []

    def look(module, args, kwargs):
        seen.append(kwargs)

    handle = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        pipe(**arguments)
    finally:
        handle.remove()
    return seen[0]


def twice(value, times):
    """What a transformer call gets for so many samples, from that for one."""
    if isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == 1:
        return value.repeat(times, *[1] * (value.ndim - 1))
    return value * times if isinstance(value, list) and len(value) == 1 else value


class TestBranches:
    @pytest.fixture(params=["flux", "qwen"])
    def traces(self, request, tiny):
        pipe, call = tiny(request.param)
        traces = {}
        for cfg_mask in CFG_MASKS:
            with ToPi(tau=0.5, cfg_mask=cfg_mask, **small)(pipe) as method:
                pipe(**call(steps=6, cfg=True))
            traces[cfg_mask] = method.trace
        return traces

    @staticmethod
    def masks(trace, step):
        return [record.kept for record in trace if record.step == step]

    def test_shared_and_cond_agree_over_branches_separate_does_not(self, traces):
        for step in (2, 5):
            assert len(set(self.masks(traces["shared"], step))) == 1
            assert len(set(self.masks(traces["cond"], step))) == 1
            assert len(set(self.masks(traces["separate"], step))) == 2

    def test_cond_is_the_first_branch_of_separate(self, traces):
        assert self.masks(traces["cond"], 2)[0] == self.masks(traces["separate"], 2)[0]

    def test_cond_scores_the_first_branch_only_at_every_anchor(self, traces):
        scored = [(r.step, r.branch) for r in traces["cond"] if r.scoring_seconds]
        assert scored == [(1, "cond"), (4, "cond")]

    def test_shared_adds_both_branches_each_normalised(self):
        method = ToPi(ratio=0.5)
        layout = Layout(0, (1, 1), ((1, 2),))
        for branch, scores in (("cond", [3.0, 1.0]), ("uncond", [40.0, 60.0])):
            record = CallRecord(2, branch, layout, 1)
            call = Call(2, branch, layout, 1, torch.device("cpu"), record)
            method.begin(call)
            method._scores[branch] = torch.tensor([scores])
            method.end(call)
            assert method.kept(call).tolist() == [0]  # 0.75 + 0.4 > 0.25 + 0.6, but 43 < 61


class TestOptions:
    def test_batch_keeps_what_any_sample_needs(self, flux):
        pipe, call = flux
        alone = []
        arguments = call(steps=3, batch=2)
        noise = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
        with ToPi(tau=0.5, **small)(pipe) as method:
            pipe(**{**arguments, "latents": noise})
            both = set(method.trace[-1].kept)
            for i in range(2):
                one = {**arguments, "latents": noise[i : i + 1]}
                for name in ("prompt_embeds", "pooled_prompt_embeds"):
                    one[name] = arguments[name][i : i + 1]
                pipe(**one)
                alone.append(set(method.trace[-1].kept))
        assert both == alone[0] | alone[1]
        assert alone[0] != alone[1]

    @pytest.mark.parametrize("more", [{}, {"dropped": "merge"}, {"round_to": 8}])
    @pytest.mark.parametrize("trim_last", [False, True])
    @pytest.mark.parametrize(
        ("kind", "options"),
        [("flux", {}), ("flux2", {}), ("qwen", {}), ("qwen_plus", {"zero_cond_t": True})],
    )
    def test_with_masks_of_their_own_samples_are_as_if_alone(
        self, tiny, kind, options, trim_last, more
    ):
        pipe, call = tiny(kind, **options)
        given, alone = seen_by_transformer(pipe, call(steps=4)), []
        noise = torch.Generator().manual_seed(0)
        states = torch.randn(2, *given["hidden_states"].shape[1:], generator=noise)
        method = ToPi(ratio=0.3, batch_mask="own", **small, **more)

        def outputs(states):
            batch = {k: twice(v, len(states)) for k, v in given.items()}
            with method(pipe.transformer, trim_last=trim_last):
                for t in (0.9, 0.8, 0.7):
                    times = torch.full((len(states),), t)
                    new = batch | {"hidden_states": states, "timestep": times}
                    result = pipe.transformer(**new)[0]
                return result, method.trace[-1]

        both, record = outputs(states)
        first, second = record.kept_by_sample
        assert record.kept == first != second
        for i in range(2):
            one, single = outputs(states[i : i + 1])
            assert single.kept == record.kept_by_sample[i]
            assert single.kept_by_sample is None
            alone.append(one)
        assert (both - torch.cat(alone)).abs().max() < 1e-5

    def test_a_sample_that_needs_fewer_keeps_as_many_as_the_other(self):
        scores = torch.tensor([[8.0, 1, 1, 0], [1.0, 2, 4, 3]])
        method = ToPi(tau=0.75, batch_mask="own")
        masks = method.choose(scores, Layout(0, (1, 1), ((1, 4),)))
        assert masks.sum(-1).tolist() == [1, 3]
        assert method.of_batch(masks, scores).tolist() == [[0, 1, 2], [1, 2, 3]]
        assert method.of_batch(masks[:1], scores[:1]).tolist() == [0]
        method.round_to = 4
        assert method.of_batch(masks, scores).tolist() == [[0, 1, 2, 3]] * 2

    def test_ratio_keeps_exactly_so_many(self, flux):
        pipe, call = flux
        for ratio, count in ((0.5, 32), (0.26, 17), (0.0, 1)):
            with ToPi(ratio=ratio, **small)(pipe) as method:
                pipe(**call(steps=3))
            assert len(method.trace[-1].kept) == count

    def test_highest_and_lowest_split_the_references(self, flux):
        pipe, call = flux
        masks = []
        for order in ("highest", "lowest"):
            with ToPi(ratio=0.5, order=order, **small)(pipe) as method:
                pipe(**call(steps=3))
            masks.append(set(method.trace[-1].kept))
        assert len(masks[0] | masks[1]) == 64

    def test_normalised_layers_count_the_same(self, flux):
        pipe, call = flux
        totals = []

        class Watched(ToPi):
            def end(self, call):
                super().end(call)
                if call.record.anchor:
                    totals.append(float(self._scores["cond"].sum()))

        for normalise in (True, False):
            with Watched(normalise_layers=normalise, **small)(pipe):
                pipe(**call(steps=2))
        assert totals[0] == pytest.approx(2.0)  # one for each of the two layers
        assert totals[1] > 10

    def test_reference_floor_saves_a_picture_that_scores_low(self):
        layout = Layout(0, (1, 1), ((2, 2), (1, 4)))
        scores = torch.tensor([[8.0, 7, 6, 5, 0.1, 0.4, 0.3, 0.2]] * 2)
        for floor, kept in ((0.0, [0, 1]), (0.5, [0, 1, 5, 6])):
            mask = ToPi(tau=0.5, reference_floor=floor).choose(scores, layout)
            assert [sample.nonzero().flatten().tolist() for sample in mask] == [kept] * 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"tau": 1.1}, r"tau=1.1 must be a number in \[0, 1\]"),
            ({"tau": -0.1}, r"tau=-0.1"),
            ({"tau": float("nan")}, r"tau=nan"),
            ({"tau": "high"}, r"tau='high'"),
            ({"ratio": 2}, r"ratio=2"),
            ({"tau": 0.9, "ratio": 0.5}, r"tau=0.9 and ratio=0.5 exclude each other"),
            ({"tau": float("0.85"), "ratio": 0.5}, r"tau=0.85 and ratio=0.5 exclude each other"),
            ({"tau": None}, r"Neither tau nor ratio"),
            ({"score": "luck"}, r"score='luck'.*influence, attention, similarity, value_norm"),
            ({"batch_mask": "each"}, r"batch_mask='each'.*union, own"),
            ({"cfg_mask": "none"}, r"cfg_mask='none'.*shared, cond, separate"),
            ({"order": "middle"}, r"order='middle'.*highest, lowest"),
            ({"update_every": -1}, r"update_every=-1"),
            ({"first_anchor": -1}, r"first_anchor=-1"),
            ({"front_layers": 2.5}, r"front_layers=2.5"),
            ({"layers": ()}, r"layers is empty"),
            ({"layers": (-1,)}, r"layers=-1"),
            ({"layers": "12"}, r"layers='12' must be a list"),
            ({"reference_floor": 3}, r"reference_floor=3"),
        ],
    )
    def test_at_construction(self, params, message):
        with pytest.raises(ToPiError, match=message):
            ToPi(**params)

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"front_layers": 1}, r"No representative layers are known.*pass layers="),
            ({"layers": (1,)}, r"front_layers=10 leaves none of the 6 layers.*front_layers=1 is"),
            ({"front_layers": 6, "layers": (1,)}, r"front_layers=6 leaves none"),
            ({"front_layers": 1, "layers": (1, 6)}, r"layers \[6\] do not exist.*0 to 5"),
        ],
    )
    def test_at_attach(self, flux, params, message):
        with pytest.raises(ToPiError, match=message), ToPi(**params)(flux[0]):
            pass

    def test_defaults_are_those_of_the_paper_and_can_be_replaced(self):
        method = ToPi()
        assert (method.tau, method.ratio, method.front_layers) == (0.85, None, 10)
        assert (method.update_every, method.first_anchor) == (10, 2)
        assert (method.score, method.cfg_mask) == ("influence", "shared")
        assert (replace(method, ratio=0.5).tau, ToPi(ratio=0.5).tau) == (None, None)
        assert replace(ToPi(ratio=0.5), update_every=5).ratio == 0.5

    def test_published_layers_are_the_default_at_the_published_depth(self, tiny):
        method = ToPi()
        with method(tiny("qwen", layers=60)[0]):
            assert method._layers == {35, 37, 42}


class TestWhenTheMaskIsChosen:
    """A read from the device: once in an anchor step, when its last branch has been scored."""

    @pytest.fixture
    def masks(self):
        method = ToPi(ratio=0.5, first_anchor=1, update_every=3)
        layout, score = Layout(0, (1, 1), ((1, 4),)), torch.tensor([[1.0, 2, 3, 4]])

        def step(number, *branches):
            """The mask after each branch's call."""
            found = []
            for branch in branches:
                record = CallRecord(number, branch, layout, 1)
                call = Call(number, branch, layout, 1, torch.device("cpu"), record)
                method.begin(call)
                if record.anchor:
                    method.add_scores(call, 13, score if branch == "cond" else score.flip(-1) ** 3)
                method.end(call)
                mask = method.kept(call)
                found.append(None if mask is None else mask.tolist())
            return found

        return step

    def test_with_the_last_branch(self, masks):
        assert masks(0, "cond", "uncond") == [None, None]
        assert masks(1, "cond", "uncond") == [None, [0, 1]]

    def test_a_branch_that_is_not_known_yet_adds_to_it(self, masks):
        assert masks(1, "cond", "uncond") == [[2, 3], [0, 1]]
        assert masks(4, "cond", "uncond") == [[0, 1], [0, 1]]

    def test_a_branch_that_has_left_is_waited_for_until_the_next_step_and_only_once(self, masks):
        masks(0, "cond", "uncond")
        assert masks(1, "cond") == [None]
        assert masks(2, "cond") == [[2, 3]]
        masks(3, "cond")
        assert masks(4, "cond") == [[2, 3]]

    def test_a_branch_that_comes_back_counts_again(self, masks):
        masks(0, "cond", "uncond"), masks(1, "cond"), masks(2, "cond", "uncond")
        assert masks(4, "cond", "uncond") == [[2, 3], [0, 1]]
