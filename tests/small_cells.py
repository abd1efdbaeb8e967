"""Small cells on random weights, processes that work on them, and what must be equal afterwards."""

import logging
import os
import time
import traceback
from pathlib import Path

from topi.bench.config.compose import composed
from topi.bench.config.schema import read_config
from topi.bench.results import Cell, Store

PATIENCE = 300  # seconds, for a machine with other things to do
TIMING = ("seconds", "scoring_seconds", "selection_seconds")
SMOKE = ("experiment=smoke", "latency.samples=0", "model.steps=3", "method.first_anchor=1")
SMOKE += ("model.height=64", "model.width=64")


def config_for(store, *overrides):
    return read_config(composed([*SMOKE, f"store={store}", *overrides]))


def rows_of(cell):
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in cell.rows]
    return sorted(rows, key=lambda row: row["index"])


def only_cell(store):
    (cell,) = Store(store).find_cells()
    return cell


def fork(action, log=None):
    """Start a process that runs `action` and exits with what it returns."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            if log is not None:
                logging.basicConfig(filename=log, level=logging.INFO, force=True)
            code = action() or 0
        except SystemExit as stopped:
            code = stopped.code
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def pausing_after(rows, action, until=Path("never")):
    """Run in a fork: once the cell has so many rows, it waits for a file, or for a signal."""
    real = Cell.add_row

    def add_row(self, *arguments):
        real(self, *arguments)
        while len(self.rows) >= rows and not until.exists():
            time.sleep(0.02)

    Cell.add_row = add_row
    return action()


def wait_until(condition, what="it"):
    """The first result of `condition` that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)
    return found


def wait_for_rows(store, count, shard=None):
    """Until the only cell of a store, or a shard of it, has so many rows."""

    def there():
        cells = Store(store).load_cells()
        cells = [cells[0].shard(shard)] if cells and shard else cells
        return cells and len(cells[0].rows) >= count

    wait_until(there, f"{count} rows")


def assert_equal(cell, calm):
    """Row for row and picture for picture, and nothing lies about."""
    assert cell.key == calm.key
    assert rows_of(cell) == rows_of(calm)
    assert len(cell.rows) == len({row["sample"] for row in cell.rows})
    for row in calm.rows:
        for folder in ("images", "masks"):
            (mine,) = (cell.path / folder).glob(f"{row['sample']}.*")
            (other,) = (calm.path / folder).glob(f"{row['sample']}.*")
            assert mine.read_bytes() == other.read_bytes()
    assert not list(cell.path.parents[1].rglob(".*.part"))
    assert not (cell.path / "quarantine").exists()
