"""Commands that read and look after a store: status, verify, compact, export, sync."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from topi.bench.cli.options import RESULTS, StoreOption, adder, log_to_stderr
from topi.bench.io.escape import console, one_line, say
from topi.errors import ToPiError

if TYPE_CHECKING:
    from rich.table import Table

    from topi.bench.results import Cell

LISTED = 200
"""Number of cells up to which `topi status` lists all."""


def status(
    store: StoreOption = RESULTS,
    every: Annotated[
        bool, typer.Option("--all", help=f"List every cell, also if there are more than {LISTED}.")
    ] = False,
) -> None:
    """List the cells of a store. Of many cells only those that are not complete are listed."""
    from collections import Counter

    from topi.bench.results import Store

    screen = console()
    results = Store(store)
    compacted, cells = results.tally()
    if not compacted and not cells:
        screen.print(f"No cells in {store} yet: compute some with `topi run`.")
        return
    many = compacted.total() + len(cells) > LISTED and not every
    lines = sorted(map(_status, cells if many or not compacted else results.find_cells()))
    if many:
        counts = Counter({(model, "complete"): number for model, number in compacted.items()})
        counts.update((model, state.split()[0].rstrip(":")) for _, model, *_, state, _ in lines)
        overview = _table("model", "state", "cells")
        for (model, state), number in sorted(counts.items()):
            overview.add_row(model, state, str(number))
        screen.print(overview)
        lines = [line for line in lines if line[-2] != "complete"]
        if len(lines) > LISTED:
            screen.print(f"The first {LISTED} that are not complete; --all lists every cell:")
        lines = lines[:LISTED]
    table = _table("model", "cell", "samples", "state", "key")
    for _, *line in lines:
        table.add_row(*map(one_line, line))
    if lines:
        screen.print(table)


def _table(*headings: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _status(cell: "Cell") -> tuple[str, str, str, str, str, str]:
    """When a cell was begun, and its line: model, label, samples, state, key."""
    done, state = cell.progress
    try:
        samples = "?" if done is None else f"{done}/{cell.count}"
        return cell.created, cell.model, cell.labels[0], samples, state, cell.key
    except ToPiError:  # nothing can be read: last
        return "~", "?", "?", "?", state, cell.key


def verify(
    cell: Annotated[str, typer.Argument(help="Key as in `topi status`, or its beginning.")],
    store: StoreOption = RESULTS,
    samples: Annotated[int, typer.Option(help="Number of samples to run again.")] = 3,
    tolerance: Annotated[
        int,
        typer.Option(help="Allowed difference of a pixel in levels of 255, as between two GPUs."),
    ] = 0,
) -> int:
    """Run samples of a cell again and compare. The exit code is 1 if they differ."""
    from topi.bench.runs.verify import verification_table
    from topi.bench.runs.verify import verify as run_again

    verification = run_again(store, cell, samples)
    screen = console()
    screen.print(verification_table(verification, tolerance))
    for condition in verification.conditions:
        screen.print(f"Other conditions here: {condition}")
    return int(not all(check.same(tolerance) for check in verification.checks))


def compact(store: StoreOption = RESULTS) -> None:
    """Copy finished cells into Parquet files. Large stores are read from these; logs stay."""
    from topi.bench.results import Store

    say(f"{Store(store).compact()} cells compacted")


def export(
    store: StoreOption = RESULTS,
    out: Annotated[
        Path, typer.Option(help="Folder of the small store; an earlier export is replaced.")
    ] = Path("experiments/results"),
) -> None:
    """Copy what the paper's artefacts need into a small store. That one can be committed."""
    from topi.bench.report.checked import checked_store
    from topi.bench.report.export import export as write_export

    checked_store(store)
    say(write_export(store, out))


def sync(
    store: StoreOption = RESULTS,
    dry_run: Annotated[bool, typer.Option(help="Only list the runs.")] = False,
) -> int:
    """Upload the offline W&B runs of a store. Needs internet and a login."""
    from topi.bench.results import Store
    from topi.bench.tracking.sync import sync as upload
    from topi.bench.tracking.sync import unsynced

    results = Store(store)
    if dry_run:
        for folder in unsynced(results):
            say(folder.name)
        return 0
    log_to_stderr()
    return int(bool(upload(results)))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command = adder(app)
    command("topi status --store results")(status)
    command("topi verify kontext_standin-topi --samples 5")(verify)
    command("topi compact --store results")(compact)
    command("topi export --store results --out experiments/results")(export)
    command("topi sync --dry-run")(sync)
