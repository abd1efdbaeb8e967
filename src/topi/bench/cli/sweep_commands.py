"""Commands that run sweeps: run, plan, arrays, work, retry."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from topi.bench.cli.options import RESULTS, StoreOption, adder, log_to_stderr, overrides_of
from topi.bench.io.escape import say
from topi.errors import ToPiError

Overrides = overrides_of("experiment=table1 tau=0.8,0.9, as for `topi run -m`")
PlanArgument = Annotated[Path, typer.Argument(help="A file that `topi plan` printed.")]


def run(context: typer.Context) -> int:
    """Compute one cell, or with -m a sweep. Takes Hydra overrides and Hydra's own options.

    Several values of an override are a sweep, with -m. --cfg job prints the configuration, and
    --hydra-help lists Hydra's options.
    """
    from topi.bench.runs.launch import launch

    return launch(context.args)


def plan(
    overrides: Overrides = None,
    group: Annotated[
        int, typer.Option(help="Cells of one model per task, at most: the model is loaded once.")
    ] = 1,
    shards: Annotated[
        int, typer.Option(help="Tasks that divide the samples of each cell among them.")
    ] = 1,
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU type of all tasks, or none. [default: a100 for FLUX, h20 for Qwen]"),
    ] = None,
) -> None:
    """Print a sweep as a plan: one line of JSON per cluster task."""
    from topi.bench.runs.plan import dump
    from topi.bench.runs.plan import plan as make

    tasks = make(overrides or [], group, gpu, shards)
    sys.stdout.write(dump(tasks))
    cells = sum(len(task.cells) for task in tasks) // shards
    say(f"{cells} cells in {len(tasks)} tasks", sys.stderr)


def arrays(plan: PlanArgument) -> None:
    """Print the job arrays of a plan. Each line has a GPU type and its tasks, for array.sbatch."""
    from topi.bench.runs.plan import arrays as arrays_of
    from topi.bench.runs.plan import load

    for gpu, tasks in arrays_of(load(plan)):
        print(gpu, tasks)


def work(
    plan: PlanArgument,
    task: Annotated[
        int | None,
        typer.Argument(help="Index of the task. [default: $SLURM_ARRAY_TASK_ID, else all tasks]"),
    ] = None,
) -> int:
    """Run one task of a plan, or all in turn. The exit code is 1 if a cell failed."""
    from topi.bench.runs.plan import load
    from topi.bench.runs.work import run_tasks

    tasks = load(plan)
    if task is None and "SLURM_ARRAY_TASK_ID" in os.environ:
        task = int(os.environ["SLURM_ARRAY_TASK_ID"])
    if task is not None:
        tasks = [planned for planned in tasks if planned.task == task]
        if not tasks:
            raise ToPiError(f"{plan} has no task {task}.")
    log_to_stderr()
    return int(bool(run_tasks(tasks)))


def retry(
    cells: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CELL",
            help="Keys as in `topi status`, or their beginnings. [default: all that failed]",
        ),
    ] = None,
    store: StoreOption = RESULTS,
) -> int:
    """Run failed and damaged cells, or the named ones, again. The exit code is 1 if one fails."""
    from topi.bench.runs.work import retry as run_again

    log_to_stderr()
    return int(bool(run_again(store, cells or [])))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command = adder(app)
    command(
        "topi run -m method=topi,toma tau=0.8,0.85,0.9",
        options_metavar="[HYDRA OPTIONS] [KEY=VALUE]...",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(run)
    command("topi plan experiment=table1 --group 4 > plan.jsonl")(plan)
    command("topi arrays plan.jsonl")(arrays)
    command("topi work plan.jsonl 3")(work)
    command("topi retry --store results")(retry)
