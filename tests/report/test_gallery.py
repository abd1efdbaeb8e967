"""Masks and pictures: what is drawn is what was kept."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from topi.report.gallery import (
    draw_difference,
    draw_mask,
    gather,
    keep_ratios,
    read_anchors,
    shown_labels,
    side_by_side,
)
from topi.results.store import Store


def test_kept_indices_count_through_all_references(tmp_path):
    path = tmp_path / "masks.json"
    anchors = [
        {"step": 7, "branch": "cond", "kept": None},
        {"step": 2, "branch": "cond", "kept": [1, 5, 6]},
    ]
    path.write_text(json.dumps({"grids": [[2, 2], [1, 3]], "anchors": anchors}))
    first, last = read_anchors(path)
    assert (first.step, last.step) == (2, 7)
    assert first.kept[0].tolist() == [[False, True], [False, False]]
    assert first.kept[1].tolist() == [[False, True, True]]
    assert first.keep_ratio == 3 / 7
    assert last.keep_ratio == 1


def test_kept_tokens_are_gold_and_dropped_ones_dark():
    grey = Image.new("RGB", (8, 4), (100, 100, 100))
    drawn = np.asarray(draw_mask(grey, np.array([[True, False]])))
    assert drawn.shape == (4, 8, 3)
    assert (drawn[:, :4, 0] > drawn[:, :4, 2]).all()
    assert (drawn[:, :4].max(-1) > 100).all()
    assert (drawn[:, 4:] == 25).all()


def test_the_difference_is_black_where_nothing_was_lost():
    full = Image.new("RGB", (4, 4), (100, 100, 100))
    output = full.copy()
    output.putpixel((1, 2), (110, 100, 0))
    drawn = np.asarray(draw_difference(output, full))
    assert drawn[2, 1].tolist() == [40, 0, 255]
    assert drawn.sum() == 295


def test_references_of_different_heights_stand_side_by_side():
    images = [Image.new("RGB", (10, 20)), Image.new("RGB", (30, 10))]
    assert side_by_side(images).size == (70, 20)


def test_a_full_grid_shows_one_label_per_method():
    rows = pd.DataFrame(
        [
            {"method": m, "label": f"{m} {i}", "flop_speedup": 1 + i / 10}
            for m in ("topi", "toma")
            for i in range(3)
        ]
    )
    assert shown_labels(rows, limit=6) == [f"{m} {i}" for m in ("toma", "topi") for i in range(3)]
    assert shown_labels(rows, limit=5) == ["toma 1", "topi 1"]


def test_gather_takes_the_first_samples_of_each_category(store_root):
    store = Store(store_root)
    pictures = gather(store, store.rows(), per_category=2)
    assert [p.sample for p in pictures[:3]] == ["eval-000", "eval-004", "eval-001"]
    assert len(pictures) == 8
    assert list(pictures[0].outputs) == ["toma", "topi tau=0.8", "topi tau=0.85", "topi tau=0.9"]
    assert set(pictures[0].anchors) == {"topi tau=0.8", "topi tau=0.85", "topi tau=0.9"}


def test_keep_ratio_holds_from_anchor_to_anchor(store_root):
    store = Store(store_root)
    steps = keep_ratios(store, store.rows())
    one = steps[(steps["label"] == "topi tau=0.8") & (steps["sample"] == "eval-000")]
    first, second = int(256 * 0.45) / 256, int(256 * 0.25) / 256
    expected = [1, 1, 1, *[first] * 4, 1, *[second] * 4]
    assert one.sort_values("step")["keep_ratio"].tolist() == pytest.approx(expected)
    assert set(steps["method"]) == {"topi"}
