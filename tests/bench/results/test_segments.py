"""Reading a store of many cells opens few files."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
from cell_records import settle

from topi.bench.cli import main as cli
from topi.bench.report.tables.columns import SCORES
from topi.bench.results import Store

SAMPLES = 8
opened: list[str] | None = None


def count_opens(event, arguments):
    if opened is not None and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(count_opens)


def files_opened(action):
    global opened
    opened = []
    try:
        action()
        return opened
    finally:
        opened = None


def test_reading_many_cells_opens_few_files(synthesise, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("topi.bench.results.compact.TOGETHER", 10)
    monkeypatch.setattr("topi.bench.cli.store_commands.LISTED", 5)
    read = []
    real = pq.ParquetFile
    monkeypatch.setattr(
        pq, "ParquetFile", lambda path, **more: (read.append(path), real(path, **more))[1]
    )
    for count in (20, 40):
        store = Store(tmp_path / str(count))
        synthesise(store.root, count, SAMPLES)
        settle(store)
        assert store.compact() == count - 1
        (unfinished,) = [cell for cell in store.load_cells() if not cell.complete]
        read.clear()
        looked = files_opened(lambda s=store: cli.main(["status", "--store", str(s.root)]))
        ours = {Path(path).parent for path in looked if str(store.root) in path}
        assert ours == {unfinished.path}
        assert len(read) == count / 10  # one for each segment
        told = capsys.readouterr().out
        assert ["flux_kontext", "complete", str(count - 1)] in [x.split() for x in told.split("\n")]
        assert unfinished.key in told
        read.clear()
        looked = files_opened(lambda s=store: s.moments(SCORES))
        assert {Path(path).parent for path in looked if str(store.root) in path} == {
            unfinished.path
        }
        assert len(read) == 2 * count / 10
