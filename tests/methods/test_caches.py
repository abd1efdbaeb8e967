"""FirstBlockCache, TaylorSeer and MagCache by hand."""

import pytest
import torch

from topi import FirstBlockCache, MagCache, TaylorSeer, ToPi
from topi.errors import ToPiError
from topi.methods import CACHES, make_cache
from topi.methods.caches.magcache import magnitude_ratio, nearest
from topi.methods.caches.taylorseer import backward_differences, taylor
from topi.models import ModelFacts
from topi.models.flux import FluxAdapter
from topi.models.qwen import QwenAdapter


def test_caches_are_found_under_their_names():
    assert set(CACHES) == {"teacache", "first_block_cache", "taylorseer", "magcache"}
    for name in CACHES:
        assert make_cache(name).name == name
    with pytest.raises(ToPiError, match="no cache 'teecache'; choose one of: first_block_cache"):
        make_cache("teecache")
    with pytest.raises(ToPiError, match=r"no parameter gap; it takes: .*order"):
        make_cache("taylorseer", gap=1)


class TestFirstBlockCache:
    def run(self, drive, column, adds, **params):
        """`adds[t]` is what the first block adds to every row."""
        inner = [
            column(*[add] * 4) if isinstance(add, int | float) else column(*add) for add in adds
        ]
        return drive(FirstBlockCache(**params), [column(0, 0, 0, 0)] * len(adds), inner=inner)[0]

    def test_compared_with_the_latest_computed_step(self, drive, column):
        """4 % from step to step, but 8 % from the computed one, which then is the new measure."""
        assert self.run(drive, column, (1, 1.04, 1.08, 1.12, 1.12)) == "cscss"

    def test_thresholds_at_the_ends(self, drive, column):
        assert self.run(drive, column, (1, 1, 1), threshold=-1) == "ccc"
        assert self.run(drive, column, (1, 5, 0, -3), threshold=float("inf")) == "csss"
        assert self.run(drive, column, (1, 1, 1.01), threshold=0) == "csc"

    def test_a_first_block_that_adds_nothing(self, drive, column):
        assert self.run(drive, column, (0, 0, 1)) == "csc"

    def test_warm_up_and_rows(self, drive, column):
        assert self.run(drive, column, (1, 1, 1, 1), warmup=3) == "cccs"
        adds = ((1, 1, 1, 1), (1, 1, 9, 9), (1, 1, 5, 5))
        assert self.run(drive, column, adds) == "ccc"
        assert self.run(drive, column, adds, rows="target") == "css"

    def test_at_most_so_many_in_a_row(self, drive, column):
        assert self.run(drive, column, [1] * 8, max_skips=2) == "csscsscs"
        assert self.run(drive, column, [1] * 4, max_skips=0) == "cccc"
        assert self.run(drive, column, (1, 1, 2, 2, 2, 2), max_skips=2) == "cscssc"
        with pytest.raises(ToPiError, match="max_skips=-1"):
            FirstBlockCache(max_skips=-1)

    def test_the_residual_is_that_of_the_other_blocks(self, drive, column):
        inner = [column(1, 1, 1, 1), column(1.01, 1.01, 1.01, 1.01)]
        zero = [column(0, 0, 0, 0)] * 2
        _, out = drive(FirstBlockCache(), zero, inner=inner, outputs=[column(5, 6), None])
        assert torch.allclose(out[1], column(5.01, 6.01))

    def test_blocks_that_are_not_there(self, flux):
        with (
            pytest.raises(ToPiError, match="first_blocks=6"),
            FirstBlockCache(first_blocks=6)(flux[0]),
        ):
            pass

    def test_image_rows_behind_the_gather_are_refused_when_stacked(self):
        topi = ToPi(ratio=0.5, front_layers=0, layers=(1,), first_anchor=0)
        with pytest.raises(ToPiError, match="rows=target"):
            topi + FirstBlockCache()
        assert topi + FirstBlockCache(rows="target")


class TestTaylorSeer:
    def test_schedule(self, drive, column):
        did, _ = drive(TaylorSeer(), [column(0, 0, 0, 0)] * 16)
        assert [step for step, each in enumerate(did) if each == "c"] == [0, 1, 2, 4, 9, 14]
        assert drive(TaylorSeer(interval=1), [column(0, 0, 0, 0)] * 5)[0] == "ccccc"
        assert drive(TaylorSeer(warmup=0, interval=2), [column(0, 0, 0, 0)] * 5)[0] == "ccscs"

    def states(self, drive, column, values, **params):
        outputs = [column(value, 0) for value in values]
        did, out = drive(TaylorSeer(**params), [column(0, 0, 0, 0)] * len(values), outputs=outputs)
        return did, [float(each[0, 0, 0]) for each in out]

    def test_linear_states_are_forecast_exactly(self, drive, column):
        did, out = self.states(drive, column, [3 + 2 * s for s in range(10)])
        assert did == "cccscssssc"
        assert out == [3 + 2 * s for s in range(10)]

    def test_order_0_repeats(self, drive, column):
        assert self.states(drive, column, (1, 2, 3, 4), order=0)[1] == [1, 2, 3, 3]

    def test_quadratic_states_lag(self, drive, column):
        """Backward differences of s^2 at 2 are 4, 3, 2: 8 one step ahead, where 9 is true."""
        assert self.states(drive, column, (0, 1, 4, 9), order=2)[1] == [0, 1, 4, 8]

    def test_differences_over_a_gap(self):
        factors = []
        for value, gap in ((1.0, 0), (5.0, 2), (11.0, 3)):
            factors = backward_differences(torch.tensor(value), factors, gap, order=2)
        assert [float(f) for f in factors] == [11, 2, 0]
        assert float(taylor([torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)], 3)) == 25

    @pytest.mark.parametrize("params", [{"interval": 0}, {"order": -1}, {"warmup": 0.5}])
    def test_what_is_refused(self, params):
        with pytest.raises(ToPiError, match="whole number of at least"):
            TaylorSeer(**params)


class TestMagCache:
    def run(self, drive, column, ratios, **params):
        steps = [column(0, 0, 0, 0)] * len(ratios)
        return drive(MagCache(ratios=ratios, **params), steps)[0]

    def test_the_error_adds_up(self, drive, column):
        """|1 - 0.98| = 0.02 stays below 0.05; with |1 - 0.98^2| = 0.0396 it does not."""
        assert self.run(drive, column, [0.98] * 8) == "cc" + "scscsc"
        assert self.run(drive, column, [0.98] * 8, threshold=0.06) == "cc" + "sscssc"

    def test_at_most_so_many_in_a_row(self, drive, column):
        assert self.run(drive, column, [1.0] * 9, max_skips=2) == "cc" + "sscsscs"
        assert self.run(drive, column, [1.0] * 6, max_skips=0) == "cccccc"

    def test_the_first_steps_are_computed(self, drive, column):
        assert self.run(drive, column, [1.0] * 5, retention=0.7) == "ccccs"
        assert self.run(drive, column, [1.0] * 3, retention=0) == "css"

    def test_ratios_of_another_number_of_steps(self):
        published = FluxAdapter.published_cache[19, 38]["magcache"]["ratios"]
        assert nearest(published, 28) == list(published)
        assert nearest([1, 2, 3], 5) == [1, 1, 2, 3, 3]  # 0.5 and 1.5 round to even
        assert nearest([1, 2, 3], 2) == [1, 3]
        assert nearest([1, 2, 3], 1) == [3]

    def test_kontext_always_computes_one_step(self, drive, column):
        """As the official script: the steps that stand for number 11 of 28, here of ratio 1."""
        fit = {
            "magcache": FluxAdapter.published_cache[19, 38]["magcache"] | {"ratios": (1.0,) * 28}
        }
        facts = ModelFacts("Flux", (19, 38), (("attention",),) * 57, None, fit)
        zeros = column(0, 0, 0, 0)
        did, _ = drive(MagCache(max_skips=99), [zeros] * 28, facts=facts)
        assert did == "c" * 6 + "s" * 5 + "c" + "s" * 16
        did, _ = drive(MagCache(max_skips=99), [zeros] * 55, facts=facts)
        assert [step for step in range(11, 55) if did[step] == "c"] == [22]  # 21 and 23: 10 and 12
        own = MagCache(max_skips=99, ratios=(1.0,) * 28)
        assert drive(own, [zeros] * 28, facts=facts)[0] == "c" * 6 + "s" * 22
        given = MagCache(ratios=(1.0,) * 5, retention=0, always=[0, 3])
        assert drive(given, [zeros] * 5, facts=facts)[0] == "csscs"

    def test_the_settings_of_qwen_image_edit(self, drive, column):
        """Threshold 0.06 and 2 skips: with ratios of 0.98, errors of 0.02, 0.0396; of 1, skips."""
        fit = QwenAdapter.published_cache[(60,)]
        assert len(fit["magcache"]["ratios"]) == 50
        for ratio, expected in ((0.98, "cc" + "sscssc"), (1.0, "cc" + "sscssc")):
            known = {"magcache": fit["magcache"] | {"ratios": (ratio,) * 8}}
            facts = ModelFacts("Qwen", (60,), (("attention",),) * 60, None, known)
            assert drive(MagCache(), [column(0, 0, 0, 0)] * 8, facts=facts)[0] == expected
        assert drive(MagCache(threshold=0.05), [column(0, 0, 0, 0)] * 8, facts=facts)[0] == expected

    def test_magnitude_ratio(self):
        before = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
        assert magnitude_ratio(2 * before, before) == pytest.approx(2)
        assert magnitude_ratio(torch.tensor([[[5.0, 0], [3, 0]]]), before) == pytest.approx(2)

    def test_without_ratios(self, flux):
        with (
            pytest.raises(ToPiError, match=r"MagCache is not fitted .* give ratios"),
            MagCache()(flux[0]),
        ):
            pass

    @pytest.mark.parametrize(
        "params",
        [
            {"threshold": -1},
            {"max_skips": -1},
            {"retention": 2},
            {"ratios": ()},
            {"always": (-1,)},
        ],
    )
    def test_what_is_refused(self, params):
        with pytest.raises(ToPiError):
            MagCache(**params)
