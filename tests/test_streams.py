"""Full disks, places that cannot be written, encodings that lack letters: one line, no trace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from topi import cli

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

    from topi.launch import exit_code

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
    from topi.launch import exit_code

    def run():
        with open("/dev/full", "w") as file:  # as Hydra writes its settings
            file.write("x")

    assert exit_code(run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Cannot read or write a file (No space left on device)" in line


def test_errors_of_libraries_keep_their_trace():
    from topi.launch import exit_code

    def run():
        raise OSError("no tokenizer there")

    with pytest.raises(OSError, match="no tokenizer"):
        exit_code(run)


def test_pipes_folders_and_devices_in_place_of_files_are_refused(tmp_path, capsys):
    """A pipe would be waited for without an end, /dev/zero be read without one."""
    pipe, data = tmp_path / "pipe", tmp_path / "data"
    os.mkfifo(pipe)
    data.mkdir()
    (data / "edits.jsonl").symlink_to(pipe)
    nested = tmp_path / "nested.json"
    nested.write_text("[" * 100_000)
    for place in (pipe, tmp_path, Path("/dev/zero"), nested):
        for arguments in (
            ["work", str(place)],
            ["compare", "--store", str(STORE), "--questions", str(place)],
            ["probe", "model=tiny_flux", f"layers.file={place}", f"store={tmp_path / 's'}"],
            ["pages", str(place), "--store", str(STORE)],
            ["data", "check", str(place)],
        ):
            if place == tmp_path and arguments[0] == "data":
                arguments[-1] = str(data)
            if place == nested and arguments[0] == "pages":
                continue  # a page without a block
            assert cli.main(arguments) == 1, arguments
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("topi: ")
