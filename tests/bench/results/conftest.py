"""Processes that die at a line of this package's code, and stores with many drawn cells."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest
from cell_records import settle

from topi.bench.results import Store

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = 8


def die_after(lines, action):
    """Run, and die at the given line; returns how many were executed."""
    left = lines

    def trace(frame, event, argument):
        nonlocal left
        if "topi" not in frame.f_code.co_filename:
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return lines - left


class Kill:
    """`kill(n, action)`: was a forked process that runs the action killed at its nth line?"""

    def __call__(self, line, action):
        pid = os.fork()
        if pid == 0:
            try:
                die_after(line, action)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    @staticmethod
    def lines(action):
        """How many lines the action has."""
        return die_after(10**9, action)


@pytest.fixture
def kill():
    return Kill()


@pytest.fixture(scope="session")
def synthesise():
    path = ROOT / "experiments" / "scale" / "synthesise.py"
    spec = importlib.util.spec_from_file_location("synthesise", path)
    synthesise = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthesise)
    synthesise.DRAWN = 50
    return synthesise.synthesise


@pytest.fixture(scope="session")
def drawn(synthesise, tmp_path_factory):
    """30 cells, one of them half finished."""
    store = Store(tmp_path_factory.mktemp("drawn") / "store")
    synthesise(store.root, 30, SAMPLES)
    settle(store)
    return store
