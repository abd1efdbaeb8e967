"""`topi run` and `run.py`: Hydra's command line, with one sentence for an error."""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from topi.bench.config.compose import explain
from topi.bench.config.schema import ConfigError, check_axes, conf_folder, read_config
from topi.bench.io.escape import say
from topi.bench.io.signals import stoppable
from topi.bench.io.streams import plain_streams
from topi.bench.results.links import check_writable, guard
from topi.errors import ToPiError

log = logging.getLogger(__name__)

FAILED, REFUSED = 1, 2
"""Exit codes: something went wrong on the way; the configuration is impossible."""


def launch(arguments: Sequence[str] | None = None) -> int:
    """Compute one cell, or with -m a sweep; returns the exit code.

    Args:
        arguments: of `topi run`: Hydra overrides and Hydra's own options. By default those of
            `run.py`.
    """

    def main() -> None:
        for word in sys.argv[1:]:  # before Hydra makes its folder of logs there
            if word.startswith("store="):
                check_writable(guard(word.removeprefix("store=")))
        folder = str(conf_folder())
        hydra.main(version_base="1.3", config_path=folder, config_name="config")(run_point)()

    if arguments is None:
        return exit_code(main)
    with _argv("topi run", *arguments):
        return exit_code(main, f"topi run {shlex.join(arguments)}")


@contextmanager
def _argv(*words: str) -> Iterator[None]:
    """Replace the command line, which Hydra reads."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before


def run_point(composed: DictConfig) -> None:
    """Run one cell, from a single run or as one point of a sweep.

    Raises:
        ToPiError: in a sweep. It is logged as well: Hydra shows only the first error, after the
            last point.
        SystemExit: in a single run, once the error is printed.
    """
    settings = HydraConfig.get()
    single = settings.mode == RunMode.RUN
    try:
        if single:
            check_axes(composed, settings.overrides.task)
        config = read_config(composed)

        from topi.bench.runs.compute import run  # loads torch, which a refusal need not wait for

        run(config, settings.runtime.choices.get("experiment"))
    except ToPiError as error:
        if single:
            raise SystemExit(print_error(error)) from error
        log.error("%s: %s", " ".join(settings.overrides.task), error)
        raise


def exit_code(main: Callable[[], None], command: str | None = None) -> int:
    """Run a Hydra main function; print an error that the user can mend as one sentence.

    Other errors keep their stack trace. A signal ends the run, see `stoppable`.

    Args:
        command: what the user typed. By default `python` and the command line.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors on, unprinted
    command = command or f"python {shlex.join(sys.argv)}"
    try:
        with stoppable(command), plain_streams():
            main()
    except (ToPiError, HydraException, OmegaConfBaseException) as error:
        return print_error(error)
    return 0


def print_error(error: Exception) -> int:
    """Print an error as one sentence on stderr; returns the exit code that goes with it."""
    say(f"topi: {explain(error)}", sys.stderr)
    refused = isinstance(error, ConfigError) or not isinstance(error, ToPiError)
    return REFUSED if refused else FAILED
