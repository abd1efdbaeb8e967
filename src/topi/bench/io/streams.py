"""Standard streams and logs of a command: any text is printable, a full disk is one message."""

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from topi.bench.io.escape import PlainRecord, say
from topi.errors import ToPiError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""Errors of a file system that a name of a file need not come with."""


@contextmanager
def plain_streams() -> Iterator[None]:
    """What an encoding lacks is printed as an escape; log messages are `PlainRecord`s.

    A log that cannot be written gives one line on stderr, and ends there.

    Raises:
        ToPiError: a file or standard output cannot be written.
        SystemExit: the reader of standard output has closed it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(PlainRecord)
    logging.Handler.handleError = _leave_out
    try:
        try:
            yield
        finally:
            _flush()
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise  # libraries raise OSErrors of their own
        where = "a file" if error.filename is None else error.filename
        raise ToPiError(
            f"Cannot read or write {where} ({error.strerror}): free some space or name another "
            "folder (store=PATH, --out PATH)."
        ) from error


def _leave_out(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Instead of a stack trace for every message."""
    handler.addFilter(lambda record: False)
    with suppress(OSError):
        say(f"topi: a log cannot be written ({sys.exc_info()[1]}); it ends here.", sys.stderr)


def _flush() -> None:
    """Flush standard output. What cannot be written is dropped, so that Python does not retry."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from error
        raise
