"""The `topi` command: one application, its errors as one sentence, its exit codes."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer
from typer.main import get_command

from topi.bench.cli import artefact_commands, model_commands, store_commands, sweep_commands
from topi.bench.cli.options import SETTINGS, Commands
from topi.bench.io.escape import say
from topi.bench.io.signals import stoppable
from topi.bench.io.streams import plain_streams
from topi.errors import ToPiError

app = typer.Typer(
    name="topi",
    cls=Commands,
    help="Run and report experiments on token pruning for in-context image editing.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings=SETTINGS,
    epilog="Example: topi run -m method=topi,toma tau=0.8,0.85,0.9",
)
for group in (sweep_commands, store_commands, artefact_commands, model_commands):
    group.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit code. A signal ends it, see `stoppable`.

    Raises:
        SystemExit: with 2, for an error in the arguments.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = get_command(app)
    try:
        # Not `app()`: it would turn the exceptions of signals into exit codes of its own.
        with (
            stoppable(f"topi {shlex.join(arguments)}"),
            plain_streams(),
            command.make_context("topi", list(arguments)) as context,
        ):
            return command.invoke(context) or 0
    except typer.Exit as ended:
        return ended.exit_code
    except ToPiError as error:
        say(f"topi: {error}", sys.stderr)
        return 1
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f"\n`{context.command_path} --help` shows an example." if context else ""
        say(f"topi: {error.format_message()}{hint}", sys.stderr)
        raise SystemExit(2) from error


def script(file: str) -> NoReturn:
    """Run `topi figure NAME` for the script NAME.py, with the options of the script.

    Raises:
        SystemExit: always, with the exit code.
    """
    raise SystemExit(main(["figure", Path(file).stem, *sys.argv[1:]]))
