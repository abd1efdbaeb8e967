"""Ctrl-C, TERM and HUP leave one line and the exit code 128 + signal, and never a traceback."""

import atexit
import os
import signal
import sys
import time

import pytest
from small_cells import fork, wait, wait_until

from topi.bench.cli import main as cli
from topi.bench.io.signals import stoppable
from topi.bench.runs import work
from topi.bench.runs.launch import exit_code

LINE = "topi: stopped by {}; what is finished is kept. To go on, type: {}\n"


@pytest.fixture
def stopped(tmp_path):
    """Start an action in a fork, send it signals, and return its exit code and what it says."""

    def stop(action, *signals, ignored=()):
        def child():
            atexit._clear()  # those of pytest
            os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
                signal.signal(signum, signal.SIG_IGN if signum in ignored else default)
            action(lambda: (tmp_path / "ready").touch())

        pid = fork(child)
        for signum in signals:
            wait_until((tmp_path / "ready").exists, "it is ready")
            (tmp_path / "ready").unlink()
            os.kill(pid, signum)
        return wait(pid), (tmp_path / "said").read_text()

    return stop


def sleep(ready):
    """Be ready for a signal, and for a second one while cleaning up."""
    try:
        ready()
        time.sleep(60)
    finally:
        ready()
        time.sleep(0.2)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("signum", "name"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_a_signal_leaves_one_line(stopped, monkeypatch, signum, name, times):
    def run_py(ready):
        monkeypatch.setattr(sys, "argv", ["run.py", "-m", "tau=0.8,0.9", "store=a\nb"])
        exit_code(lambda: sleep(ready))

    code, said = stopped(run_py, *[signum] * times)
    assert code == 128 + signum
    assert said == LINE.format(name, "python run.py -m tau=0.8,0.9 'store=a b'")


def test_topi_says_which_command_goes_on(stopped, monkeypatch):
    def topi(ready):
        monkeypatch.setattr(work, "retry", lambda *arguments: sleep(ready))
        cli.main(["retry", "--store", "s", "k"])

    said = LINE.format("Ctrl-C", "topi retry --store s k")
    assert stopped(topi, signal.SIGINT) == (130, said)


def test_an_ignored_signal_stays_ignored(stopped):
    """As under `nohup`, or in the background of a script."""

    def action(ready):
        with stoppable("x"):
            ready()
            time.sleep(0.2)

    assert stopped(action, signal.SIGHUP, ignored=[signal.SIGHUP]) == (0, "")


def test_a_fork_says_nothing(stopped):
    def action(ready):
        with stoppable("x"):
            if child := os.fork():
                os._exit(wait(child))
            os.kill(os.getpid(), signal.SIGTERM)

    assert stopped(action) == (128 + signal.SIGTERM, "")


@pytest.fixture
def interruptible():
    """Ctrl-C is not ignored, as it is for a process in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_signals_are_as_before_afterwards():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stoppable("x"):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
