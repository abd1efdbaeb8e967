"""A folder of the user's own edits; what is wrong with it is said in one sentence."""

import json
import random
from collections import Counter

import pytest
from PIL import Image

from topi.bench.data import EditFolder
from topi.bench.data import folder as data_folder
from topi.bench.io.names import checked_name
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
        ('{"image": "a.png", "instruction": "x", "image": "b.png"}', "line 1 has 'image' twice"),
        ("[" * 100_000, "line 1 cannot be read"),
        ('{"image": "a.png", "instruction": "x", "id": %s}' % ("9" * 5000), "cannot be read"),
        ('\n{"image": "a.png", "instruction": "x", "id": "%s"}' % ("é" * 110), "line 2: the id"),
        ('{"image": "a.png", "instruction": "x", "id": "%s"}' % ("e" * 300), "line 1: the id"),
        (r'{"image": "a.png", "instruction": "\ud800"}', "line 1: .* no valid Unicode"),
        (r'{"image": "a\ud800.png", "instruction": "x"}', "line 1: .* no valid Unicode"),
        (r'{"image": "a\u0000.png", "instruction": "x"}', "line 1: .* no name of a file"),
        ('{"image": "%s.png", "instruction": "x"}' % ("é" * 130), "line 1: .* too long for one"),
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
        (["", "image,instruction,Image "], "line 2 has 'image' twice"),
        (["image,instruction", 'a.png,"x', 'y"', "", 'a.png,"x', 'y",b'], "line 5 has more cells"),
        (["image,instruction", "a.png,x", 'a.png,"x'], "line 3 is no CSV"),
        (["image,instruction,id", "a.png,x,1", "a.png,x,1"], 'line 3: the "id" 1 occurs twice'),
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


def test_a_line_ends_at_a_line_feed_only(folder):
    text = "one\u2028two\u2029three\x85four"
    raw = json.dumps({"image": "a.png", "instruction": text}, ensure_ascii=False)
    assert EditFolder(write(folder, raw=f"{raw}\r\n{raw}"))[1].instruction == text
    (folder / "edits.jsonl").unlink()
    assert (
        EditFolder(write_csv(folder, "image,instruction", f"a.png,{text}"))[0].instruction == text
    )


def test_null_and_empty_columns_are_absent(folder):
    entry = {"image": "a.png", "instruction": "x"}
    plain = EditFolder(write(folder, entry)).entries
    absent = dict.fromkeys(("category", "id", "task", "edited"))
    assert EditFolder(write(folder, entry | absent)).entries == plain
    (folder / "edits.jsonl").unlink()
    assert EditFolder(write_csv(folder, "image,instruction,,", "a.png,x,,", ",,,")).entries == plain


def test_the_ids_are_known_without_a_picture(folder):
    write(folder, *({"image": "missing.png", "instruction": "x"} for _ in range(3)))
    name = folder.resolve().name
    assert EditFolder(folder).ids == [f"{name}-0000{n}" for n in (1, 2, 3)]
    assert EditFolder(folder, count=2).ids == [f"{name}-0000{n}" for n in (1, 2)]


def test_ids_are_compared_once(folder, monkeypatch):
    compared = 0

    class Name(str):
        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    real = data_folder._entry
    monkeypatch.setattr(
        data_folder, "_entry", lambda *given: (e := real(*given)) | {"id": Name(e["id"])}
    )
    EditFolder(write(folder, *({"image": "a.png", "instruction": "x"} for _ in range(500))))
    assert compared < 500


def test_a_list_of_anything_is_read_or_refused(folder):
    rng = random.Random(0)
    values = [
        None,
        "",
        "a.png",
        ["a.png"],
        [],
        7,
        True,
        "\ud800",
        "\u2028",
        "x" * 300,
        {"a": 1},
        "a\0",
    ]
    outcomes = Counter()
    for _ in range(300):
        entries = [
            {"image": "a.png", "instruction": "x"}
            | {rng.choice(data_folder.COLUMNS): rng.choice(values) for _ in range(rng.randrange(3))}
            for _ in range(rng.randrange(1, 4))
        ]
        lines = [json.dumps(entry, ensure_ascii=rng.random() < 0.5) for entry in entries]
        text = "\n".join(lines).encode(errors="replace")
        if rng.random() < 0.3:
            place = rng.randrange(len(text))
            text = text[:place] + rng.randbytes(rng.randrange(3)) + text[place + 1 :]
        (folder / "edits.jsonl").write_bytes(text)
        try:
            data = EditFolder(folder)
        except ToPiError as error:
            assert "edits.jsonl" in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert len(set(data.ids)) == len(data) and all(map(checked_name, data.ids))
            json.dumps(data.entries, ensure_ascii=False).encode()  # as results are written
            outcomes["read"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 50
