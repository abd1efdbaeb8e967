"""What `run.py` runs, and how its errors reach the user: one sentence and an exit code."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from topi.config import ConfigError, check_axes, read_config, sentence
from topi.errors import ToPiError
from topi.escape import say
from topi.signals import stoppable
from topi.streams import plain_streams

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

        from topi.experiment import run  # loads torch, which a refusal need not wait for

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


def explain(error: Exception) -> str:
    """An error in one sentence, with the valid choices if one is unknown."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name} is unknown; choose one of: {', '.join(sorted(error.options))}."
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if several := re.match("Ambiguous value for argument '(.*)'", str(error)):
        return f"{several.group(1)} names several values; add -m to sweep over them."
    for known in (error, error.__cause__):
        if isinstance(known, OmegaConfBaseException):
            return sentence(known)
    return " ".join(str(error).split())


def _unreadable(override: str) -> str:
    """What is wrong with an override that Hydra cannot parse, and how to write it."""
    key, mark, value = override.partition("=")
    told = f"{override!r} cannot be read"
    if not mark:
        return f"{told}: write it as KEY=VALUE."
    value = os.path.expanduser(value)
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", value))
    quoted = f'{key}="{escaped}"'
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return f"{told}: names of settings have ASCII letters, digits, dots and underscores only."
    quoted = shlex.quote(quoted)
    return f"{told}: text with letters beyond ASCII or signs such as =(){{}}#! is quoted: {quoted}."
