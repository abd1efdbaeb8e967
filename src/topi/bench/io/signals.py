"""Ctrl-C, TERM and HUP end a command with one line and the exit code 128 + signal."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from topi.bench.io.escape import one_line

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal that ends this process; `signum` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def stoppable(command: str) -> Iterator[None]:
    """On the first signal print one line, clean up and exit; on a second one exit at once.

    Signals that are ignored, as HUP under `nohup`, stay ignored. Forks clean up and print nothing.

    Args:
        command: what the user typed; the line says to type it again.

    The process ends inside this context if a signal comes, with 128 + the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, stopping = os.getpid(), False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + signum)
        stopping = True
        if os.getpid() == process:
            name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
            line = f"topi: stopped by {name}; what is finished is kept. To go on, type: {command}"
            start = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""  # after "^C"
            os.write(2, f"{start}{one_line(line)}\n".encode(errors="replace"))
        raise Stopped(signum)

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    except Stopped as stopped:
        atexit._run_exitfuncs()
        os._exit(128 + stopped.signum)  # on its way out Python would die of a second signal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
