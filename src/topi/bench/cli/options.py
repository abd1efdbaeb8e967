"""Options and arguments that several commands share."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the store.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for what is written.")]
RESULTS = Path("results")
REPORT = Path("report")


class Commands(TyperGroup):
    """A group that names its commands where one is missing or unknown."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """The arguments that are left; a usage error if there are none at all."""
        if not args:
            ctx.fail(f"A command is missing; choose one of: {self._choices(ctx)}.")
        return super().parse_args(ctx, args)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:
        """The command of a name; a usage error if there is none."""
        command = super().get_command(ctx, cmd_name)
        if command is None and not cmd_name.startswith("-"):
            ctx.fail(f"There is no command {cmd_name!r}; choose one of: {self._choices(ctx)}.")
        return command

    def _choices(self, ctx: typer.Context) -> str:
        return ", ".join(self.list_commands(ctx))


def overrides_of(examples: str) -> Any:
    """The type of an argument that takes Hydra overrides; the help shows the examples."""
    return Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help=f"Hydra overrides: {examples}."),
    ]


def adder(app: typer.Typer) -> Callable[..., Callable[[Callable], Callable]]:
    """`app.command`, with an example that ends the help of each command."""

    def command(example: str, name: str | None = None, **options: Any) -> Callable:
        return app.command(name, epilog=f"\b\nExample: {example}", **options)

    return command


def log_to_stderr() -> None:
    """Show the log of long commands."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    quiet_fonts()


def quiet_fonts() -> None:
    """Leave out what fontTools logs of every PDF figure."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)
