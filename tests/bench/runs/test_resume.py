"""Rows on disk that a killed process continues, and the lock around them."""

import pytest

from topi.bench.data import EditSample
from topi.bench.results import files
from topi.bench.runs.resume import alone, collect, collect_batches
from topi.errors import ToPiError

SAMPLES = [EditSample(f"s{i}", "local_edit", "add", "x", ()) for i in range(7)]


def test_rows_come_in_the_order_of_the_data(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.append(path, {"sample": "s1", "index": 1})
    rows = collect(SAMPLES[:3], lambda index, sample: {"n": index}, "t", path)
    assert [row["sample"] for row in rows] == ["s0", "s1", "s2"]
    assert [row.get("n") for row in rows] == [0, None, 2]
    assert rows[0] == {"sample": "s0", "index": 0, "category": "local_edit", "task": "add", "n": 0}


def test_a_killed_batch_loses_no_finished_row(tmp_path):
    seen, path = [], tmp_path / "rows.jsonl"

    def rows_of(indices, samples):
        seen.append([sample.id for sample in samples])
        for index in indices:
            if index == 4 and len(seen) == 2:
                raise KeyboardInterrupt
            yield {"n": index}

    with pytest.raises(KeyboardInterrupt):
        collect_batches(SAMPLES, rows_of, "t", path, 3)
    rows = collect_batches(SAMPLES, rows_of, "t", path, 3)
    assert seen == [["s0", "s1", "s2"], ["s3", "s4", "s5"], ["s4", "s5", "s6"]]
    assert [row["n"] for row in rows] == list(range(7))
    assert rows == files.read_lines(path)
    assert collect_batches(SAMPLES, None, "t", path, 3) == rows


def test_a_second_process_is_refused(tmp_path):
    lock = tmp_path / "lock"
    message = r"Another process is running the study a\. Wait until"
    with alone(files.lock(lock), "study a"), pytest.raises(ToPiError, match=message):
        alone(files.lock(lock), "study a").__enter__()
    with alone(files.lock(lock), "study a"):
        pass
