"""TeaCache by hand."""

import numpy as np
import pytest
import torch

from topi import TeaCache
from topi.bench.studies.cache_fit import computed_share, fit_threshold
from topi.errors import ToPiError
from topi.methods.caches.teacache import rescale
from topi.methods.parts.temporal import relative_change
from topi.models import ModelFacts
from topi.models.flux import FluxAdapter
from topi.models.qwen import QwenAdapter

KONTEXT = FluxAdapter.published_cache[19, 38]["teacache"]
QWEN = QwenAdapter.published_cache[(60,)]["teacache"]
FLUX_DEV = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
LINE = {"coefficients": (1.0, 0.0)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [(0, 0.0375), (0.05, 0.0482), (0.1, 0.1170), (0.2, 0.2677), (0.3, 0.2677), (9.0, 0.2677)],
)
def test_the_published_polynomial_for_kontext(change, expected):
    assert rescale(change, **KONTEXT) == pytest.approx(expected, abs=5e-5)


def test_a_polynomial_is_never_negative():
    assert rescale(0, **QWEN) == 0  # -0.02 as printed
    assert rescale(0.2, **QWEN) == pytest.approx(-0.72 + 2.24 - 1.8 + 0.64 - 0.02)
    assert rescale(0.3, KONTEXT["coefficients"], 1.0) == 0


def test_relative_change(column):
    assert relative_change(column(1, 2), column(1, 4)) == pytest.approx(2 / 5)
    assert relative_change(column(0, 0), column(0, 0)) == 0
    assert relative_change(column(0, 1), column(0, 0)) == float("inf")


def test_constant_inputs_add_up_the_constant_term(drive, column):
    """0.264 and 0.528 stay below 0.6, the third does not."""
    same = [column(1, 2, 3, 4)] * 9
    did, _ = drive(TeaCache(threshold=0.6, coefficients=FLUX_DEV), same)
    assert did == "cssc" + "ssc" + "s" + "c"


def test_thresholds_at_the_ends(drive, column):
    same = [column(1, 2, 3, 4)] * 5
    assert drive(TeaCache(threshold=0, coefficients=(0.0,)), same)[0] == "ccccc"
    assert drive(TeaCache(threshold=float("inf"), **LINE), same)[0] == "csssc"
    assert drive(TeaCache(threshold=float("inf"), **LINE), same[:1])[0] == "c"


def test_change_is_from_step_to_step_also_over_skipped_ones(drive, column):
    """1 to 2 to 3 are changes of 1 and 0.5; from the computed step they would be 1 and 2."""
    inputs = [column(value, value, value, value) for value in (1, 2, 3, 3, 3)]
    assert drive(TeaCache(threshold=1.51, **LINE), inputs)[0] == "csssc"
    assert drive(TeaCache(threshold=1.5, **LINE), inputs)[0] == "cscsc"


def test_the_drift_starts_anew_at_a_computed_step_of_any_kind(drive, column):
    inputs = [column(value, 0, 0, 0) for value in (1, 1.5, 1.5, 2.25, 2.25, 2.25)]
    assert drive(TeaCache(threshold=0.6, **LINE), inputs)[0] == "csscsc"
    assert drive(TeaCache(threshold=0.6, **LINE), inputs, anchors=(2,))[0] == "cscssc"


def test_a_skipped_step_adds_the_residual_of_the_target_tokens(drive, column):
    same = [column(1, 2, 3, 4)] * 4
    states = [column(t, 2 * t, 7, 7) for t in range(4)]
    outputs = [column(5, 6), column(0, 0), column(0, 0), column(1, 1)]
    did, out = drive(TeaCache(threshold=1, **LINE), same, states=states, outputs=outputs)
    assert did == "cssc"
    assert torch.equal(out[1], column(1 + 5, 2 + 6))
    assert torch.equal(out[2], column(2 + 5, 4 + 6))


CALM_AND_WILD = [
    {"cond": torch.ones(1, 4, 1), "uncond": torch.full((1, 4, 1), 2.0**step)} for step in range(4)
]


class TestBranches:
    def test_the_first_decides_for_all(self, drive):
        did, _ = drive(TeaCache(**LINE), CALM_AND_WILD, branches=("cond", "uncond"))
        assert did == "ccsssscc"

    def test_each_for_itself(self, drive):
        cache = TeaCache(cfg_decision="separate", **LINE)
        assert drive(cache, CALM_AND_WILD, branches=("cond", "uncond"))[0] == "ccscsccc"

    def test_each_has_its_own_residual(self, drive, column):
        outputs = iter([column(1, 1), column(2, 2), column(0, 0), column(0, 0)])

        class Next:
            def __getitem__(self, step):
                return next(outputs)

        same = [column(1, 1, 1, 1)] * 3
        _, out = drive(TeaCache(**LINE), same, outputs=Next(), branches=("cond", "uncond"))
        assert torch.equal(out[2], column(1, 1))
        assert torch.equal(out[3], column(2, 2))


def test_the_polynomial_comes_from_the_model_or_the_caller(drive, column):
    same = [column(1, 1, 1, 1)] * 5
    fit = {"teacache": {"coefficients": [0.2], "ceiling": 1.0}}
    facts = ModelFacts("Flux", (2, 4), (("attention",),) * 6, None, fit)
    assert drive(TeaCache(threshold=0.3), same, facts=facts)[0] == "cscsc"
    assert drive(TeaCache(threshold=0.3, coefficients=[0.1]), same, facts=facts)[0] == "csscc"


def test_without_a_fit(flux):
    with pytest.raises(ToPiError, match="run `topi fit-cache`"), TeaCache()(flux[0]):
        pass


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"threshold": -0.1}, "threshold=-0.1 must be a number of at least 0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"cfg_decision": "cond"}, "choose one of: shared, separate"),
        ({"schedule": "some"}, "choose one of: computed, all"),
        ({"coefficients": ()}, "coefficients is empty"),
    ],
)
def test_what_is_refused(params, words):
    with pytest.raises(ToPiError, match=words):
        TeaCache(**params)


def test_the_threshold_is_that_of_half_of_the_steps(drive, column):
    """And the share that it is fitted to is what TeaCache does."""
    runs = [[0.1, 0.3, 0.2, 0.1, 0.1, 0.5, 0.1], [0.2] * 7]
    threshold = fit_threshold(runs)
    shares = [computed_share(run, threshold) for run in runs]
    assert sum(shares) / 2 == 0.5
    for run, share in zip(runs, shares, strict=True):
        sizes = np.cumprod([1.0, *(1 + change for change in run)]).tolist()
        inputs = [column(size, size, size, size) for size in sizes]
        did, _ = drive(TeaCache(threshold=threshold, coefficients=(1.0, 0.0)), inputs)
        assert did.count("c") / len(did) == share
