"""One cell computed by several processes: the same rows as by one, whatever happens to them."""

import os
import random
import shutil
import signal
import time

import pytest
from small_cells import (
    assert_equal,
    config_for,
    fork,
    only_cell,
    pausing_after,
    wait,
    wait_for_rows,
    wait_until,
)

from topi.bench.config.compose import composed
from topi.bench.config.schema import ConfigError, read_config
from topi.bench.editors.editor import TinyEditor
from topi.bench.results import Cell, files, provenance
from topi.bench.runs import compute
from topi.bench.runs.gpu import share
from topi.bench.runs.plan import plan
from topi.bench.runs.work import run_tasks
from topi.errors import ToPiError

pytestmark = pytest.mark.slow


def shards_of(store, number, *overrides):
    more = ("data.count=4", *overrides)
    return [config_for(store, f"shard={i}/{number}", *more) for i in range(number)]


def assert_put_together(cell, calm):
    assert cell.complete
    assert_equal(cell, calm)
    assert [row["index"] for row in cell.rows] == [0, 1, 2, 3]
    assert not (cell.path.parents[1] / "shards").exists()


def test_shards_in_any_order_make_the_cell(tmp_path, calm, edits):
    states = []
    for config in shards_of(tmp_path, 3)[::-1]:
        compute.run(config)
        states.append(only_cell(tmp_path).state)
    assert states == ["partial 1/4", "partial 2/4", "complete"]
    cell = only_cell(tmp_path)
    assert_put_together(cell, calm)
    assert len(edits) == 8  # each sample once in full and once with the method
    noted = [attempt["shard"] for attempt in cell.manifest["resumed"]]
    assert noted == ["2of3", "1of3", "0of3"]
    assert cell.manifest["config"]["shard"] is None
    edits.clear()
    compute.run(shards_of(tmp_path, 3)[0])
    compute.run(config_for(tmp_path, "data.count=4"))
    assert not edits


def test_shards_at_the_same_time(tmp_path, calm):
    pids = [fork(lambda c=config: compute.run(c)) for config in shards_of(tmp_path, 2)]
    assert [wait(pid) for pid in pids] == [0, 0]
    cell = only_cell(tmp_path)
    assert_put_together(cell, calm)
    assert {attempt["shard"] for attempt in cell.manifest["resumed"]} == {"0of2", "1of2"}


def test_timed_pairs_are_shared_too(tmp_path):
    for config in shards_of(tmp_path, 2, "latency.samples=3", "latency.repeats=2"):
        compute.run(config)
    cell = only_cell(tmp_path)
    assert cell.complete
    first, second, third = (row["sample"] for row in cell.rows[:3])
    assert cell.timed() == {first: 2, second: 2, third: 2}


def test_several_processes_of_a_machine_through_fabric(tmp_path, calm):
    compute.run(config_for(tmp_path, "data.count=4", "devices=2"))
    cell = only_cell(tmp_path)
    assert_put_together(cell, calm)
    assert {attempt["shard"] for attempt in cell.manifest["resumed"]} == {"0of2", "1of2"}


def fail_second(rank, world, folder):
    assert world == 2
    (folder / str(rank)).write_text(str(os.getpid()))
    if rank == 1:
        wait_until((folder / "0").exists)
        raise ToPiError("out of luck")
    time.sleep(600)


def test_a_process_that_fails_ends_the_others(tmp_path):
    with pytest.raises(Exception, match="out of luck"):
        share(2, fail_second, tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0").read_text()), 0)


def test_killed_shards_go_on_under_any_other_division(tmp_path, calm, edits):
    """Two of three are killed; what they have is not computed again by one of two."""
    for index in (0, 1):
        config = shards_of(tmp_path, 3)[index]
        pid = fork(lambda c=config: pausing_after(1, lambda: compute.run(c)))
        wait_for_rows(tmp_path, 1, f"{index}of3")
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    assert only_cell(tmp_path).state == "partial 2/4"
    (part,) = only_cell(tmp_path).shards()  # it took in the other one
    with (part.path / "rows.jsonl").open("a") as file:
        file.write('{"sample": "torn')
    for config in shards_of(tmp_path, 2):
        compute.run(config)
    assert_put_together(only_cell(tmp_path), calm)
    assert len(edits) == 4  # samples 2 and 3


@pytest.mark.parametrize("next_divided_by", [1, 2, 3])
def test_killed_while_its_shard_was_taken_in(tmp_path, calm, edits, monkeypatch, next_divided_by):
    """Between the pictures and the rows; the same shard, another or the whole go on from there."""

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cell, "finish", killed)  # of the shard, so that it is not taken in yet
        with pytest.raises(KeyboardInterrupt):
            compute.run(shards_of(tmp_path, 2)[0])
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_lines", killed)
        with pytest.raises(KeyboardInterrupt):
            compute.run(config_for(tmp_path, "data.count=4"))
    (part,) = only_cell(tmp_path).shards()
    (only_cell(tmp_path).path / ".manifest.json.7.part").write_text("{")  # of a killed process
    assert len(part.rows) == 2
    assert not list(part.path.glob("images/*"))
    edits.clear()
    for config in shards_of(tmp_path, next_divided_by):
        compute.run(config)
    assert_put_together(only_cell(tmp_path), calm)
    assert len(edits) == 4  # what was there is not computed again


def test_killed_while_a_shard_that_was_taken_in_is_removed(tmp_path, calm, monkeypatch):
    """What is left of it is no damage of the cell."""
    real = shutil.rmtree

    def killed(folder, *arguments, **options):
        (folder / "manifest.json").unlink()
        raise KeyboardInterrupt

    first, second = shards_of(tmp_path, 2)
    compute.run(first)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            compute.run(second)
    assert shutil.rmtree is real
    compute.run(second)
    cell = only_cell(tmp_path)
    assert_put_together(cell, calm)
    assert not (cell.path / "quarantine").exists()
    assert not (tmp_path / "shards").exists()


def test_one_process_takes_in_what_shards_left(tmp_path, calm, edits):
    compute.run(shards_of(tmp_path, 3)[0])
    edits.clear()
    compute.run(config_for(tmp_path, "data.count=4"))
    assert_put_together(only_cell(tmp_path), calm)
    assert len(edits) == 4


def test_who_comes_second_says_so(tmp_path, calm, caplog):
    """A shard that is computed, and a cell whose shards or whose whole are."""
    caplog.set_level("INFO")
    go_on = tmp_path / "go on"
    first, second = shards_of(tmp_path / "s", 2)
    whole = config_for(tmp_path / "s", "data.count=4")
    pid = fork(lambda: pausing_after(1, lambda: compute.run(first), go_on))
    wait_for_rows(tmp_path / "s", 1, "0of2")
    assert only_cell(tmp_path / "s").state == "running 1/4"
    compute.run(first)
    assert "another process is computing 0of2" in caplog.text
    compute.run(whole)
    assert "others compute shards of" in caplog.text
    go_on.touch()
    assert wait(pid) == 0
    compute.run(second)
    assert_put_together(only_cell(tmp_path / "s"), calm)


def test_shards_of_two_versions_of_the_code_are_not_put_together(tmp_path, calm, monkeypatch):
    first, second = shards_of(tmp_path, 2)
    compute.run(first)
    monkeypatch.setattr(provenance, "code_digest", lambda: "f" * 16)
    with pytest.raises(ToPiError, match=r"1of2.*is now ffffffff.*resume=any"):
        compute.run(second)
    assert "is now ffffffff" in only_cell(tmp_path).state
    second.resume = "any"
    compute.run(second)
    assert_put_together(only_cell(tmp_path), calm)
    changed = [attempt["changed"] for attempt in only_cell(tmp_path).manifest["resumed"]]
    assert changed[0] == []
    assert "is now ffffffff" in changed[1][0]


def test_a_shard_that_fails_is_told(tmp_path, calm, monkeypatch):
    first, second = shards_of(tmp_path, 2)
    real = TinyEditor.edit

    def edit(self, sample, seed):
        if sample.id.endswith("3"):
            raise ZeroDivisionError
        return real(self, sample, seed)

    with monkeypatch.context() as patch:
        patch.setattr(TinyEditor, "edit", edit)
        compute.run(first)
        with pytest.raises(ZeroDivisionError):
            compute.run(second)
    assert only_cell(tmp_path).state == "failed: ZeroDivisionError()"
    compute.run(second)
    assert_put_together(only_cell(tmp_path), calm)


def test_a_plan_divides_each_cell(tmp_path, calm):
    overrides = ("experiment=smoke", f"store={tmp_path}", "data.count=4", "latency.samples=0")
    small = ("model.steps=3", "method.first_anchor=1", "model.height=64", "model.width=64")
    tasks = plan((*overrides, *small, "tau=0.85,0.9"), group=2, shards=3)
    assert [task.task for task in tasks] == [0, 1, 2]
    assert [[cell.overrides[-1] for cell in task.cells] for task in tasks] == [
        [f"shard={i}/3"] * 2 for i in range(3)
    ]
    few = [cell for task in tasks for cell in task.cells if cell.label.endswith("tau=0.85")]
    assert run_tasks([type(tasks[0])(0, "none", "tiny_flux", None, few)]) == 0
    assert_put_together(only_cell(tmp_path), calm)
    with pytest.raises(ToPiError, match="--shards 0"):
        plan(overrides, shards=0)


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "-1/2", "1/0", "0/4/2"])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(ConfigError, match="shard="):
        read_config(composed(["experiment=smoke", f"shard='{shard}'"]))


def test_there_is_no_fewer_than_one_device():
    with pytest.raises(ConfigError, match="devices=0"):
        read_config(composed(["experiment=smoke", "devices=0"]))


KILLS = 25  # at most


def test_shards_killed_at_random_moments_lose_nothing(tmp_path, calm):
    dice, kills = random.Random(1), 0
    started = time.monotonic()
    assert wait(fork(lambda: compute.run(shards_of(tmp_path / "0", 2)[0]))) == 0
    took = time.monotonic() - started
    for store in range(1, 3):
        waiting = shards_of(tmp_path / str(store), 2)
        while waiting:
            pids = [fork(lambda c=config: compute.run(c)) for config in waiting]
            if kills < KILLS:  # on a machine that got slower none may come to an end between two
                time.sleep(dice.uniform(0, took))
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            codes = [wait(pid) for pid in pids]
            kills += codes.count(-9)
            waiting = [c for c, code in zip(waiting, codes, strict=True) if code == -9]
        cell = only_cell(tmp_path / str(store))
        if not cell.complete:  # the last was killed when all was there but the end
            compute.run(shards_of(tmp_path / str(store), 2)[0])
        assert_put_together(cell, calm)
    assert kills >= 2
