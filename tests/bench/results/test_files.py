"""Whatever happens to a process or a disk, a file is whole or absent."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
from PIL import Image

from topi.bench.results import files
from topi.bench.results.sound_files import is_sound_image
from topi.errors import ToPiError


@contextmanager
def disk_full_after(size):
    """No file may grow beyond `size` bytes, as on a disk without space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_keeps_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "sub" / "a.json"
    files.write(path, b"old")
    with disk_full_after(10), pytest.raises(ToPiError, match=r"a\.json.*store="):
        files.write(path, b"new" * 100)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_append_leaves_the_lines_before_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.append(path, {"n": 1})
    before = path.read_bytes()
    with disk_full_after(20), pytest.raises(ToPiError, match=r"rows\.jsonl"):
        files.append(path, {"text": "x" * 100})
    assert path.read_bytes() == before
    files.append(path, {"n": 2})
    assert files.read_lines(path) == [{"n": 1}, {"n": 2}]


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n": 2')
    assert files.read_lines(path) == [{"n": 1}]
    assert files.drop_torn_line(path)
    assert path.read_text() == '{"n": 1}\n'
    assert not files.drop_torn_line(path)


def test_a_damaged_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": \n{"n": 2}\n')
    with pytest.raises(ToPiError, match=r"Line 1 of .*rows\.jsonl is not valid"):
        files.read_lines(path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ToPiError, match="store=PATH"):
        files.write_json(tmp_path / "file" / "x.json", {})


def test_a_damaged_image_is_named(tmp_path):
    path = tmp_path / "a.png"
    files.write_image(path, Image.new("RGB", (64, 64), "red"))
    assert files.read_image(path).size == (64, 64)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ToPiError, match=r"a\.png cannot be read"):
        files.read_image(path)


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path):
    path = tmp_path / ".lock"
    code = "import sys; from topi.bench.results import files\n"
    code += f"with files.lock(__import__('pathlib').Path({str(path)!r})) as ours: print(ours)"
    ask = [sys.executable, "-c", code]
    assert not files.is_locked(path)
    with files.lock(path) as ours:
        assert ours
        assert files.is_locked(path)
        assert subprocess.run(ask, capture_output=True, text=True).stdout == "False\n"
    assert not files.is_locked(path)
    assert subprocess.run(ask, capture_output=True, text=True).stdout == "True\n"


def test_every_flipped_bit_of_a_line_is_noticed(tmp_path):
    path = tmp_path / "rows.jsonl"
    records = [{"sample": f"s{i}", "psnr": 30.5 + i, "instruction": "é \u2028"} for i in range(2)]
    for record in records:
        files.append(path, record)
    assert files.read_lines(path) == records
    sound = path.read_bytes()
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read = files.read_lines(path)
        except ToPiError as error:
            assert "rows.jsonl" in str(error)
        else:
            assert files.drop_torn_line(path) or read == records, bytes(damaged)


def test_lines_of_earlier_versions_have_no_checksum(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1, "model": "topi_all"}\n{"n": 2}\n{}\n')
    files.append(path, {"n": 3})
    records = [{"n": 1, "model": "topi_all"}, {"n": 2}, {}, {"n": 3}]
    assert files.read_lines(path) == records
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()[::3]] == [1, 3]
    files.write_lines(path, records)
    assert files.read_lines(path) == records


def test_an_image_with_a_flipped_bit_is_damaged(tmp_path):
    path = tmp_path / "a.png"
    files.write_image(path, Image.effect_noise((32, 32), 90))
    assert is_sound_image(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert not is_sound_image(path)
    with pytest.raises(ToPiError, match=r"a\.png cannot be read"):
        files.read_image(path)
