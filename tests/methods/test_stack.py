"""A spatial method and a temporal cache at once."""

import pytest
import torch

from topi import (
    FirstBlockCache,
    Full,
    RandomTokens,
    RefKV,
    TaylorSeer,
    TeaCache,
    ToMA,
    ToMeSD,
    ToPi,
)
from topi.errors import ToPiError
from topi.methods.stack import Stack

small = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 2, "ratio": 0.5}


def log(trace, branch="cond"):
    """A anchor, s skipped, p pruned, m merged, . full"""
    return "".join(
        "A" if r.anchor else "s" if r.skipped else "p" if r.kept else "m" if r.merged else "."
        for r in trace
        if r.branch == branch
    )


class TestSchedule:
    """TaylorSeer alone would compute steps 0, 2, 5 and 8."""

    @pytest.mark.parametrize("kind", ["flux", "qwen"])
    @pytest.mark.parametrize(
        ("schedule", "expected"), [("computed", ".ApAspAsp"), ("all", ".ApAsAsAp")]
    )
    def test_anchors_are_computed_and_count_computed_steps(self, tiny, kind, schedule, expected):
        pipe, call = tiny(kind)
        method = ToPi(**small) + TaylorSeer(interval=3, warmup=1, schedule=schedule)
        with method(pipe):
            pipe(**call(steps=9))
        assert log(method.trace) == expected
        assert [r.step for r in method.trace if r.branch == "cond"] == list(range(9))
        if kind == "qwen":
            assert log(method.trace, "uncond") == expected

    def test_masks_of_other_methods_follow(self, flux):
        pipe, call = flux
        options = {"front_layers": 1, "first_anchor": 0, "update_every": 2}
        with (RandomTokens(**options) + TaylorSeer(interval=4, warmup=0))(pipe) as method:
            pipe(**call(steps=9))
        # computed without anchors: 1, 5
        assert log(method.trace) == "ApAsspAss"
        alone = RandomTokens(**options)
        with alone(pipe):
            pipe(**call(steps=4))
        kept = [r.kept for r in method.trace if r.kept]
        assert kept == [r.kept for r in alone.trace if r.kept]

    def test_merging_methods_stack(self, flux):
        pipe, call = flux
        with (ToMA(merge_every=2) + TaylorSeer(interval=2, warmup=0))(pipe) as method:
            pipe(**call(steps=6))
        assert log(method.trace) == "m.sms."  # alone: steps 0, 2 and 4


def test_steps_before_the_first_skip_are_those_of_the_method_alone(flux):
    pipe, call = flux
    seen = []

    def note(pipe, step, timestep, kwargs):
        seen.append(kwargs["latents"])
        return {}

    for method in (ToPi(**small), ToPi(**small) + TaylorSeer(interval=9, warmup=4)):
        with method(pipe):
            pipe(**call(steps=5, callback_on_step_end=note))
    assert log(method.trace) == ".ApAs"
    for alone, stacked in zip(seen[:4], seen[5:9], strict=True):
        assert torch.equal(alone, stacked)
    assert not torch.equal(seen[4], seen[9])


class TestStacking:
    def test_in_any_order(self):
        for method in (ToPi() + TeaCache(), TeaCache() + ToPi()):
            assert isinstance(method, Stack)
            assert (method.method, method.cache) == (ToPi(), TeaCache())
        assert method.name == "topi+teacache"
        assert method.params == {
            **ToPi().params,
            "cache": {"name": "teacache", **TeaCache().params},
        }

    def test_full_adds_nothing(self):
        assert Full() + TeaCache() == TeaCache() == TeaCache() + Full()
        assert Full() + ToPi() == ToPi()

    @pytest.mark.parametrize(
        ("one", "other", "words"),
        [
            (ToPi(), ToMA(), "ToPi and ToMA cannot be stacked; .* one temporal cache"),
            (ToMeSD(), RandomTokens(), "ToMeSD and RandomTokens cannot be stacked"),
            (TeaCache(), TaylorSeer(), "TeaCache and TaylorSeer both skip steps"),
            (ToPi() + TeaCache(), TaylorSeer(), "cannot be stacked"),
            (ToPi() + TeaCache(), ToMA(), "cannot be stacked"),
            (RefKV(), FirstBlockCache(), "RefKV drops some from layer 0 on; use rows=target"),
            (ToPi(front_layers=1), FirstBlockCache(first_blocks=2), "from layer 1 on"),
        ],
    )
    def test_what_is_refused(self, one, other, words):
        with pytest.raises(ToPiError, match=words) as error:
            one + other
        assert "\n" not in str(error.value)
        with pytest.raises(ToPiError):
            other + one

    @pytest.mark.parametrize(
        ("method", "skipped"),  # its anchors are computed
        [(RefKV(update_every=2), 3), (ToPi(**small | {"front_layers": 0}), 2)],
        ids=["store", "drop"],
    )
    def test_a_first_block_on_fewer_tokens_is_judged_by_the_targets(self, flux, method, skipped):
        pipe, call = flux
        cache = FirstBlockCache(rows="target", threshold=1e9)
        with (method + cache)(pipe) as both:
            pipe(**call(steps=4))
        assert sum(record.skipped for record in both.trace) == skipped

    def test_something_else(self):
        with pytest.raises(TypeError):
            ToPi() + 1

    def test_its_parts_are_in_use(self, flux, qwen):
        topi = ToPi(**small)
        with (
            (topi + TaylorSeer())(flux[0]),
            pytest.raises(ToPiError, match="ToPi object is in use"),
            topi(qwen[0]),
        ):
            pass
        with topi(qwen[0]):
            pass

    def test_both_check_the_model(self, flux):
        with (
            pytest.raises(ToPiError, match="first_blocks=9"),
            (ToPi(**small) + FirstBlockCache(first_blocks=9))(flux[0]),
        ):
            pass
        with pytest.raises(ToPiError, match="front_layers"), (ToPi() + TaylorSeer())(flux[0]):
            pass
