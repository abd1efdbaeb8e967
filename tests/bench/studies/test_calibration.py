"""Calibration and probe on attention built by hand, where every share is known beforehand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from topi.bench.data import EditSample
from topi.bench.results import files
from topi.bench.studies import calibration as evaluation
from topi.bench.studies.calibration import calibrate, stability, summarise, top_layers
from topi.bench.studies.observation import observe, stack
from topi.bench.studies.probing import rank_correlation, token_arrays
from topi.engine import Call, CallRecord
from topi.errors import ToPiError
from topi.methods.probes.attention_probe import AttentionProbe
from topi.models import Layout

LAYOUT = Layout(n_text=2, target_grid=(2, 2), reference_grids=((1, 3),))
OTHERS = 2 + 4  # text and target keys
BRANCHES = ("cond", "uncond")
PROFILES = {"local_edit": (0.1, 0.4, 0.3, 0.2), "camera_move": (0.1, 0.2, 0.6, 0.5)}


def attend(probe, step, branch, layer, weights, norms=(1.0, 1.0, 1.0)):
    """One layer in which reference key j weighs weights[j] times as much as any other key."""
    record = CallRecord(step, branch, LAYOUT, 1)
    if not any((r.step, r.branch) == (step, branch) for r in probe.trace):
        probe.trace.append(record)
    query = torch.ones(1, 9, 1, 1)
    key, value = torch.zeros(1, 9, 1, 1), torch.ones(1, 9, 1, 1)
    key[0, 6:, 0, 0] = torch.log(torch.tensor(weights))
    value[0, 6:, 0, 0] = torch.tensor(norms)
    call = Call(step, branch, LAYOUT, 1, torch.device("cpu"), record)
    probe.attend(call, layer, query, key, value, None)


def seen(profile, steps=(1.0, 0.5), maps=False):
    """A probe that saw layer k give the references profile[k] of its attention, times the step."""
    probe = AttentionProbe(maps=maps)
    probe._layers = frozenset(range(len(profile)))
    for step, factor in enumerate(steps):
        for branch in BRANCHES:
            for layer, share in enumerate(profile):
                share = share * factor
                attend(probe, step, branch, layer, [share / (1 - share) * OTHERS / 3] * 3)
    return probe


class HandBuilt:
    """An editor that edits nothing, and samples whose attention is their category's profile."""

    name, steps, device_name = "by_hand", 2, "cpu"

    def __init__(self, monkeypatch):
        self.seeds = []
        monkeypatch.setattr(evaluation, "observe", self.observe)

    def observe(self, editor, sample, seed):
        self.seeds.append(seed)
        return seen(PROFILES[sample.category])

    def fingerprint(self):
        return "abc"


def samples(count=6):
    names = list(PROFILES)
    return [EditSample(f"s{i}", names[i % 2], "task", "x", ()) for i in range(count)]


def test_a_hand_built_attention_gives_its_layers(monkeypatch):
    result = calibrate(HandBuilt(monkeypatch), samples(), seed=7, top=2)
    mean = [0.1, 0.3, 0.45, 0.35]
    assert result.layers == (2, 3)
    assert result.overall.by_layer == pytest.approx([0.75 * s for s in mean], abs=1e-5)
    assert result.overall.by_step == pytest.approx([0.3, 0.15], abs=1e-5)
    assert result.by_category["local_edit"].layers == (1, 2)
    assert result.by_category["camera_move"].layers == (2, 3)
    assert result.by_category["local_edit"].by_layer == pytest.approx(
        [0.075, 0.3, 0.225, 0.15], abs=1e-5
    )
    assert [c.samples for c in result.by_category.values()] == [3, 3]
    assert [row["seed"] for row in result.samples] == [7, 8, 9, 10, 11, 12]
    assert (result.origin["weights"], result.origin["seed"]) == ("abc", 7)
    assert "job" not in result.origin


def test_equal_layers_are_taken_from_the_front():
    assert top_layers([0.5, 0.7, 0.5, 0.5], 2) == (0, 1)
    assert top_layers([0.1, 0.2], 3) == (0, 1)


def test_a_killed_calibration_goes_on_and_ends_the_same(monkeypatch, tmp_path):
    whole = calibrate(HandBuilt(monkeypatch), samples(), rows=tmp_path / "whole.jsonl")
    rows, editor = tmp_path / "cut" / "rows.jsonl", HandBuilt(monkeypatch)

    def killed(*arguments):
        if len(editor.seeds) == 3:
            raise KeyboardInterrupt
        return editor.observe(*arguments)

    monkeypatch.setattr(evaluation, "observe", killed)
    with pytest.raises(KeyboardInterrupt):
        calibrate(editor, samples(), rows=rows)
    with rows.open("a") as file:
        file.write('{"sample": "s3", "ind')
    again = HandBuilt(monkeypatch)
    assert calibrate(again, samples(), rows=rows) == whole
    assert again.seeds == [3, 4, 5]
    assert files.read_lines(rows) == files.read_lines(tmp_path / "whole.jsonl")


def rows_of(*profiles):
    return [{"category": "c", "by_layer": list(profile), "by_step": [0.5]} for profile in profiles]


def test_equal_samples_are_stable():
    result = summarise(rows_of(*[(0.1, 0.2, 0.3)] * 5), top=2).stability
    assert (result.subsets, result.same_set, result.frequency) == (100, 1.0, (0.0, 1.0, 1.0))


def test_bootstrap_is_a_function_of_its_seed():
    strata = [np.random.default_rng(0).random((8, 6)) for _ in range(2)]
    first = stability(strata, top=2, seed=1)
    assert first == stability(strata, top=2, seed=1)
    assert first != stability(strata, top=2, seed=2)
    assert sum(first.frequency) == pytest.approx(2)
    assert 0 < first.same_set < 1


def test_bootstrap_frequencies_equal_the_chance_of_a_draw():
    # Layer 0 wins where most of three draws are of the first kind: 7 of 27 times.
    strata = [np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])]
    result = stability(strata, top=1, subsets=4000)
    assert result.frequency[0] == pytest.approx(7 / 27, abs=0.03)
    assert result.same_set == result.frequency[1]


def test_bootstrap_keeps_the_share_of_each_category():
    strata = [np.array([[0.9, 0.0, 0.1]] * 2), np.array([[0.0, 0.5, 0.1]] * 2)]
    assert stability(strata, top=1).same_set == 1  # two of each, whatever is drawn
    alone = [each[:1] for each in strata]
    assert 0.6 < stability(alone, top=1).same_set < 0.9  # of four draws one misses the first


def test_stack_has_branches_steps_and_layers():
    mass = stack(seen((0.1, 0.4)).mass)
    assert mass.shape == (2, 2, 2)
    assert mass[1] == pytest.approx(np.array([[0.1, 0.4], [0.05, 0.2]]))


def test_token_arrays_of_a_hand_built_attention():
    probe = AttentionProbe(maps=True)
    probe._layers = frozenset(range(2))
    for branch in BRANCHES:
        # Layer 1 is representative: weights 1, 2, 3 of 12; long values turn the order around.
        attend(probe, 0, branch, 0, [6.0, 6.0, 6.0])
        attend(probe, 0, branch, 1, [1.0, 2.0, 3.0], norms=(12.0, 3.0, 1.0))
        attend(probe, 1, branch, 0, [6.0, 6.0, 6.0])
        attend(probe, 1, branch, 1, [3.0, 2.0, 1.0], norms=(1.0, 1.0, 1.0))
    arrays = token_arrays(probe, layers=(1,), tau=0.7)
    assert arrays["mass"] == pytest.approx(np.array([[[0.75, 0.5]] * 2] * 2))
    ordered = 3 * np.array([1, 2, 3]) / 12  # |C| S_j of layer 1
    assert arrays["representative"] == pytest.approx(np.array([ordered, ordered[::-1]]), rel=1e-3)
    assert arrays["attention"][0] == pytest.approx((0.75 + ordered) / 2, rel=1e-3)
    assert arrays["attention"].mean(1) == pytest.approx(arrays["mass"].mean((0, 2)), rel=1e-3)
    influence = np.array([12, 6, 3]) / 7
    assert arrays["influence"][0] == pytest.approx(influence, rel=1e-3)
    # Eq. 10: 12 of 21 are less than 0.7 of it, 18 are more; 3 and 2 of 6 are more than 0.7.
    assert arrays["kept"].tolist() == [[True, True, False], [True, True, False]]
    assert arrays["rank_attention"] == pytest.approx([1, -1])
    assert arrays["rank_influence"] == pytest.approx([1, 1])
    assert {arrays[name].dtype for name in ("attention", "representative", "influence")} == {
        np.dtype("float16")
    }


def test_rank_correlation():
    scores = np.array([[1, 2, 3, 4], [10, 20, 30, 40], [4, 3, 2, 1], [2, 1, 4, 3], [1, 1, 2, 2]])
    assert rank_correlation(scores) == pytest.approx([1, 1, -1, 0.6, 4 / 20**0.5])
    assert np.isnan(rank_correlation(np.array([[1, 2], [5, 5]]))[1])


def test_a_model_without_references_is_refused(flux):
    blind = SimpleNamespace(name="blind", pipe=flux[0], edit=lambda sample, seed: None)
    with pytest.raises(ToPiError, match=r"no reference tokens .* s0"):
        observe(blind, samples(1)[0], 0)
