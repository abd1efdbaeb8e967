"""Commands that make tables, figures and pages from a store."""

from pathlib import Path
from typing import Annotated

import typer

from topi.bench.cli.artefact_table import ARTEFACTS, draw
from topi.bench.cli.options import REPORT, RESULTS, OutOption, StoreOption, adder
from topi.bench.io.escape import say

DEFAULT_AGAINST = ["topi ratio=0.5"]


def report(
    store: StoreOption = RESULTS,
    out: OutOption = REPORT,
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="ENTITY/PROJECT",
            help="Also save it as a W&B report; needs a login and topi[wandb-report].",
        ),
    ] = None,
) -> None:
    """Print the tables of a store. Also writes them, all figures and one HTML page."""
    from topi.bench import report as reports
    from topi.bench.report.checked import checked_store

    checked_store(store, tidy=True)
    reports.build(store, out)
    if wandb:
        from topi.bench.report.wandb_report import publish

        say(publish(store, out, wandb))


def artefact_name(name: str) -> str:
    """A name that `topi figure` knows; a usage error otherwise."""
    if name not in ARTEFACTS:
        raise typer.BadParameter(f"{name!r} is unknown; choose one of: {', '.join(ARTEFACTS)}.")
    return name


def figure(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help=", ".join(ARTEFACTS) + ".", callback=artefact_name),
    ],
    store: StoreOption = RESULTS,
    out: OutOption = REPORT,
) -> int:
    """Draw the figures and tables of one artefact. The exit code is 1 if cells are missing."""
    return draw(name, store, out)


def leaderboard(store: StoreOption = RESULTS) -> None:
    """Rank all methods of a store at equal speed. Prints Markdown."""
    from topi.bench.report.checked import checked_store
    from topi.bench.report.leaderboard import block

    say(block(checked_store(store)))


def compare(
    store: StoreOption = RESULTS,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help=f"Label that the others are compared with; may be repeated. "
            f"[default: {DEFAULT_AGAINST[0]}]",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Instead of --against: a CSV of section, question, one, other and decided.",
        ),
    ] = None,
) -> None:
    """Compare methods pair by pair, or answer a list of questions. Prints Markdown."""
    from topi.bench.report.checked import checked_store
    from topi.bench.report.selection import answers, comparison

    checked = checked_store(store)
    if questions is not None:
        say(answers(checked, questions).rstrip())
    else:
        say(comparison(checked, against or DEFAULT_AGAINST))


def pages(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="PAGE", help="Files with marks like <!-- begin leaderboard -->."),
    ],
    store: StoreOption = RESULTS,
) -> None:
    """Renew the generated blocks of pages. These are Markdown files such as README.md."""
    from topi.bench.report.checked import checked_store
    from topi.bench.report.pages import write_blocks

    for page in write_blocks(files, checked_store(store)):
        say(f"wrote {page}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command = adder(app)
    command("topi report --store results --out report")(report)
    command("topi figure fig7 --store experiments/results")(figure)
    command("topi leaderboard --store experiments/results")(leaderboard)
    command('topi compare --against "topi ratio=0.5" --against random')(compare)
    command("topi pages --store experiments/results README.md docs/paper.md")(pages)
