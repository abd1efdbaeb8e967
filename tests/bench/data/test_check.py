"""`topi data check` finds what is missing and what is broken, by its exit code too."""

import json

import pytest

from topi.bench.cli import main as cli
from topi.bench.data import check as checking
from topi.bench.data.anyedit_types import CATEGORY
from topi.bench.data.check import check
from topi.errors import ToPiError


@pytest.fixture
def two_per_type(monkeypatch):
    monkeypatch.setattr(checking, "PER_TYPE", 2)


def test_a_complete_anyedit_test(test_folder, two_per_type, capsys):
    root = test_folder(dict.fromkeys(CATEGORY, 2), tune=True)
    assert cli.main(["data", "check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "AnyEdit-Test, 50 rows, images of 50 looked at" in out
    assert out.endswith("complete\n")
    for kind, category in CATEGORY.items():
        assert f"{category:<16} {kind:<26} {2:>8}" in out


def test_what_is_missing_or_broken_is_named(test_folder, two_per_type, capsys):
    kinds = [kind for kind in CATEGORY if kind != "relation"]
    root = test_folder(dict.fromkeys(kinds, 2))
    folder = root / "anybench"
    (folder / "add/000_out.png").unlink()
    intact = (folder / "add/001.png").read_bytes()
    (folder / "add/001.png").write_bytes(intact[:500])
    (folder / "visual_depth/000_v.jpg").write_bytes(b"")
    rows = json.loads((folder / "remove/edit_result.json").read_text())
    rows[0]["edit_type"] = "sharpen"
    (folder / "remove/edit_result.json").write_text(json.dumps(rows))
    assert dict(check(root).broken) | {"add-001": ""} == {
        "sharpen-000": "unknown edit type 'sharpen'",
        "add-000": "edited image: missing image",
        "add-001": "",
        "visual_depth-000": "second image: missing image",
        "remove": "1 pairs instead of 2",
        "relation": "0 pairs instead of 2",
    }
    assert cli.main(["data", "check", str(root), "--show", "2"]) == 1
    out = capsys.readouterr().out
    assert "and 4 more" in out and out.endswith("6 broken\n")


def row(number, encoded, **more):
    return {
        "image_id": f"{number}",
        "edit_instruction": "x",
        "edit_type": "add",
        "image_file": encoded(number),
        "edited_file": encoded(number, format="JPEG"),
    } | more


def test_parquet_files_and_their_shards(parquet, encoded):
    file = parquet("add-00000-of-00003.parquet", [row(n, encoded) for n in range(6)])
    parquet("add-00001-of-00003-1a2b3c.parquet", [row(n, encoded) for n in range(6, 8)])
    found = check(file.parents[1])
    assert found.rows == {("local_edit", "add"): 8} and found.looked_at == 8
    assert found.broken == [("add", "1 of 3 files are missing: 00002")]
    parquet("add-00002-of-00003.parquet", [row(9, encoded)])
    assert check(file.parents[1]).broken == []


def test_broken_parquet(parquet, encoded):
    rows = [row(n, encoded) for n in range(3)]
    rows[1] |= {"edited_file": None}
    rows[2] |= {"image_file": rows[2]["image_file"][:500]}
    file = parquet("add.parquet", rows)
    assert [where for where, _ in check(file.parent).broken] == ["add-1", "add-2"]
    file.write_bytes(file.read_bytes()[:-1])
    assert "download it again" in check(file.parent).broken[0][1]


def test_large_parquet_files_are_sampled_and_it_is_said(parquet, encoded, monkeypatch, capsys):
    monkeypatch.setattr(checking, "READ_ALL_BELOW", 10)
    file = parquet("add.parquet", [row(n, encoded) for n in range(6)], group=4)
    assert cli.main(["data", "check", str(file.parent)]) == 0
    assert "6 rows, images of 4 looked at" in capsys.readouterr().out
    assert check(file.parent, everything=True).looked_at == 6


def test_own_edits(tmp_path, encoded, capsys):
    (tmp_path / "a.png").write_bytes(encoded(1))
    (tmp_path / "edits.csv").write_text("image,instruction\na.png,x\nb.png,y\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    assert "broken: 00002: the image" in capsys.readouterr().out
    (tmp_path / "b.png").write_bytes(encoded(2))
    assert cli.main(["data", "check", str(tmp_path)]) == 0


def test_a_size_that_a_pipeline_refuses_is_named(tmp_path, parquet, encoded, capsys):
    (tmp_path / "a.png").write_bytes(encoded(1, (1000, 100)))
    (tmp_path / "edits.csv").write_text("image,instruction,edited\na.png,x,a.png\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    assert "broken: 00001: FLUX.2 refuses 1000 x 100 pixels" in capsys.readouterr().out
    rows = [row(0, encoded, image_file=encoded(0, (48, 48))), row(1, encoded)]
    rows[1]["edited_file"] = encoded(0, (48, 48))  # which no pipeline gets
    found = check(parquet("add.parquet", rows))
    assert [where for where, _ in found.broken] == ["add-0"]


def test_nothing_there(tmp_path, capsys):
    assert cli.main(["data", "check", str(tmp_path / "x")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(ToPiError, match="neither"):
        check(tmp_path)


def test_a_file_of_one_type_is_not_called_all_of_it(parquet, encoded, capsys):
    file = parquet("add.parquet", [row(n, encoded) for n in range(3)])
    (file.parent / "._add.parquet").write_bytes(b"what a Mac leaves behind")
    for path in (file, file.parent):
        assert cli.main(["data", "check", str(path)]) == 0
        out = capsys.readouterr().out
        assert (
            "none of " in out and "replace, " in out and out.endswith("these types are complete\n")
        )


def test_all_images_are_decoded_on_request(parquet, encoded):
    whole = encoded(0, (200, 200), block=1)
    torn = whole[:2000] + bytes(500) + whole[2500:]  # begins and ends as it should
    file = parquet("add.parquet", [row(0, encoded, image_file=torn)])
    assert not check(file).broken
    assert [where for where, _ in check(file, everything=True).broken] == ["add-0"]


def test_of_many_large_files_some_images_are_looked_at(parquet, encoded, monkeypatch):
    monkeypatch.setattr(checking, "READ_ALL_BELOW", 0)
    monkeypatch.setattr(checking, "LOOK_INTO", 2)
    for k in range(4):
        rows = [row(10 * k + n, encoded) for n in range(6)]
        file = parquet(f"add-0000{k}-of-00004.parquet", rows)
    found = check(file.parent)
    assert found.total == 24 and found.looked_at == 2 * 4
    assert check(file.parent, everything=True).looked_at == 24
