"""Held-out quality, calibration and the model card, on an untrained stand-in of three layers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from topi.bench.data import CATEGORIES, MiniEdit
from topi.bench.data.mini_edit_plus import MiniEditPlus
from topi.bench.editors.editor import Editor, ModelConfig
from topi.bench.editors.standin import BlockTransformVAE
from topi.bench.editors.standin.kontext_standin import kontext_pipeline, new_kontext_transformer
from topi.bench.results import files
from topi.bench.results.calibration_file import read_calibration
from topi.bench.standins import card_measures, card_pictures, model_card
from topi.bench.studies.calibration import calibrate
from topi.bench.studies.held_out import compare, edit_batch
from topi.errors import ToPiError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def editor():
    torch.manual_seed(0)
    transformer = new_kontext_transformer(heads=2, dual=1, single=3)
    settings = dict(steps=6, height=64, width=64, front_layers=1)
    config = ModelConfig("untrained", "kontext", "standin", **settings)
    return Editor(config, kontext_pipeline(transformer, BlockTransformVAE()), "abc")


@pytest.fixture(scope="module")
def calibration(editor):
    return calibrate(editor, MiniEdit("calibration", 64, 4))


@pytest.fixture(scope="module")
def card(editor, calibration):
    return card_measures.measure(editor, calibration, held_out=8, samples=4)


RUN = dict(training="from scratch", command="python", cost="1 minute")
COMMITS = ["0123456789abcdef0123456789abcdef01234567", "fedcba9876543210+"]
TOLD = dict(commits=COMMITS, seed=3, python="3.11.9", versions={"torch": "2.11.0"}, start="ab" * 32)
RECIPE = dict(architecture="a", latents="block", prompt_dropout=0.0, runs=[RUN, RUN])


def test_batched_edits_equal_single_ones(editor):
    samples = [MiniEdit(size=64)[i] for i in range(3)]
    batch = edit_batch(editor, samples, seed=5)
    for sample, image in zip(samples, batch, strict=True):
        single = np.asarray(editor.edit(sample, seed=5), int)
        assert np.abs(single - np.asarray(image)).max() <= 1


def test_shown_are_the_best_typical_and_worst():
    rows = [
        {"category": CATEGORIES[k % 4], "psnr": 20.0 + k // 4, "copy_psnr": 20.0} for k in range(40)
    ]
    assert card_measures.shown(rows)[CATEGORIES[1]] == [37, 33, 21, 17, 5, 1]


def test_edits_are_counted_as_made_by_the_check(editor):
    evaluation = MiniEdit("evaluation", 64)
    rows = []
    for index, made in ((3, True), (3, False), (0, None)):
        sample = evaluation[index]
        about = {"category": sample.category, "task": sample.task, "made": made}
        rows.append(about | compare(sample, sample.target))
    told = card_measures.quality(rows)
    assert told["made"] == 0.5
    assert {task: row["made"] for task, row in told["by_task"].items()} == {
        "camera_move/pan": None,
        "local_edit/add": 0.5,
    }


def test_measured_card_is_complete(card, editor):
    assert set(card["pruning"]["half"]) == set(card_measures.HALF)
    influence = card["pruning"]["half"]["influence (Eq. 9)"]
    assert influence["minus_influence"] == 0
    for row in card["pruning"]["half"].values():
        assert all(ratio == pytest.approx(0.5) for ratio in row["keep_ratio"].values())
    kept = [card["pruning"]["tau"][f"tau={t}"]["keep_ratio"] for t in card_measures.TAUS]
    for category in CATEGORIES:
        ratios = [each[category] for each in kept]
        assert ratios == sorted(ratios) and ratios[-1] <= 1
    assert card["quality"]["samples"] == 8
    assert 0 <= card["quality"]["made"] <= 1  # of the two local edits
    assert card["quality"]["by_task"]["camera_move/pan"]["made"] is None
    assert list(card["other_shapes"]["by_shape"]) == ["104x168", "152x104from112x80"]
    assert (card["transformer"], card["pipeline"]) == (
        "FluxTransformer2DModel",
        "FluxKontextPipeline",
    )
    assert editor.transformer.config["representative_layers"] == card["calibration"]["layers"]


def test_card_is_written_beside_the_weights(card, editor, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    grid = card_pictures.picture_grid(editor, card["shown"])
    model_card.write(card, grid, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "not the weights" in text and "{{" not in text and "{%" not in text
    assert "- Run 1: from scratch; 1 minute. `python`\n- Run 2" in text
    assert "What they show" not in text
    (tmp_path / "remarks.md").write_text("a blob in place of a new boat.\n")
    assert "What they show: a blob in place of a new boat.\n" in model_card.rendered(tmp_path)
    for table_row in ("| camera_move |", "| tau=0.85 |", "| random, redrawn at anchors |"):
        assert table_row in text
    assert Image.open(tmp_path / "edits.png").size == (6 * (3 * 64 + 8), 4 * 72)
    assert json.loads((tmp_path / "card.json").read_text())["quality"]["samples"] == 8


@pytest.mark.parametrize("name", ["calibration.json", "calibration_second.json"])
def test_what_was_calibrated_before_is_taken(calibration, tmp_path, monkeypatch, name):
    """If it is of these weights and as many samples; only a model's own set is the library's."""
    fingerprints = ["of_others", calibration.origin["weights"]]
    measured = []
    monkeypatch.setattr(model_card, "calibrate", lambda *a, **k: measured.append(1) or calibration)
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 1}))
    for fingerprint in fingerprints:  # the first one finds no file, the second its own
        editor = SimpleNamespace(
            calibration_file=tmp_path / name, fingerprint=lambda f=fingerprint: f
        )
        assert model_card.calibrated(editor, MiniEdit("calibration", 64, 4)) == calibration
    assert len(measured) == 1
    assert read_calibration(tmp_path / name) == calibration
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"representative_layers": list(calibration.layers)}
    assert config == {"num_layers": 1} | (own if name == "calibration.json" else {})
    model_card.calibrated(editor, MiniEdit("calibration", 64, 5))
    editor.fingerprint = lambda: "of others again"
    model_card.calibrated(editor, MiniEdit("calibration", 64, 4))
    assert len(measured) == 3  # more samples, and other weights


class Perfect:
    """Makes every edit of one reference as it was asked for, at any size."""

    name = "perfect"
    config = ModelConfig("perfect", "qwen_edit", "standin", steps=1, height=64, width=64)

    def edit(self, sample, seed=0):
        return sample.target


def test_other_shapes_are_told_apart():
    told = card_measures.other_shapes(Perfect(), 12)
    assert told["samples"] == 12
    assert list(told["by_shape"]) == ["104x168", "152x104from112x80", "120from152"]
    for row in told["by_shape"].values():  # four samples each, one of every category
        assert row["made"] == 1 and row["copy"] < 60 < row["all"]
        assert None not in row.values()


def test_card_says_which_bars_are_missed(card):
    reached = {"psnr": 29.0, "psnr_changed": 23.5, "psnr_unchanged": 35.9}
    told = json.loads(json.dumps(card)) | {"model": "kontext_standin"}
    told["quality"]["made"] = 0.85
    for column, value in reached.items():
        told["quality"]["by_category"][column] = dict.fromkeys(CATEGORIES, value)
    rows = {row["name"]: row for row in model_card.bars(told)}
    assert len(rows) == 7 and rows["local_edit, made as asked for"]["measured"] == 85
    text = model_card.render(told, RECIPE)
    assert "| camera_move | 29 dB | 29.0 dB | reached |" in text
    assert "| local_edit, changed pixels | 23 dB | 23.5 dB | reached |" in text
    assert "| local_edit, unchanged pixels | 36 dB | 35.9 dB | **missed** |" in text
    assert "| local_edit, made as asked for | 85 % | 85.0 % | reached |" in text
    two = {"by_task": {"put": {"psnr": 24.9}, "material": {"psnr": 25.0}}, "made": 0.5}
    more = model_card.bars(told | {"model": "qwen_standin", "two_references": two})
    assert [row["measured"] >= row["bar"] for row in more[-3:]] == [False, True, False]
    assert model_card.bars(card) == []  # no bar was set for it


class Counting(Perfect):
    """Counts its edits, and dies at the edit of its number `last`."""

    def __init__(self, last=None):
        self.edits, self.last = 0, last

    def edit(self, sample, seed=0):
        self.edits += 1
        if self.edits == self.last:
            raise KeyboardInterrupt
        return sample.target


def test_a_killed_card_goes_on_at_the_next_sample(tmp_path):
    def shapes(editor):
        return card_measures.other_shapes(editor, 12, tmp_path / "rows")

    with pytest.raises(KeyboardInterrupt):
        shapes(Counting(last=11))
    with (tmp_path / "rows").open("a") as file:
        file.write('{"id": "torn')  # as the kill left it
    second = Counting()
    assert shapes(second) == card_measures.other_shapes(Perfect(), 12)
    assert second.edits == 12 - 8  # batches of eight were finished

    with pytest.raises(KeyboardInterrupt):
        card_measures.two_references(Counting(last=17), 16, tmp_path)
    third = Counting()
    assert card_measures.two_references(third, 16, tmp_path) == card_measures.two_references(
        Perfect(), 16
    )
    assert third.edits == 16  # of the second pass, with another image in place of the second


def test_pruning_goes_on_at_the_next_sample(editor, card, tmp_path, monkeypatch):
    samples = [MiniEdit("evaluation", 64)[k] for k in range(4)]
    rows = tmp_path / "pruning.rows.jsonl"
    with rows.open("w") as file:
        file.write('{"sample": "torn')
    assert card_measures.pruning(editor, samples, 1, rows) == card["pruning"]
    monkeypatch.setattr(card_measures, "make_method", None)  # all are there: no method is needed
    assert card_measures.pruning(editor, samples, 1, rows) == card["pruning"]


def test_one_process_measures_a_card(editor, calibration, card, tmp_path, monkeypatch):
    monkeypatch.setattr(card_measures, "pruning", lambda *of: card["pruning"])
    monkeypatch.setattr(model_card, "_editor", lambda name: editor)
    monkeypatch.setattr(model_card, "calibrated", lambda *of: calibration)
    monkeypatch.setattr(model_card, "weights_folder", lambda name: tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    asked = ["untrained", "--held-out", "16", "--samples", "4", "--store", str(tmp_path)]
    kept = tmp_path / "model_card" / model_card.settings_key([editor], calibration, 16, 4)
    with files.lock(kept / ".lock"), pytest.raises(ToPiError, match="Another process"):
        model_card.main(asked)
    with pytest.raises(SystemExit):
        model_card.main([*asked, "--samples", "3"])
    model_card.main(asked)
    assert json.loads((tmp_path / "card.json").read_text())["quality"]["samples"] == 16
    assert Image.open(tmp_path / "recorded_untrained.png").size == (4 * 64, 64)
    assert not kept.exists()  # it is of no use any more


def test_rows_are_kept_for_what_they_depend_on(editor, calibration):
    keys = {
        model_card.settings_key(editors, calibration, *counts)
        for editors in ([editor], [Editor(editor.config, editor.pipe, "def")], [editor, editor])
        for counts in ((8, 4), (8, 5), (9, 4))
    }
    assert len(keys) == 9 and all(key.startswith("untrained-") for key in keys)


class Painter:
    """Edits with several references by painting the second one over the first."""

    name = "painter"
    config = ModelConfig("painter", "qwen_edit_plus", "standin", steps=1, height=64, width=64)

    def edit(self, sample, seed=0):
        return sample.references[1]


def test_card_says_how_to_train_it_again(card):
    text = model_card.render(card, RECIPE | dict(runs=[RUN, RUN | TOLD]))
    assert "At `012345678`, then `fedcba987` with changes; seed 3, torch 2.11.0, Python" in text
    assert f"started from weights of SHA-256 `{'ab' * 8}`" in text


def test_card_stands_beside_the_paper(card):
    told = json.loads(json.dumps(card))
    told["calibration"] |= {
        "layers": [1, 3, 5],
        "by_layer": [0.1, 0.4, 0.1, 0.5, 0.2, 0.6],
        "by_category": {"a": [0.1, 0.4, 0.1, 0.5, 0.2, 0.6], "b": [0.9, 0.4, 0.8, 0.5, 0.1, 0.1]},
        "by_step": [0.25] * 4 + [0.2] * 4,
    }
    half = told["pruning"]["half"]
    half["attention only"] |= {"minus_influence": -0.5, "standard_error": 0.1}
    half["feature similarity"] |= {"minus_influence": 0.1, "standard_error": 0.1}
    half["random, redrawn at anchors"] |= {"minus_influence": 3.0, "standard_error": 0.1}
    rows = model_card.beside_the_paper(told)
    assert [row["here"] for row in rows[:2]] == ["5.0 times", "1 of 3"]
    assert [row["alike"] for row in rows] == ["yes", "no", "", "yes", "yes"] + [
        "yes",
        "not significant",
        "",
    ]
    told["calibration"]["by_step"] = [0.2] * 4 + [0.4] * 4
    assert [row["alike"] for row in model_card.beside_the_paper(told)[3:5]] == ["no", "no"]
    assert "influence ahead of attention only | +0.5 ± 0.1 dB" in model_card.render(told, RECIPE)


def test_card_tells_how_it_was_trained(card):
    assert "empty in training" not in model_card.render(card, RECIPE)
    guided = model_card.render(card, RECIPE | dict(prompt_dropout=0.1, latents="conv"))
    assert "10 % of the prompts were empty in training" in guided and "autoencoder" in guided


def test_what_a_second_image_is_worth():
    told = card_measures.two_references(Painter(), 8)
    assert (told["model"], told["samples"]) == ("painter", 8)
    assert list(told["by_task"]) == [
        "visual_reference/put",
        "visual_material_transfer/material",
        "visual_reference/swap",
        "visual_material_transfer/background",
    ]
    samples = list(MiniEditPlus("evaluation", 64, 8))
    for start, row in enumerate(told["by_task"].values()):
        one, other = samples[start], samples[start + 4]
        rows = [compare(each, each.references[1]) for each in (one, other)]
        assert row["psnr"] == pytest.approx((rows[0]["psnr"] + rows[1]["psnr"]) / 2)
        crossed = [compare(one, other.references[1]), compare(other, one.references[1])]
        mean = sum(each["psnr_changed"] for each in crossed) / 2
        assert row["psnr_changed_other"] == pytest.approx(mean)
    assert told["made"] == 0  # a second image painted over all is no thing at its place
    assert told["by_task"]["visual_material_transfer/material"]["made"] is None
    background = told["by_task"]["visual_material_transfer/background"]
    assert background["psnr_changed"] > background["psnr_changed_other"] + 3


def test_the_card_shows_two_references(card):
    told = card | {"two_references": card_measures.two_references(Painter(), 4)}
    text = model_card.render(told, RECIPE)
    assert "| visual_reference/put |" in text and "two_references.png" in text
    assert "Two references" not in model_card.render(card, RECIPE)
    assert card_pictures.two_reference_grid(Painter(), 2).size == (4 * (4 * 64 + 8), 2 * 72)


@pytest.mark.parametrize(
    "difference, sentence",
    [
        (2.0, "Random tokens beat the influence score here by 2.0 dB"),
        (-2.0, "The influence score beats random tokens here by 2.0 dB"),
        (0.1, "do not differ here"),
    ],
)
def test_card_says_what_the_numbers_say(card, difference, sentence):
    changed = json.loads(json.dumps(card))
    random = changed["pruning"]["half"]["random, redrawn at anchors"]
    random |= {"minus_influence": difference, "standard_error": 0.5}
    assert sentence in model_card.render(changed, RECIPE)
