"""MiniEdit 1.0 is frozen: the manifest, other processes, other processors, and what changed."""

import json
import os
import subprocess
import sys

import pytest

from topi.bench.data import MiniEdit, MiniEditPlus, drawing, freeze, manifest
from topi.bench.data.anyedit_types import CATEGORY
from topi.bench.data.sample import CATEGORIES, VISUAL
from topi.errors import ToPiError

FROZEN = manifest.manifest()


@pytest.fixture
def other_generator(monkeypatch):
    """A world whose red is another red."""
    monkeypatch.setitem(drawing.COLOURS, "red", (214, 40, 41))
    for cached in (drawing.sprite, MiniEdit.verify.__func__):
        cached.cache_clear()
    yield
    drawing.sprite.cache_clear()


def test_the_manifest_is_what_the_code_says():
    content = freeze.content(samples=4)
    for key, listed in content.pop("hashes").items():
        assert listed.split() == list(manifest.hashes(key)[:4]), key
    assert json.loads(json.dumps(content)) == {k: v for k, v in FROZEN.items() if k != "hashes"}
    assert FROZEN["version"] == manifest.VERSION == "1.0"


def test_all_held_out_samples_are_listed_once():
    listed = {key: text.split() for key, text in FROZEN["hashes"].items()}
    for name in ("mini_edit", "mini_edit_plus"):
        for size in ("128", "mixed"):
            assert len(listed[f"{name}-evaluation-{size}"]) == 512
            assert len(listed[f"{name}-calibration-{size}"]) == 48
    everything = [h for hashes in listed.values() for h in hashes]
    assert len(set(everything)) == len(everything)  # so no sample is in two splits either


def test_tasks_map_to_types_and_the_papers_categories():
    for task, about in FROZEN["tasks"].items():
        assert about["category"] in (*CATEGORIES, VISUAL)
        if task != "move":  # a camera move for AnyEdit
            assert CATEGORY[about["edit_type"]] == about["category"]


@pytest.mark.parametrize("data", [MiniEdit("evaluation"), MiniEdit("evaluation", "mixed")])
def test_last_samples_are_the_frozen_ones(data):
    for i in (509, 510, 511):
        assert data[i].digest() == manifest.hashes(data.key)[i]


def test_another_process_on_an_older_processor_draws_the_same():
    indices = [*range(20), 341]  # in 341 a brightness is close to where it is rounded up
    code = (
        "from topi.bench.data import MiniEdit, MiniEditPlus\n"
        "for c in (MiniEdit, MiniEditPlus):\n"
        "    for s in (128, 'mixed'):\n"
        "        d = c(size=s)\n"
        f"        print(d.key, *(d.draw(i).digest() for i in {indices}))\n"
    )
    # No vector units beyond the oldest that numpy supports, and another BLAS kernel.
    features = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"
    old = {"NPY_DISABLE_CPU_FEATURES": features, "OPENBLAS_CORETYPE": "Nehalem"}
    environment = os.environ | old | {"PYTHONHASHSEED": "7", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4
    for key, *hashes in lines:
        assert hashes == [manifest.hashes(key)[i] for i in indices]


def test_a_changed_generator_is_one_clear_error(other_generator):
    words = r"sample mini_edit-evaluation-128-\d+ is not that of MiniEdit 1.0.*numpy.*generator"
    with pytest.raises(ToPiError, match=words) as caught:
        for _ in MiniEdit(count=20):
            pass
    assert "\n" not in str(caught.value)
    with pytest.raises(ToPiError, match=words):
        MiniEdit.verify()


def test_sizes_that_are_not_listed_are_checked_by_those_that_are(other_generator):
    with pytest.raises(ToPiError, match="mini_edit-evaluation-128"):
        MiniEdit(size=64)[0]


def test_a_manifest_without_the_dataset_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(manifest, "hashes", lambda key: ())
    MiniEditPlus.verify.__func__.cache_clear()
    with pytest.raises(ToPiError, match=r"mini_edit\.json does not list.*reinstall"):
        MiniEditPlus.verify()


def test_the_card_and_its_picture_are_those_of_the_manifest():
    text = freeze.CARD.read_text()
    assert f"# MiniEdit {FROZEN['version']}" in text
    for task, about in FROZEN["tasks"].items():
        assert task in text and about["edit_type"] in text
    assert f"({freeze.PICTURE.name})" in text
    assert 50_000 < freeze.PICTURE.stat().st_size < 600_000
