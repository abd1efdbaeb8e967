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


def write_csv(path, *lines, encoding="utf-8"):
    (path / "edits.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
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


def test_a_table_says_the_same_as_lines_of_json(folder):
    write(
        folder,
        {"image": "a.png", "instruction": 'write "hello, world"', "task": "text"},
        {"image": ["a.png", "b.png"], "instruction": "combine", "edited": "b.png", "id": "x"},
    )
    lines = EditFolder(folder)
    (folder / "edits.jsonl").unlink()
    write_csv(
        folder,
        "id,image,instruction,edited,task",
        ',a.png,"write ""hello, world""",,text',
        "x,a.png; b.png, combine ,b.png,",
        encoding="utf-8-sig",  # as spreadsheets do
    )
    table = EditFolder(folder)
    assert table.entries == lines.entries
    assert table.fingerprint() == lines.fingerprint()
    assert len(EditFolder(folder, count=1)) == 1


def test_two_lists_are_one_too_many(folder):
    write_csv(write(folder, {"image": "a.png", "instruction": "x"}), "image,instruction")
    with pytest.raises(ToPiError, match=r"holds edits\.jsonl and edits\.csv: remove one"):
        EditFolder(folder)


def test_fingerprint_follows_the_pixels(folder):
    data = EditFolder(write(folder, {"image": "a.png", "instruction": "x"}))
    before = data.fingerprint()
    Image.new("RGB", (32, 24), "blue").save(folder / "a.png")
    assert data.fingerprint() != before


@pytest.mark.parametrize(
    "raw, words",
    [
        ("{nonsense", "line 1 is not JSON"),
        ("[1]", "line 1 is no JSON object"),
        ('{"image": "a.png"}', 'no "instruction"'),
        ('{"image": [], "instruction": "x"}', 'no "image"'),
        ('{"image": [3], "instruction": "x"}', "every value is a text"),
        ('{"image": "a.png", "instruction": "x", "catgory": "y"}', "has 'catgory'; known are"),
        ('{"image": "a.png", "instruction": "x", "category": "blur"}', "choose from camera_move"),
        ('{"image": "a.png", "instruction": "x", "id": "a/b"}', "do as a file name"),
        ('{"image": "a.png", "instruction": "x", "id": "1"}\n' * 2, '"id" 1 occurs twice'),
        ("", "holds no sample"),
    ],
)
def test_bad_lists_are_refused(folder, raw, words):
    with pytest.raises(ToPiError, match=words):
        EditFolder(write(folder, raw=raw))


@pytest.mark.parametrize(
    "lines, words",
    [
        (["image,instruction", "a.png,add a cat, please"], r"edits\.csv, line 2 has more cells"),
        (["image,instruction", "a.png,"], 'line 2 has no "instruction"'),
        (["picture,instruction", "a.png,x"], "has 'picture'; known are"),
        (["image,instruction", 'a.png,"x'], "is no CSV"),
        (["image,instruction"], "holds no sample"),
    ],
)
def test_bad_tables_are_refused(folder, lines, words):
    with pytest.raises(ToPiError, match=words):
        EditFolder(write_csv(folder, *lines))


def test_other_encodings_are_refused(folder):
    write_csv(folder, "image,instruction", "a.png,Schönes Wetter", encoding="latin-1")
    with pytest.raises(ToPiError, match="save it as UTF-8"):
        EditFolder(folder)


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


def test_a_photograph_stands_the_way_its_camera_says(folder):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.new("RGB", (40, 20), "red").save(folder / "phone.jpg", exif=exif)
    write(folder, {"image": "phone.jpg", "instruction": "make it snow"})
    assert EditFolder(folder)[0].references[0].size == (20, 40)


def test_a_table_of_a_spreadsheet(folder):
    write_csv(folder, "Image, Instruction", "a.png,make it snow")
    assert EditFolder(folder)[0].instruction == "make it snow"
    write_csv(folder, "image;instruction", "a.png;make it snow")
    with pytest.raises(ToPiError, match="by commas, not by semicolons"):
        EditFolder(folder)


def test_nothing_is_no_instruction_and_no_count(folder):
    write(folder, {"image": "a.png", "instruction": "  "})
    with pytest.raises(ToPiError, match='line 1 has no "instruction"'):
        EditFolder(folder)
    with pytest.raises(ToPiError, match="count=0 must be at least 1"):
        EditFolder(folder, 0)


@pytest.mark.parametrize("name", ["../out.png", "sub/../../out.png", "link.png", "linked/out.png"])
@pytest.mark.parametrize("field", ["image", "edited"])
def test_pictures_outside_the_folder_are_refused_unless_allowed(tmp_path, name, field):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "out.png")
    Image.new("RGB", (16, 16), "red").save(folder / "a.png")
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "own.png").symlink_to("a.png")
    for named in (name, str(tmp_path / "out.png")):
        write(folder, {"image": "a.png", "instruction": "x", field: named})
        with pytest.raises(ToPiError, match=r"is outside .*data\.outside=true"):
            EditFolder(folder)
        sample = EditFolder(folder, outside=True)[0]
        shown = sample.target if field == "edited" else sample.references[0]
        assert shown.getpixel((0, 0)) == (0, 0, 255)
    write(folder, {"image": "own.png", "instruction": "x", "edited": "sub/../a.png"})
    assert EditFolder(folder)[0].references[0].size == (16, 16)
