"""PSNR of an edit to the true edit, over all pixels and by region."""

import numpy as np
import pytest
from PIL import Image

from topi.bench.data import EditSample
from topi.bench.studies.held_out import compare, psnr


def test_psnr_by_hand():
    image = np.zeros((4, 4, 3), np.uint8)
    other = image.copy()
    other[:2] = 51  # a fifth of the range on half of the pixels
    assert psnr(image, other) == pytest.approx(10 * np.log10(25 * 2))
    top = np.zeros((4, 4), bool)
    top[:2] = True
    assert psnr(image, other, top) == pytest.approx(10 * np.log10(25))


def test_compare_tells_the_regions_apart():
    reference = np.full((8, 8, 3), 100, np.uint8)
    target = reference.copy()
    target[:4] = 200
    edited = target.copy()
    edited[4:] = 110  # the edit is perfect, the rest is off by ten
    images = [Image.fromarray(a) for a in (reference, target, edited)]
    sample = EditSample("s", "local_edit", "add", "x", (images[0],), images[1])
    row = compare(sample, images[2])
    assert row["psnr_changed"] > 70
    assert row["psnr_unchanged"] == pytest.approx(20 * np.log10(25.5))
    assert row["copy_psnr_changed"] == pytest.approx(20 * np.log10(2.55))
    assert row["copy_psnr_unchanged"] > 70


def test_unchanged_sample_has_no_changed_region():
    image = Image.new("RGB", (8, 8), "red")
    row = compare(EditSample("s", "local_edit", "add", "x", (image,), image), image)
    assert row["psnr_changed"] is None and row["psnr_unchanged"] is not None
