"""The part of the `topi` command that plans, runs and looks after sweeps."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from topi.bench.io.escape import console, one_line, say
from topi.errors import ToPiError


def plan(parsed: argparse.Namespace) -> None:
    """Print a sweep as a plan: one line of JSON per cluster task."""
    from topi.bench.runs.plan import dump, plan

    tasks = plan(parsed.overrides, parsed.group, parsed.gpu, parsed.shards)
    sys.stdout.write(dump(tasks))
    cells = sum(len(task.cells) for task in tasks) // parsed.shards
    say(f"{cells} cells in {len(tasks)} tasks", sys.stderr)


def arrays(parsed: argparse.Namespace) -> None:
    """Print the job arrays of a plan for slurm/array.sbatch: GPU type and tasks, a line each."""
    from topi.bench.runs.plan import arrays, load

    for gpu, tasks in arrays(load(parsed.plan)):
        print(gpu, tasks)


def work(parsed: argparse.Namespace) -> int:
    """Run one task of a plan, or all in turn. The exit code is 1 if a cell failed."""
    from topi.bench.runs.plan import load
    from topi.bench.runs.work import run_tasks

    tasks = load(parsed.plan)
    index = parsed.task
    if index is None and "SLURM_ARRAY_TASK_ID" in os.environ:
        index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    if index is not None:
        tasks = [task for task in tasks if task.task == index]
        if not tasks:
            raise ToPiError(f"{parsed.plan} has no task {index}.")
    _log_to_stderr()
    return int(bool(run_tasks(tasks)))


def retry(parsed: argparse.Namespace) -> int:
    """Run the failed and damaged cells again, or the named ones; nothing else."""
    from topi.bench.runs.work import retry

    _log_to_stderr()
    return int(bool(retry(parsed.store, parsed.cells)))


def verify(parsed: argparse.Namespace) -> int:
    """Run three samples of a cell again and compare; the exit code is 1 if they differ."""
    from topi.bench.runs.verify import verification_table, verify

    found = verify(parsed.store, parsed.cell, parsed.samples)
    screen = console()
    screen.print(verification_table(found, parsed.tolerance))
    for condition in found.conditions:
        screen.print(f"Other conditions here: {condition}")
    return int(not all(check.same(parsed.tolerance) for check in found.checks))


def tune(parsed: argparse.Namespace) -> None:
    """Try methods on a few samples and propose one with its setting, by quality or by speed."""
    from rich.table import Table

    from topi.bench.studies.tune import tune

    _log_to_stderr()
    only = [name for name in parsed.only.split(",") if name]
    found = tune(parsed.overrides, parsed.min_psnr, parsed.speed, only, parsed.samples)
    table = Table("", "setting", "PSNR", "[95 %]", "FLOP-ideal", "measured", box=None)
    for _, line in found.curve.iterrows():
        mark = "→" if line["label"] == found.label else "*" if line["front"] else ""
        interval = f"{line['psnr_low']:.2f}, {line['psnr_high']:.2f}"
        speeds = (line[name] for name in ("flop_speedup", "speedup"))
        speeds = ("–" if speed != speed else f"{speed:.2f}×" for speed in speeds)  # not timed
        table.add_row(mark, one_line(line["label"]), f"{line['psnr']:.2f}", interval, *speeds)
    screen = console()
    screen.print(table)
    screen.print("*: no other setting is better in both")
    for file in found.files:
        screen.print(f"wrote {file}")
    command = " ".join([f"proposed: {found.label}; add", *found.overrides])
    screen.print(command, soft_wrap=True)


def sync(parsed: argparse.Namespace) -> int:
    """Upload the offline W&B runs of a store, from a machine with internet and a login."""
    from topi.bench.results import Store
    from topi.bench.tracking.sync import sync, unsynced

    store = Store(parsed.store)
    if parsed.dry_run:
        for folder in unsynced(store):
            say(folder.name)
        return 0
    _log_to_stderr()
    return int(bool(sync(store)))


def add_commands(commands: Any) -> None:
    """Add them to the sub-parsers of `topi`."""
    own = (plan, arrays, work, retry, verify, sync, tune)
    for command in own:
        sub = commands.add_parser(
            command.__name__, help=command.__doc__, description=command.__doc__
        )
        sub.set_defaults(command=command)
        if command is plan:
            text = "as for run.py -m: experiment=table1 tau=0.8,0.9 ..."
            sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
            text = "cells of one model per task, at most (default: 1): the model is loaded once"
            sub.add_argument("--group", type=int, default=1, metavar="N", help=text)
            text = "tasks that divide the samples of each cell among them (default: 1)"
            sub.add_argument("--shards", type=int, default=1, metavar="N", help=text)
            text = "GPU type of all tasks, or none (default: a100 for FLUX, h20 for Qwen)"
            sub.add_argument("--gpu", help=text)
        if command in (arrays, work):
            sub.add_argument("plan", type=Path, help="a file that `topi plan` printed")
        if command is work:
            text = "its index (default: $SLURM_ARRAY_TASK_ID, else all tasks)"
            sub.add_argument("task", type=int, nargs="?", help=text)
        if command is retry:
            text = "keys as in `topi status`, or their beginnings (default: all that failed)"
            sub.add_argument("cells", nargs="*", metavar="CELL", help=text)
        if command is verify:
            text = "its key as in `topi status`, or the beginning"
            sub.add_argument("cell", metavar="CELL", help=text)
            sub.add_argument("--samples", type=int, default=3, metavar="N", help="default: 3")
            text = (
                "levels of 255 by which pixels may differ, as between two kinds of GPU (default: 0)"
            )
            sub.add_argument("--tolerance", type=int, default=0, metavar="LEVELS", help=text)
        if command is tune:
            text = "as for run.py: model=... data=... store=..."
            sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
            limit = sub.add_mutually_exclusive_group(required=True)
            text = "the fastest setting whose mean PSNR to full context is at least this"
            limit.add_argument("--min-psnr", type=float, metavar="DB", help=text)
            text = "the best setting with at least this speed-up, measured if all was timed"
            limit.add_argument("--speed", type=float, metavar="X", help=text)
            text = "names of methods and caches to try, such as topi,taylorseer (default: all)"
            sub.add_argument("--only", default="", metavar="NAMES", help=text)
            sub.add_argument("--samples", type=int, default=8, metavar="N", help="default: 8")
        if command is sync:
            text = "only list what would go"
            sub.add_argument("--dry-run", action="store_true", help=text)
        if command in (retry, verify, sync):
            sub.add_argument("--store", type=Path, default=Path("results"), help="default: results")


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # of PDF figures
