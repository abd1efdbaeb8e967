"""A cell whose files are damaged, whose disk fills up or whose process is killed anywhere."""

import json
import random
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from cell_records import about, mutated, pair, row
from PIL import Image

from topi.bench.results import Store, files
from topi.bench.results.mend import mend
from topi.errors import ToPiError

IMAGE = Image.new("RGB", (16, 16), "red")
SAMPLES = ("a", "b", "c", "d")
CODE = {"code": "0123456789abcdef", "versions": {"torch": "2.0"}}


def manifest(**more):
    return about(count=len(SAMPLES), **CODE) | more


def work(cell):
    """What an experiment does to a cell, without a model."""
    cell.start(manifest())
    done = {row["sample"] for row in cell.rows}
    for index, sample in enumerate(SAMPLES):
        if sample not in done:
            cell.add_row(row(sample, index), IMAGE, None)
    timed = cell.timed()
    for sample in SAMPLES[timed.total() :]:
        cell.add_latency(pair(sample))
    cell.finish()


def facts(cell):
    return cell.state, sorted(cell.rows, key=lambda row: row["index"]), cell.latency


@pytest.fixture
def cell(tmp_path):
    cell = Store(tmp_path / "store").cell("m-1")
    work(cell)
    return cell


@pytest.fixture
def whole(cell):
    return facts(cell)


def edit_line(path, number, text):
    lines = path.read_text().splitlines()
    lines[number] = text
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "damage",
    [
        '{"sample": "b", "ps',
        "\0" * 40,
        "[1]",
        '{"sample": 7}',
        "[" * 5000,
        json.dumps({k: v for k, v in row("b", 1).items() if k != "psnr"}),
        json.dumps(row("b", 1, psnr=float("nan"))),
        json.dumps(row("b", 1, keep_ratio="0.5")),
    ],
)
def test_a_damaged_row_is_set_aside_and_computed_again(cell, whole, caplog, damage):
    path = cell.path / "rows.jsonl"
    edit_line(path, 1, damage)
    broken = path.read_bytes()
    assert cell.state.startswith("damaged: ")
    assert "rows.jsonl" in cell.state
    work(cell)
    assert facts(cell) == whole
    assert "1 of 4 lines of rows.jsonl are damaged" in caplog.text
    assert (cell.path / "quarantine" / "0" / "rows.jsonl").read_bytes() == broken


def test_a_row_counts_once_and_only_with_its_picture(cell, whole, caplog):
    path = cell.path / "rows.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(row("a", psnr=99.0)) + "\n")
    (cell.path / "images" / "c.png").unlink()
    work(cell)
    assert facts(cell) == whole
    assert "2 of 5 lines" in caplog.text
    assert (cell.path / "images" / "c.png").is_file()


def test_an_impossible_time_is_measured_again(cell, whole):
    edit_line(
        cell.path / "latency.jsonl",
        3,
        '{"sample": "d", "repeat": 0, "seconds_full": 2.0, "seconds_method": -1}',
    )
    work(cell)
    assert facts(cell) == whole


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff\xfe"])
def test_without_a_manifest_nothing_is_trusted(cell, whole, caplog, content):
    (cell.path / "manifest.json").write_bytes(content)
    store = Store(cell.path.parents[1])
    fresh = store.cell(cell.key)
    assert fresh.state.startswith("damaged: ")
    assert store.load_cells() == []
    assert "left out" in caplog.text
    assert [found.key for found in store.find_cells()] == [cell.key]
    work(fresh)
    assert facts(fresh) == whole
    aside = fresh.path / "quarantine" / "0"
    assert (aside / "manifest.json").read_bytes() == content
    assert len((aside / "rows.jsonl").read_text().splitlines()) == 4
    assert (aside / "images" / "a.png").is_file()


def cut_line(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def repeat_line(path):
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])


def make_folder(path):
    path.unlink()
    path.mkdir()


def make_dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def damage_picture(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("name", "lose", "words"),
    [
        ("manifest.json", Path.unlink, "manifest.json cannot be read"),
        ("manifest.json", make_folder, "manifest.json cannot be read"),
        ("manifest.json", make_dangling, "symbolic link"),
        ("complete.json", make_folder, "complete.json"),
        ("rows.jsonl", cut_line, "lacks 1 of 4 samples"),
        ("rows.jsonl", repeat_line, "has 1 samples twice"),
        ("rows.jsonl", Path.unlink, "lacks 4 of 4 samples"),
        ("latency.jsonl", cut_line, "lacks 1 of 4 timed pairs"),
        ("images/b.png", Path.unlink, "lacks 1 of 4 pictures, as that of b"),
    ],
)
def test_a_complete_cell_that_lost_something_says_so_and_computes_it(
    cell, whole, name, lose, words
):
    lose(cell.path / name)
    (found,) = Store(cell.path.parents[1]).find_cells()
    assert (found.complete, found.state[:9]) == (False, "damaged: ")
    assert words in found.state
    work(found)
    assert facts(found) == whole


def test_a_damaged_picture_and_mask_are_computed_again(cell, whole):
    damage_picture(cell.path / "images" / "c.png")
    (cell.path / "masks").mkdir()
    (cell.path / "masks" / "a.json").write_text('{"grids": [[1, 1]], "anchors": [{"kept": [7]}]}')
    cell.start(manifest())
    assert [row["sample"] for row in cell.rows] == ["b", "d"]
    work(cell)
    assert facts(cell) == whole


@pytest.mark.parametrize("content", ["", "[]", '{"message": 7}', "[" * 9999])
def test_a_damaged_reason_of_failure_hides_nothing(cell, content):
    (cell.path / "complete.json").unlink()
    (cell.path / "failed.json").write_text(content)
    assert cell.state.startswith("failed: the reason is not known")


def test_a_cell_with_any_damaged_record_is_told_and_mended(tmp_path, cell, whole):
    """A field that is missing, of another type or nested deeply."""
    dice = random.Random(0)
    for number in range(60):
        path = tmp_path / str(number)
        shutil.copytree(cell.path.parents[1], path)
        other = Store(path).cell(cell.key)
        other.fail("no luck")
        name = dice.choice(["manifest.json", "manifest.json", "complete.json", "failed.json"])
        content = mutated(json.loads((other.path / name).read_text()), dice)
        (other.path / name).write_text(content)
        (found,) = Store(path).find_cells()
        assert found.state.startswith(("damaged: ", "complete")), content[:999]
        try:
            work(found)
        except ToPiError as error:
            assert "other conditions" in str(error), content[:999]
        else:
            assert facts(found) == whole, content[:999]


def test_a_sound_cell_is_left_as_it_is(cell):
    before = {path: path.read_bytes() for path in cell.path.rglob("*") if path.is_file()}
    assert mend(cell.path)["key"] == "m-1"
    assert before == {path: path.read_bytes() for path in cell.path.rglob("*") if path.is_file()}


def test_a_process_killed_at_any_line_leaves_a_cell_that_continues(tmp_path, cell, whole, kill):
    total = kill.lines(lambda: work(Store(tmp_path / "count").cell("m-1")))
    assert total > 100
    killed = 0
    for number, line in enumerate(range(1, total, total // 45)):
        other = Store(tmp_path / str(number)).cell("m-1")
        killed += kill(line, lambda o=other: work(o))
        work(other)
        assert facts(other) == whole, f"killed at line {line}"
        assert not (other.path / "quarantine").exists()
        assert not list(other.path.rglob("*.part"))
    assert killed >= 40


@pytest.mark.parametrize("length", [1, 20, 39])
def test_a_line_torn_by_a_lost_node_is_dropped(cell, whole, caplog, length):
    path = cell.path / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:length])
    (cell.path / "complete.json").unlink()
    assert cell.state == "partial 3/4"
    work(cell)
    assert facts(cell) == whole
    assert not (cell.path / "quarantine").exists()


@contextmanager
def small_disk(folder, kilobytes):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_costs_no_row(tmp_path, whole):
    with small_disk(tmp_path / "disk", 64):
        cell = Store(tmp_path / "disk").cell("m-1")
        cell.start(manifest())
        cell.add_row(row("a"), IMAGE, None)
        ballast = tmp_path / "disk" / "ballast"
        with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
            while file.write(b"\1" * 4096):
                pass
        noise = Image.effect_noise((64, 64), 90)
        with pytest.raises(ToPiError, match=r"Cannot write .*b\.png.*No space.*store="):
            cell.add_row({"sample": "b", "index": 1, "psnr": 31.0}, noise, None)
        cell.fail("full")  # cannot be written either, and must not raise
        assert [row["sample"] for row in cell.rows] == ["a"]
        assert not list(cell.path.rglob("*.part"))
        ballast.unlink()
        work(cell)
        assert facts(cell) == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code": "fedcba9876543210"}, "code 01234567 is now fedcba98"),
        ({"versions": {"torch": "2.1"}}, "torch 2.0 is now 2.1"),
        ({"created": "2026-01-01T09:50:00"}, "the clock says 2026-01-01T09:50:00"),
    ],
)
def test_a_cell_is_not_continued_under_other_conditions_unless_allowed(cell, change, words):
    before = (cell.path / "manifest.json").read_bytes()
    with pytest.raises(ToPiError, match=f"{words}.*resume=any"):
        cell.start(manifest(**change))
    assert (cell.path / "manifest.json").read_bytes() == before
    assert cell.complete
    cell.start(manifest(**change), mixed=True)
    (resumed,) = cell.manifest["resumed"]
    assert words in resumed["changed"][0]
    assert resumed["rows"] == 4
    assert change.items() <= resumed.items()
    assert cell.manifest["created"] == "2026-01-01T10:00:00"
    cell.start(manifest(**change))  # as the half before


def test_machines_jobs_and_commits_may_change_and_are_noted(cell):
    change = {
        "created": "2026-01-01T09:56:00",  # clocks may differ a little
        "git": {"commit": "b" * 40, "dirty": False},
        "lock": "other",
        "device": {"name": "cpu", "driver": "2"},
        "job": {"host": "node7", "slurm_job_id": "12"},
    }
    cell.start(manifest(**change))
    (resumed,) = cell.manifest["resumed"]
    assert change.items() <= resumed.items()
    assert resumed["changed"] == []
    assert "code" not in resumed


def test_an_attempt_without_rows_counts_for_nothing(tmp_path):
    cell = Store(tmp_path).cell("m-1")
    cell.start(manifest())
    cell.start(manifest(code="new"))
    assert cell.manifest["code"] == "new"
    assert "resumed" not in cell.manifest


def test_a_row_from_a_stranger_names_no_other_file(cell):
    with (cell.path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row("../../../secret")) + "\n")
    with pytest.raises(ToPiError, match="cannot name a file"):
        _ = cell.rows
    assert "cannot name a file" in cell.state


def test_files_read_json_wants_an_object(tmp_path):
    path = tmp_path / "a.json"
    for content in ("[]", "{", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(ToPiError, match=r"a\.json is not valid"):
            files.read_json(path)
