"""A folder of the user's own edits; what is wrong with it is said in one sentence."""

import json

import pytest
from PIL import Image

from topi.data import EditFolder
from topi.errors import ToPiError


def write(path, *entries, raw=None):
    lines = [json.dumps(e) for e in entries] if raw is None else [raw]
    (path / "edits.jsonl").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (32, 24), "red").save(tmp_path / "a.png")
    Image.new("L", (16, 16), 7).save(tmp_path / "b.png")
    return tmp_path


def test_reads_samples(folder):
    write(
        folder,
        {"image": "a.png", "instruction": "make it snow", "category": "implicit_change"},
        {"image": ["a.png", "b.png"], "instruction": "combine", "edited": "b.png", "id": "x"},
    )
    data = EditFolder(folder)
    assert len(data) == 2
    assert data[0].references[0].size == (32, 24)
    assert data[0].target is None and data[0].category == "implicit_change"
    assert len(data[1].references) == 2 and data[1].references[1].mode == "RGB"
    assert data[1].id.endswith("-x")


def test_fingerprint_follows_the_pixels(folder):
    data = EditFolder(write(folder, {"image": "a.png", "instruction": "x"}))
    before = data.fingerprint()
    Image.new("RGB", (32, 24), "blue").save(folder / "a.png")
    assert data.fingerprint() != before


@pytest.mark.parametrize(
    "raw, words",
    [
        ("{nonsense", "line 1 is not JSON"),
        ('{"image": "a.png"}', 'no "instruction"'),
        ('{"image": "a.png", "instruction": "x", "category": "blur"}', "choose from camera_move"),
        ("", "holds no sample"),
    ],
)
def test_bad_lists_are_refused(folder, raw, words):
    with pytest.raises(ToPiError, match=words):
        EditFolder(write(folder, raw=raw))


def test_missing_list_says_what_to_write(tmp_path):
    with pytest.raises(ToPiError, match="one JSON object per line"):
        EditFolder(tmp_path)


def test_missing_image_is_named(folder):
    data = EditFolder(write(folder, {"image": "c.png", "instruction": "x"}))
    with pytest.raises(ToPiError, match=r"c\.png .*does not exist"):
        data[0]


@pytest.mark.parametrize("damage", ["truncated", "not an image"])
def test_corrupt_image_is_named(folder, damage):
    intact = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(intact[:60] if damage == "truncated" else b"hello")
    data = EditFolder(write(folder, {"image": "a.png", "instruction": "x"}))
    with pytest.raises(ToPiError, match=r"a\.png cannot be read"):
        data[0]
