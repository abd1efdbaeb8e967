"""AnyEdit as its authors publish it, whole and broken."""

import io
import json
import logging
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from topi.bench.data import CATEGORIES, VISUAL, AnyEdit, anyedit_source
from topi.bench.data.anyedit_types import CATEGORY, edit_type
from topi.bench.io.names import checked_name
from topi.errors import ToPiError

TEXT_TYPES = [name for name, category in CATEGORY.items() if category != VISUAL]
VISUAL_TYPES = [name for name, category in CATEGORY.items() if category == VISUAL]
REVISION = "0123456789" * 4


def load(path, tmp_path, **options):
    return AnyEdit(path, tmp_path / "cache", **options)


def ids(data):
    return [data[i].id for i in range(len(data))]


# -------------------------------------------------------------------------------------- types
def test_25_types_in_five_groups():
    assert Counter(CATEGORY.values()) == {
        "camera_move": 4,
        "global_edit": 3,
        "implicit_change": 2,
        "local_edit": 9,
        VISUAL: 7,
    }


@pytest.mark.parametrize(
    "spelling, name",
    [
        ("tone_transfer", "tone_transfer"),
        ("tune_transfer", "tone_transfer"),
        ("tunetransfer", "tone_transfer"),
        ("stylechange", "style_change"),
        ("Rotation Change", "rotation_change"),
        ("visualmaterialtransfer", "visual_material_transfer"),
        ("implicit_change", "implicit_change"),
        ("style_transfer", None),
        (None, None),
    ],
)
def test_both_spellings_of_a_type_are_known(spelling, name):
    assert edit_type(spelling) == name


# ------------------------------------------------------------------------------- AnyEdit-Test
def test_reads_the_folders_of_anyedit_test(test_folder, tmp_path, encoded):
    root = test_folder(dict.fromkeys(CATEGORY, 5), tune=True)
    data = load(root, tmp_path, calibration=0)
    assert Counter(data[i].category for i in range(8)) == dict.fromkeys(CATEGORIES, 2)
    samples = [data[i] for i in range(len(data))]
    assert {s.task for s in samples} == set(TEXT_TYPES)  # the visual ones are dropped
    first = next(s for s in samples if s.task == "add")
    assert first.instruction == "add number 0"
    assert first.id == "anyedit-add-000"
    (image,) = first.references
    assert image.size == (72, 64) and image.mode == "RGB"
    with Image.open(root / "anybench/add/000.png") as expected:
        assert np.array_equal(image, expected)
    # Neither the edited image nor its shape (32 x 24) is taken for the target.
    assert first.target is None and first.size is None
    assert len(set(ids(data))) == len(data) == 18 * 5


def test_calibration_is_stratified_and_disjoint(test_folder, tmp_path):
    root = test_folder(dict.fromkeys(TEXT_TYPES, 14))
    calibration = load(root, tmp_path, split="calibration")
    assert len(calibration) == 48
    samples = [calibration[i] for i in range(48)]
    assert Counter(s.category for s in samples) == dict.fromkeys(CATEGORIES, 12)
    assert {s.task for s in samples} == set(TEXT_TYPES)
    evaluation = load(root, tmp_path)
    assert len(evaluation) == 18 * 14 - 48
    assert not set(ids(evaluation)) & set(ids(calibration))
    assert len(load(root, tmp_path, calibration=0)) == 18 * 14


def test_fewer_pairs_than_asked_for_are_told_with_the_reason(test_folder, tmp_path, caplog):
    root = test_folder({"add": 12, "remove": 12})
    with caplog.at_level(logging.WARNING):
        load(root, tmp_path, per_type=12, calibration=8)
    for kind in ("add", "remove"):
        assert f"11 of 12 pairs of {kind}, 1 more are for calibration" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load(root, tmp_path, per_type=20, calibration=0)
    assert "12 of 20 pairs of add\n" in caplog.text


def test_images_of_calibration_pairs_are_not_evaluated(test_folder, tmp_path):
    root = test_folder({"remove": 6, "add": 6})
    for kind in ("add", "remove"):  # the last of each is for calibration; the same image again
        copy = (root / "anybench" / kind / "005.png").read_bytes()
        (root / "anybench" / kind / "000.png").write_bytes(copy)
    data = load(root, tmp_path, calibration=8)
    assert sorted(ids(data)) == [
        f"anyedit-{k}-00{n}" for k in ("add", "remove") for n in (1, 2, 3, 4)
    ]
    assert {row["reason"] for row in data.skipped} == {"its image is in the calibration pairs"}


def test_visual_types_have_two_references(test_folder, tmp_path):
    root = test_folder(dict.fromkeys([*VISUAL_TYPES, "add"], 3))
    data = load(root, tmp_path, visual=True, calibration=7)
    assert {data[i].task for i in range(len(data))} == set(VISUAL_TYPES)
    assert all(len(data[i].references) == 2 for i in range(len(data)))
    assert {data[i].category for i in range(len(data))} == {VISUAL}
    assert len(load(root, tmp_path, visual=True, calibration=7, split="calibration")) == 7


# ------------------------------------------------------------------------------------ parquet
def rows_of(kind, numbers, encoded, **more):
    return [
        {
            "image_id": f"{kind}_{n:04d}",
            "edit_instruction": f"do {kind} {n}",
            "edit_type": kind,
            "image_file": encoded(n * 10 + len(kind)),
            "edited_file": encoded(n * 10 + 5),
            "input": "before",
            "output": "after",
        }
        | more
        for n in numbers
    ]


def test_reads_the_first_per_type_by_id_from_one_split_per_type(parquet, tmp_path, encoded):
    parquet("stylechange-00000-of-00002.parquet", rows_of("stylechange", (9, 3, 7, 1, 8), encoded))
    file = parquet("stylechange-00001-of-00002.parquet", rows_of("stylechange", (2, 6), encoded))
    data = load(file.parents[1], tmp_path, per_type=3, calibration=4)
    assert ids(data) == [f"anyedit-style_change-stylechange_000{n}" for n in (1, 2, 3)]
    assert data[0].instruction == "do stylechange 1"
    assert np.array_equal(data[0].references[0], Image.open(io.BytesIO(encoded(1 * 10 + 11))))
    assert [data[i].task for i in range(3)] == ["style_change"] * 3


def test_reads_a_split_with_all_types(parquet, tmp_path, encoded):
    rows = [
        row
        for k, kind in enumerate(CATEGORY)
        for row in rows_of(kind, range(20 * k, 20 * k + 6), encoded, visual_input=encoded(k))
    ]
    file = parquet("validation-00000-of-00001.parquet", rows, group=10)
    data = load(file.parent, tmp_path, per_type=2)
    assert Counter(data[i].task for i in range(len(data))) == dict.fromkeys(TEXT_TYPES, 2)
    assert len(load(file.parent, tmp_path, count=5)) == 5


def test_reads_the_hub_at_a_pinned_revision(parquet, tmp_path, encoded, monkeypatch):
    import fsspec
    import huggingface_hub

    memory = fsspec.filesystem("memory")
    file = parquet("add-00000-of-00001.parquet", rows_of("add", range(6), encoded))
    name = f"/datasets/own/split@{REVISION}/data/{file.name}"
    memory.pipe(name, file.read_bytes())
    memory.pipe(f"/datasets/own/split@{REVISION}/README.md", b"x")
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: memory)
    options = dict(per_type=3, calibration=0, revision=REVISION)
    data = load("own/split", tmp_path, **options)
    assert len(data) == 3
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", None)  # not asked a second time
    assert load("own/split", tmp_path, **options).fingerprint() == data.fingerprint()


def test_little_is_fetched_to_find_the_first_of_a_type(parquet, tmp_path, encoded, monkeypatch):
    """Ids lie between images, and rows of one group are fetched once."""
    import fsspec
    import huggingface_hub

    fetched = Counter()

    class Counting(fsspec.AbstractFileSystem):
        cachable = False

        def glob(self, pattern):
            return sorted(files)

        def _open(self, path, mode="rb", **options):
            return fsspec.spec.AbstractBufferedFile(self, path, size=len(files[path]), **options)

        def cat_file(self, path, start=None, end=None, **options):
            raise AssertionError("read as a whole")

    def fetch_range(self, start, end):
        fetched[self.path] += end - start
        return files[self.path][start:end]

    monkeypatch.setattr(fsspec.spec.AbstractBufferedFile, "_fetch_range", fetch_range)
    rng, made = np.random.default_rng(0), []
    for kind, numbers in {"add": 20, "remove": 40, "visual_depth": 9}.items():
        rows = rows_of(kind, range(numbers), encoded)
        rows = [
            row | dict.fromkeys(("edited_file", "visual_input"), rng.bytes(99_999)) for row in rows
        ]
        made.append(parquet(f"{kind.replace('_', '')}.parquet", rows, 5))
    files = {file.name: file.read_bytes() for file in made}
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Counting)
    data = load("own/split", tmp_path, per_type=5, calibration=0, revision=REVISION)
    assert len(data) == 10
    assert set(fetched) == {"add.parquet", "remove.parquet"}  # nobody asked for the visual one
    own = 5 * len(encoded(0))  # of a row group, the images that are shown
    footers = 2 * 70_000  # Arrow reads 64 KiB at the end of a file, for the ids and for the rows
    for name, count in fetched.items():
        assert count < 3 * own + footers < len(files[name]) / 20, (name, count)


def test_an_unreachable_hub_is_one_sentence(tmp_path, monkeypatch):
    import huggingface_hub

    class Offline:
        def glob(self, pattern):
            raise ConnectionError("no route\nat all")

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Offline)
    with pytest.raises(ToPiError, match=r"cannot be reached.*no route.*hf download") as caught:
        load("own/split", tmp_path, revision=REVISION)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


# --------------------------------------------------------------------------------- broken rows
def test_broken_rows_are_left_out_with_count_and_reason(parquet, tmp_path, encoded, caplog):
    rows = rows_of("add", range(8), encoded) + rows_of("sharpen", range(2), encoded)
    rows[0]["image_file"] = None
    rows[1]["image_file"] = rows[1]["image_file"][:200]  # truncated PNG
    rows[2]["image_file"] = b"hello"
    rows[3]["edit_instruction"] = ""
    rows[4] = rows[5] | {"image_id": "add_0004"}
    rows[6]["image_file"] = encoded(6, (72, 60))
    file = parquet("train-00000-of-00001.parquet", rows)
    with caplog.at_level(logging.WARNING):
        data = load(file.parent, tmp_path, calibration=0)
    assert sorted(ids(data)) == [f"anyedit-add-add_000{n}" for n in (4, 7)]
    reasons = Counter(row["reason"].split(":")[0] for row in data.skipped)
    assert reasons == {
        "missing image": 1,
        "damaged image": 1,
        "not an image": 1,
        "no instruction": 1,
        "the same edit occurs twice": 1,
        "72 x 60 pixels": 1,  # FLUX.2 takes no side below 64
        "unknown edit type 'sharpen'": 2,
    }
    assert "2 left out, unknown edit type 'sharpen': sharpen-sharpen_0000" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # said again with each load
        load(file.parent, tmp_path, calibration=0)
    assert "1 left out, missing image: add-add_0000" in caplog.text


def test_one_image_may_have_several_edits(parquet, tmp_path, encoded):
    rows = rows_of("add", range(3), encoded)
    rows[1] |= {"image_id": rows[0]["image_id"], "image_file": rows[0]["image_file"]}
    data = load(parquet("train.parquet", rows).parent, tmp_path, calibration=0)
    assert ids(data) == [f"anyedit-add-add_000{n}" for n in ("0", "0-2", "2")]
    assert [data[i].instruction for i in range(2)] == ["do add 0", "do add 1"]
    rows[2]["image_id"] = "add_0000-2"  # as the second edit was called
    data = load(parquet("other.parquet", rows), tmp_path, calibration=0)
    assert ids(data) == [f"anyedit-add-add_0000{n}" for n in ("", "-2", "-2-2")]


def test_different_images_have_different_ids(parquet, tmp_path, encoded):
    names = ["1_2", "1/2", "1 2", "1__2", "x" * 300, "x" * 301, "\u0301", "é"]
    rows = rows_of("add", range(8), encoded)
    rows = [row | {"image_id": name} for row, name in zip(rows, names, strict=True)]
    data = load(parquet("train.parquet", rows).parent, tmp_path, calibration=0)
    assert len({checked_name(name) for name in ids(data)}) == 8 == len(data)
    assert {f"anyedit-add-{name}" for name in ("1_2", "1__2", "é")} < set(ids(data))
    assert sum("@" in name for name in ids(data)) == 5
    for file in data.folder.glob("images/*"):
        file.unlink()
    assert len(load(parquet("train.parquet", rows).parent, tmp_path, calibration=0).ids) == 8


def test_a_list_may_begin_with_a_byte_order_mark(test_folder, tmp_path):
    root = test_folder({"add": 2})
    file = root / "anybench/add/edit_result.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(load(root, tmp_path, calibration=0)) == 2


def test_half_a_character_in_an_instruction_is_left_out(test_folder, tmp_path):
    def change(kind, number, row):
        return row | {1: {"edit": "\ud800"}, 3: {"image_file": "\ud800.png"}}.get(number, {})

    data = load(test_folder({"add": 4}, change=change), tmp_path, calibration=0)
    assert ids(data) == ["anyedit-add-000", "anyedit-add-002"]
    reasons = {row["id"]: row["reason"] for row in data.skipped}
    assert reasons == {
        "add-001": "its instruction is no valid Unicode",
        r"add-\ud800": "missing image",
    }


@pytest.mark.parametrize("name", [["a.png"], {"a": 1}, 7, "x" * 5000, "a\0b", "."])
def test_what_is_no_file_name_is_a_missing_image(test_folder, tmp_path, name):
    def change(kind, number, row):
        return row | ({"image_file": name} if number == 1 else {})

    data = load(test_folder({"add": 3}, change=change), tmp_path, calibration=0)
    assert len(data) == 2
    assert [row["reason"] for row in data.skipped] == ["missing image"]


def test_a_folder_with_broken_rows_loads_the_others(test_folder, tmp_path):
    def change(kind, number, row):
        return row | ({"edit_type": "sharpen"} if number == 1 else {})

    root = test_folder({"add": 4}, change=change)
    image = root / "anybench/add/000.png"
    image.write_bytes(image.read_bytes()[:300])
    data = load(root, tmp_path, calibration=0)
    assert ids(data) == ["anyedit-add-002", "anyedit-add-003"]
    reasons = sorted(row["reason"] for row in data.skipped)
    assert reasons[0].startswith("damaged image") and reasons[1] == "unknown edit type 'sharpen'"


def test_a_broken_row_is_replaced_by_the_next(parquet, tmp_path, encoded):
    rows = rows_of("add", range(6), encoded)
    rows[1]["image_file"] = None
    rows[5]["image_file"] = b"hello"
    file = parquet("train-00000-of-00001.parquet", rows)
    data = load(file.parent, tmp_path, per_type=2, calibration=4)
    assert ids(data) == ["anyedit-add-add_0000", "anyedit-add-add_0002"]
    entries = json.loads(data.file.read_text())["entries"]
    assert [e["id"] for e in entries if e["split"] == "calibration"] == ["add-add_0004"]


def test_missing_image_file_and_second_image_of_a_folder(test_folder, tmp_path):
    def change(kind, number, row):
        return row | ({"visual_input": "None"} if number == 1 else {})

    root = test_folder({"visual_reference": 3}, change=change)
    (root / "anybench/visual_reference/000.png").unlink()
    data = load(root, tmp_path, visual=True, calibration=0)
    assert ids(data) == ["anyedit-visual_reference-002"]
    assert [row["reason"] for row in data.skipped] == [
        "missing image",
        "second image: missing image",
    ]


def test_nothing_usable_leaves_no_manifest_of_nothing(test_folder, tmp_path):
    root = test_folder({"add": 1})
    image = root / "anybench/add/000.png"
    intact = image.read_bytes()
    image.write_bytes(b"")
    with pytest.raises(ToPiError, match="has no usable pair: missing image"):
        load(root, tmp_path)
    image.write_bytes(intact)
    assert len(load(root, tmp_path)) == 1


def test_too_few_calibration_pairs_are_named(test_folder, tmp_path):
    root = test_folder({"add": 40, "relation": 4})
    with pytest.raises(
        ToPiError, match=r"camera_move \(0\), global_edit \(0\), implicit_change \(2\)"
    ):
        load(root, tmp_path, split="calibration")


# ------------------------------------------------------------------------------------ manifest
def test_the_manifest_freezes_the_selection(test_folder, tmp_path):
    root = test_folder({"add": 4})
    before = load(root, tmp_path, calibration=0)
    test_folder({"add": 6})  # more has been downloaded since
    after = load(root, tmp_path, calibration=0)
    assert ids(after) == ids(before) and after.fingerprint() == before.fingerprint()
    assert load(root, tmp_path, calibration=0, count=2).fingerprint() != before.fingerprint()


def test_a_changed_image_or_manifest_is_refused(test_folder, tmp_path):
    root = test_folder({"add": 2})
    data = load(root, tmp_path, calibration=0)
    image = data.folder / "images" / data.entries[0]["images"][0]["sha256"]
    other = data.folder / "images" / data.entries[1]["images"][0]["sha256"]
    image.write_bytes(other.read_bytes())
    with pytest.raises(ToPiError, match="add-000 is changed: delete"):
        data[0]
    image.unlink()
    with pytest.raises(ToPiError, match="add-000 is missing: delete"):
        data[0]
    data.file.write_text(data.file.read_text().replace("number 1", "number 7"))
    with pytest.raises(ToPiError, match="was changed or damaged"):
        load(root, tmp_path, calibration=0)


# ------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    "path, options, words",
    [
        ("own/split", {}, "pin it: data.revision"),
        ("own/split", {"revision": "main"}, "pin it: data.revision"),
        ("/no/such/place", {"revision": REVISION}, "there is no folder /no/such/place"),
        (".", {"split": "train"}, "choose from calibration, evaluation"),
        (".", {"calibration": 6}, "multiple of 4"),
        (".", {"per_type": 0}, "at least 1"),
        (".", {"count": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_refused(tmp_path, path, options, words):
    with pytest.raises(ToPiError, match=words):
        load(path, tmp_path, **options)


def test_folders_with_nothing_in_them(tmp_path, test_folder, parquet, encoded):
    with pytest.raises(ToPiError, match=r"neither anybench/<type>/edit_result.json .*parquet"):
        load(tmp_path, tmp_path)
    root = test_folder({"add": 1})
    (root / "anybench/add/edit_result.json").write_text('{"edit": 1}')
    with pytest.raises(ToPiError, match="no list of edits in JSON"):
        load(root, tmp_path)
    file = parquet("train-00000-of-00001.parquet", rows_of("add", range(2), encoded))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ToPiError, match="no whole parquet file"):
        load(file.parent, tmp_path)


def test_edited_images_are_read_only_on_request(test_folder):
    root = test_folder({"outpaint": 1})
    source = anyedit_source.open_source(root)
    ((_, row),) = source.rows(source.keys())
    assert row.edited is None
    ((_, row),) = source.rows(source.keys(), edited=True)
    assert row.edited == (root / "anybench/outpaint/000_out.png").read_bytes()


@pytest.mark.parametrize("name", ["../../../out.png", "absolute", "link.png"])
def test_pictures_outside_the_folder_are_refused_unless_allowed(test_folder, tmp_path, name):
    root = test_folder({"add": 4})
    out = root.parent / "out.png"
    Image.new("RGB", (64, 64), "blue").save(out)
    (root / "anybench" / "add" / "link.png").symlink_to(out)
    listed = root / "anybench" / "add" / "edit_result.json"
    rows = json.loads(listed.read_text())
    rows[0]["image_file"] = str(out) if name == "absolute" else name
    listed.write_text(json.dumps(rows))
    with pytest.raises(ToPiError, match=r"is outside .*data\.outside=true"):
        load(root, tmp_path, calibration=0)
    assert out.read_bytes() not in [file.read_bytes() for file in tmp_path.rglob("images/*")]
    assert len(load(root, tmp_path, outside=True, calibration=0)) == 4
