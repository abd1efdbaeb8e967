"""Full disks, places that cannot be written, encodings that lack letters: one line, no trace."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from topi.bench.data import anyedit
from topi.bench.data.check import check
from topi.bench.report.pages import write_blocks
from topi.bench.report.selection import answers
from topi.bench.results import Store
from topi.bench.results.cache_fit_file import read_cache_fit
from topi.bench.results.calibration_file import read_calibration
from topi.bench.results.files import read_image
from topi.bench.runs.plan import load
from topi.errors import ToPiError

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "experiments" / "results"


def command(*arguments, script=("-m", "topi"), out=subprocess.PIPE, **environment):
    """Run a command as users do; its exit code, output and errors, without a stack trace."""
    done = subprocess.run(
        [sys.executable, *script, *map(str, arguments)],
        stdout=out,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        timeout=120,
    )
    told = done.stderr.decode()
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    return done.returncode, (done.stdout or b"").decode("latin1"), told


def test_an_output_that_knows_only_ascii_gets_escapes():
    code, out, told = command("status", "--store", STORE / "a×b", PYTHONIOENCODING="ascii")
    assert (code, told) == (0, "")
    assert "a\\xd7b" in out


def test_a_full_output_is_one_line():
    with open("/dev/full", "w") as full:
        code, _, told = command("status", "--store", STORE / "no", out=full)
    assert code == 1
    assert told.count("\n") == 1
    assert "No space left on device" in told


def test_a_reader_that_has_enough_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        code, _, told = command("status", "--store", STORE / "no", out=out)
    assert (code, told) == (1, "")


def test_a_full_disk_under_the_log_of_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    import logging

    from topi.bench.runs.launch import exit_code

    def run():
        log = logging.getLogger("topi.test")
        log.propagate = False
        log.setLevel(logging.INFO)
        log.addHandler(logging.FileHandler("/dev/full"))
        for number in range(3):
            log.info("line %d", number)

    assert exit_code(run) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "a log cannot be written" in line
    assert "No space left on device" in line


def test_a_full_disk_under_hydra_is_one_line(capsys):
    from topi.bench.runs.launch import exit_code

    def run():
        with open("/dev/full", "w") as file:  # as Hydra writes its settings
            file.write("x")

    assert exit_code(run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Cannot read or write a file (No space left on device)" in line


def test_errors_of_libraries_keep_their_trace():
    from topi.bench.runs.launch import exit_code

    def run():
        raise OSError("no tokenizer there")

    with pytest.raises(OSError, match="no tokenizer"):
        exit_code(run)


def test_pipes_folders_devices_and_deep_nesting_in_place_of_files_are_refused(tmp_path):
    """A pipe would be waited for without an end, /dev/zero be read without one."""
    pipe, nested = tmp_path / "pipe", tmp_path / "nested"
    os.mkfifo(pipe)
    nested.write_text("[" * 100_000)
    readers = {
        "plan": load,
        "questions": lambda path: answers(Store(tmp_path), path),
        "page": lambda path: write_blocks([path], Store(tmp_path)),
        "calibration": read_calibration,
        "fit": read_cache_fit,
        "image": read_image,
    }
    for name, read in readers.items():
        for place in (pipe, tmp_path, Path("/dev/zero"), nested):
            if (name, place) != ("page", nested):  # a page without a block
                with pytest.raises(ToPiError, match=place.name):
                    read(place)


def test_a_selection_that_is_nested_too_deeply_is_damaged(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ToPiError, match="was changed or damaged"):
        anyedit._read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ["edits.jsonl", "edits.csv", "edit_result.json", "a.parquet"])
def test_a_data_set_is_not_made_of_pipes(tmp_path, name, nested):
    if nested:
        (tmp_path / name).write_text("[" * 100_000)
    else:
        os.mkfifo(tmp_path / name)
    with suppress(ToPiError):
        assert check(tmp_path).broken


def test_a_pipe_is_no_picture_of_a_data_set(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "edits.jsonl").write_text('{"image": "a.png", "instruction": "x"}\n')
    assert [where for where, _ in check(tmp_path).broken]
    folder = tmp_path / "anybench" / "add"
    folder.mkdir(parents=True)
    (folder / "edit_result.json").write_text('[{"image_file": "a.png", "edit": "x"}]')
    (tmp_path / "edits.jsonl").unlink()
    os.mkfifo(folder / "a.png")
    assert check(tmp_path).broken
