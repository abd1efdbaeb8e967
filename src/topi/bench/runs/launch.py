"""What `run.py` runs, and how its errors reach the user: one sentence and an exit code."""

import logging
import os
import shlex
import sys
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from topi.bench.config.compose import explain
from topi.bench.config.schema import ConfigError, check_axes, read_config
from topi.bench.io.escape import say
from topi.bench.io.signals import stoppable
from topi.bench.io.streams import plain_streams
from topi.errors import ToPiError

log = logging.getLogger(__name__)

FAILED, REFUSED = 1, 2
"""Exit codes: something went wrong on the way; the configuration is impossible."""


def run_point(composed: DictConfig) -> None:
    """Run one cell, from a single run or as one point of a sweep.

    Raises:
        ToPiError: in a sweep; it is logged too, as Hydra shows only the first error, after the last
            point.
        SystemExit: in a single run, once the error is told.
    """
    hydra = HydraConfig.get()
    single = hydra.mode == RunMode.RUN
    try:
        if single:
            check_axes(composed, hydra.overrides.task)
        config = read_config(composed)

        from topi.bench.runs.experiment import run  # loads torch, which a refusal need not wait for

        run(config, hydra.runtime.choices.get("experiment"))
    except ToPiError as error:
        if single:
            raise SystemExit(tell(error)) from error
        log.error("%s: %s", " ".join(hydra.overrides.task), error)
        raise


def exit_code(main: Callable[[], None]) -> int:
    """Run a Hydra main function; what the user can mend is told in one sentence.

    Errors that the user cannot mend keep their stack trace. A signal ends it, see `stoppable`.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors on, unprinted
    try:
        with stoppable(f"python {shlex.join(sys.argv)}"), plain_streams():
            main()
    except (ToPiError, HydraException, OmegaConfBaseException) as error:
        return tell(error)
    return 0


def tell(error: Exception) -> int:
    """Print an error as one sentence on stderr; returns the exit code that goes with it."""
    say(f"topi: {explain(error)}", sys.stderr)
    refused = isinstance(error, ConfigError) or not isinstance(error, ToPiError)
    return REFUSED if refused else FAILED
