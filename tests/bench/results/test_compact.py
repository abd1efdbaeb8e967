"""Finished cells in Parquet: the same numbers, few files, and nothing lost at any moment."""

import json
import os
import shutil
import time
from pathlib import Path

import cell_records
import pandas as pd
import pytest
from cell_records import settle
from PIL import Image

from topi.bench.cli import main as cli
from topi.bench.report.page import groups
from topi.bench.report.tables.columns import SCORES
from topi.bench.results import Store, files
from topi.bench.results import compact as module
from topi.bench.results.compact import compact
from topi.bench.results.segments import FOLDER, Segments

IMAGE = Image.new("RGB", (8, 8))
SAMPLES = 8
LOOSE = {"check_dtype": False, "check_categorical": False, "check_like": True}
ROW = {k: v for k, v in cell_records.row("b").items() if k != "psnr"}
NAN = {"psnr": float("nan")}


@pytest.fixture
def store(drawn, tmp_path):
    shutil.copytree(drawn.root, tmp_path / "store")  # with its times
    return Store(tmp_path / "store")


def facts(store):
    """All that a store says of its cells."""
    cells = [
        (c.key, c.created, c.model, c.method, c.labels, c.settings, c.count, c.done, c.state)
        for c in store.load_cells()
    ]
    frames = (
        frame.astype({"cell": str, "sample": str}) for frame in (store.rows(), store.latency())
    )
    return cells, *(f.sort_values(["cell", "sample"]).reset_index(drop=True) for f in frames)


def assert_same(one, other):
    assert one[0] == other[0]
    for mine, theirs in zip(one[1:], other[1:], strict=True):
        pd.testing.assert_frame_equal(mine, theirs, **LOOSE)


def with_pictures(cell):
    """A synthesised cell has none; without them its rows would not count when it goes on."""
    for row in cell.rows:
        files.write_image(cell.path / "images" / f"{row['sample']}.png", IMAGE)
    return cell


def held(store):
    return [key for cells in Segments(store.root).cells.values() for key in cells]


def test_a_compacted_store_says_the_same(store, drawn):
    before, sums = facts(store), store.moments(SCORES)
    assert store.compact() == 29
    assert len(held(store)) == 29
    assert_same(facts(store), before)
    assert store.compact() == 0  # nothing new
    by = ["cell", "category"]
    again = store.moments(SCORES).sort_values(by).reset_index(drop=True)
    pd.testing.assert_frame_equal(again, sums.sort_values(by).reset_index(drop=True))
    rows = store.rows()
    first = again.iloc[0]
    mine = rows[(rows["cell"] == first["cell"]) & (rows["category"] == first["category"])]
    assert first["n"] == len(mine) == 2
    assert first["psnr_sum"] == pytest.approx(mine["psnr"].sum())
    assert first["psnr_squares"] == pytest.approx((mine["psnr"] ** 2).sum())


def test_infinite_and_missing_scores_are_counted_apart(store):
    cell = store.load_cells()[0]
    lines = files.read_lines(cell.path / "rows.jsonl")
    lines[0]["psnr"], lines[4]["lpips"] = float("inf"), None
    files.write_lines(cell.path / "rows.jsonl", lines)
    settle(store)
    before = store.moments(SCORES)
    assert store.compact() == 29
    for sums in (before, store.moments(SCORES)):
        line = sums[(sums["cell"] == cell.key) & (sums["category"] == "camera_move")].iloc[0]
        assert (line["n"], line["psnr_n"], line["psnr_infinite"], line["lpips_n"]) == (2, 1, 1, 1)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip(path):
    """A bit in the data of a column that is read."""
    columns = module.pq.read_metadata(path).row_group(0)
    column = columns.column(0 if path.name == "cells.parquet" else columns.num_columns - 1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + column.total_compressed_size - 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["cells.parquet", "rows.parquet", "latency.parquet"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_segment_is_read_from_the_logs_and_written_anew(store, caplog, name, damage):
    before, sums = facts(store), len(store.moments(SCORES))
    store.compact()
    damage(store.root / FOLDER / "0" / name)
    assert_same(facts(store), before)
    assert len(store.moments(SCORES)) == sums
    assert "0 is damaged" in caplog.text or (name, damage) == ("cells.parquet", Path.unlink)
    assert store.compact() == 29
    assert_same(facts(store), before)


def test_a_segment_with_other_columns_is_damaged(store):
    store.compact()
    path = store.root / FOLDER / "0" / "cells.parquet"
    table = module.pq.read_table(path)
    module.pq.write_table(table.set_column(7, "count", table["created"]), path)
    assert held(store) == []
    assert store.compact() == 29


def test_a_store_of_compacted_cells_alone_has_rows_with_parameters(synthesise, tmp_path):
    store = Store(tmp_path)
    synthesise(store.root, 3, SAMPLES)
    settle(store)
    assert store.compact() == 3
    rows = store.rows()
    known = {cell.key: cell.manifest["params"] for cell in store.load_cells()}
    assert all(
        params == known[key] for key, params in zip(rows["cell"], rows["params"], strict=True)
    )
    assert len(rows) == 3 * SAMPLES


def test_a_compacted_cell_that_loses_a_picture_is_looked_at_again(store):
    cell = with_pictures(store.cell(store.load_cells()[0].key))
    cell.finish()
    settle(store)
    store.compact()
    assert cell.key in held(store)
    next((cell.path / "images").iterdir()).unlink()
    assert cell.key not in held(store)
    (found,) = [each for each in store.load_cells() if each.key == cell.key]
    assert "lacks 1 of 8 pictures" in found.state
    settle(store)
    store.compact()
    assert cell.key not in held(store)


def test_a_cell_that_goes_on_is_read_from_its_log(store):
    store.compact()
    cell = with_pictures(store.cell(held(store)[0]))
    cell.start(cell.manifest | {"created": "2026-02-01"}, mixed=True)
    assert cell.state.startswith("partial")
    assert cell.key not in held(store)
    cell.add_row(cell_records.row("one-more", SAMPLES), IMAGE, None)
    cell.finish()
    assert cell.key not in held(store)
    seen = store.rows()
    assert "one-more" in set(seen["sample"])
    assert len(seen) == 29 * SAMPLES + SAMPLES // 2 + 1
    assert store.compact() == 0  # it changed a moment ago
    settle(store)
    assert store.compact() == 30 - 1
    assert len(held(store)) == len(set(held(store))) == 29
    assert_frames_count(store, len(seen))


def assert_frames_count(store, count):
    rows = store.rows()
    assert len(rows) == count
    assert not rows.duplicated(["cell", "sample"]).any()


@pytest.mark.parametrize(
    "damage",
    [
        '{"sample": "b", "ps',
        '{"sample": 7}',
        json.dumps(ROW),
        json.dumps(ROW | NAN),
        '{"sample": "../x"}',
        "[1]",
        "\0" * 9,
    ],
)
def test_a_damaged_cell_stays_out(store, damage, caplog):
    path = store.load_cells()[0].path / "rows.jsonl"
    with path.open("a") as file:
        file.write(damage + "\n")
    assert store.compact() == 28
    assert path.parent.name not in held(store)
    assert "stays out" in caplog.text


def test_a_torn_line_stays_out(store):
    path = store.load_cells()[0].path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert store.compact() == 28


def test_killed_at_any_line_it_loses_nothing(store, kill, monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 12)  # segments
    before = facts(store)
    total = kill.lines(lambda: compact(store.root))
    shutil.rmtree(store.root / FOLDER)
    assert total > 300
    killed, found = 0, set()
    for line in range(20, total, total // 25):
        killed += kill(line, lambda: compact(store.root))
        found.add(len(held(store)))
        assert_same(facts(store), before)
        compact(store.root)
        assert sorted(held(store)) == [c[0] for c in sorted(before[0]) if c[-1] == "complete"]
        assert not list((store.root / FOLDER).glob(".*.part"))
        shutil.rmtree(store.root / FOLDER)
    assert_same(facts(store), before)
    assert killed >= 25
    assert found >= {0, 12, 24}  # between the segments too


def test_of_two_that_compact_one_does(store):
    with files.lock(store.root / FOLDER / module.LOCK) as ours:
        assert ours
        assert compact(store.root) == 0
    assert held(store) == []
    pids = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            os._exit(min(compact(store.root), 100))
        pids.append(pid)
    taken = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sorted(taken) == [0, 0, 0, 29]
    assert len(held(store)) == len(set(held(store))) == 29


def test_cells_that_work_while_others_compact_are_told_right(store, monkeypatch):
    monkeypatch.setattr(module, "SETTLED", 3 * 10**7)
    keys = [with_pictures(cell).key for cell in store.load_cells() if cell.complete][:3]
    pid = os.fork()
    if pid == 0:
        try:
            for number in range(40):
                cell = store.cell(keys[number % 3])
                cell.start(cell.manifest, mixed=True)
                cell.add_row(cell_records.row(f"new-{number}"), IMAGE, None)
                cell.finish()
                time.sleep(0.02)
        finally:
            os._exit(0)
    rounds = 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        compact(store.root)
        rounds += 1
    assert rounds > 2
    time.sleep(0.05)
    compact(store.root)
    assert set(keys) <= set(held(store))
    for key, about in (
        (k, a) for cells in Segments(store.root).cells.values() for k, a in cells.items()
    ):
        assert about.rows == len(store.cell(key).rows)
    rows = store.rows()
    assert {f"new-{number}" for number in range(40)} <= set(rows["sample"])
    assert not rows.duplicated(["cell", "sample"]).any()


def test_small_segments_become_one_and_the_old_ones_go_later(store, monkeypatch):
    keys = [cell.key for cell in store.load_cells() if cell.complete]
    for part in (keys[:10], keys[10:20], keys[20:]):
        for key in keys:
            marker = store.root / "cells" / key / "complete.json"
            if key in part:
                marker.write_text("{}")
            elif key not in held(store):
                marker.unlink(missing_ok=True)
        settle_new = [k for k in keys if k in part]
        for key in settle_new:
            os.utime(store.root / "cells" / key, ns=(10**18, 10**18))
        store.compact()
    segments = Segments(store.root)
    live = [folder for folder, cells in segments.cells.items() if cells]
    assert len(live) == 1
    assert sorted(held(store)) == sorted(keys)
    old = [folder for folder in segments.folders if folder not in live]
    assert old  # somebody may be reading them
    monkeypatch.setattr(module, "HOUR", -1)
    with files.lock(store.root / FOLDER / module.LOCK):
        module._retire(Segments(store.root), time.time_ns())
    assert not any(folder.exists() for folder in old)
    assert sorted(held(store)) == sorted(keys)


def test_a_large_report_has_the_numbers_of_a_small_one(store, tmp_path, monkeypatch):
    cells = [cell for cell in store.load_cells() if cell.done]
    (small,) = groups.contents(store, cells)
    store.compact()
    monkeypatch.setattr(groups, "MANY", 0)
    (large,) = groups.contents(store, store.load_cells())
    assert list(large.table.columns) == list(small.table.columns)
    line = ["category", "label", "method", "n", "identical"]
    pd.testing.assert_frame_equal(large.table[line], small.table[line], check_dtype=False)
    for name in (*SCORES, "speedup"):
        assert large.table[name].to_list() == pytest.approx(
            small.table[name].to_list(), nan_ok=True
        )
        low, high = (large.table[f"{name}_{end}"] for end in ("low", "high"))
        assert (
            (low <= large.table[name] + 1e-12) & (large.table[name] <= high + 1e-12) | low.isna()
        ).all()
    assert f"all {len(cells)} cells" in large.remarks[0]
    assert small.remarks == ()


def test_a_store_that_takes_no_files_is_read_all_the_same(store, monkeypatch, capsys, caplog):
    monkeypatch.setattr("topi.bench.results.store.WORTH_WHILE", 1)
    (store.root / FOLDER).write_text("in the way")
    assert cli.main(["status", "--store", str(store.root)]) == 0
    assert "Cannot write" in caplog.text
    assert json.dumps(held(store)) == "[]"
    assert "partial" in capsys.readouterr().out
