"""Masks and pictures: what is drawn is what was kept."""

import json
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from topi.bench.data.pictures import draw_mask, side_by_side
from topi.bench.report.page.gallery import draw_difference, gather, keep_ratios, shown_labels
from topi.bench.report.page.page_figures import grid
from topi.bench.report.paper.artefacts import OURS
from topi.bench.results.masks import read_anchors
from topi.bench.results.store import Store

matplotlib.use("Agg")

COVER = "topi_cover ratio=0.5"


def paper_rows(root) -> pd.DataFrame:
    """Those of one model of the paper's store."""
    rows = Store(root).rows()
    return rows[rows["model"] == "kontext_standin"]


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


def labelled(*labels: str) -> pd.DataFrame:
    """Rows of these labels, each faster than the last."""
    return pd.DataFrame(
        {"method": label.split()[0], "label": label, "flop_speedup": 1 + number / 10}
        for number, label in enumerate(labels)
    )


def test_a_full_grid_shows_one_label_per_method():
    rows = labelled(*(f"{m} ratio=0.{i}" for m in ("topi", "toma") for i in (2, 4, 6)))
    assert shown_labels(rows, limit=6) == sorted(rows["label"])
    assert shown_labels(rows, limit=5) == ["toma ratio=0.4", "topi ratio=0.4"]
    rows = labelled("toma", "toma ratio=0.6", "topi tau=0.85", "topi tau=0.9", "topi ratio=0.5")
    assert shown_labels(rows, limit=4) == ["toma", "topi tau=0.85"]
    rows = labelled("topi ratio=0.5 layers=all", "topi ratio=0.5 layers=first", "toma")
    assert shown_labels(rows, limit=2) == ["toma"]


def test_of_the_paper_s_cells_the_methods_are_shown_and_a_cache_comes_last(paper_root):
    rows = paper_rows(paper_root)
    merging = ["toma", "toma_ref", "tomesd", "tomesd_ref"]
    shown = ["checker", "random", *merging, COVER, OURS, "full cache=teacache"]
    assert shown_labels(rows) == shown_labels(rows, limit=8) == shown


def test_of_the_paper_s_cells_topi_s_masks_are_shown(paper_root):
    store, rows = Store(paper_root), paper_rows(paper_root)
    pictures = gather(store, rows, per_category=1)
    assert len(pictures) == 4
    assert all(set(picture.anchors) == {COVER, OURS} for picture in pictures)
    figure = grid(pictures[:1])
    titles = [ax.get_title() for ax in figure.axes]
    plt.close(figure)
    assert {"step 2: 62%", "step 22: 38%"} <= set(titles)
    steps = keep_ratios(store, rows[rows["label"].isin(shown_labels(rows))])
    assert set(steps["label"]) == {COVER, OURS}
    cached = rows["label"] == f"{OURS} cache=teacache"  # has masks too, and skipped steps
    assert cached.any() and keep_ratios(store, rows[cached]).empty


def test_masks_of_several_references_make_flat_rows(paper_root):
    (picture, *_) = gather(Store(paper_root), paper_rows(paper_root), per_category=1)
    two = replace(picture, references=picture.references * 2, anchors={OURS: []})
    heights = []
    for shown in (picture, two):
        figure = grid([shown])
        heights.append(figure.get_figheight())
        plt.close(figure)
    assert heights[1] < 0.85 * heights[0]


def test_headings_of_a_grid_are_wrapped(store_root):
    store = Store(store_root)
    (picture, *_) = gather(store, store.rows(), per_category=1)
    long = "toma_ref ratio=0.25 merge_every=1"
    outputs = {long: picture.full}
    figure = grid([replace(picture, outputs=outputs, anchors={}, psnr={long: 30.0})])
    titles = [ax.get_title() for ax in figure.axes]
    plt.close(figure)
    assert "toma_ref ratio=0.25\nmerge_every=1\n30.0 dB" in titles


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
