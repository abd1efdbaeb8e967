"""Runs `topi` for the jobs of the test cluster as forks of a process that has it loaded.

A job starts this file in place of `topi`. It hands its command line, environment and output to the
server, passes signals on, and ends as the fork ends; if it is killed, so is the fork. A fresh
interpreter for each job would spend most of the test importing torch.
"""

import json
import os
import select
import signal
import socket
import sys

PASSED_ON = (signal.SIGUSR2, signal.SIGTERM)


def ask(path: str) -> int:
    """Have the server at this socket run our command line; returns its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    asked = {"argv": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    content = json.dumps(asked).encode()
    socket.send_fds(connection, [len(content).to_bytes(8, "big")], [1, 2])
    connection.sendall(content)
    worker = int.from_bytes(connection.recv(8), "big")
    for each in PASSED_ON:
        signal.signal(each, lambda signum, frame: os.kill(worker, signum))
    return int.from_bytes(connection.recv(8), "big")


def serve(path: str) -> None:
    """Answer until killed. To be called in a fork of a process that has loaded everything."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for guards
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            try:
                guard(connection)
            finally:
                os._exit(1)
        connection.close()


def guard(connection: socket.socket) -> None:
    """Run one command line in a fork; end it if whoever asked is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, files, _, _ = socket.recv_fds(connection, 8, 2)
    content = b""
    while len(content) < int.from_bytes(header, "big"):
        content += connection.recv(65536)
    asked = json.loads(content)
    if (worker := os.fork()) == 0:
        code = 98
        try:
            code = work(asked, files)
        finally:
            os._exit(code)
    if asked["argv"][0] == "work":
        _, plan, task = asked["argv"]
        with open(f"{plan}.{task}.pid", "w") as file:
            file.write(str(worker))
    connection.sendall(worker.to_bytes(8, "big"))
    while (ended := os.waitpid(worker, os.WNOHANG))[0] == 0:
        if select.select([connection], [], [], 0.02)[0] and not connection.recv(1):
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            return
    connection.sendall((os.waitstatus_to_exitcode(ended[1]) % 256).to_bytes(8, "big"))


def work(asked: dict, files: list[int]) -> int:
    """What `topi` would do."""
    import logging

    from topi.bench.cli.main import main

    for target, source in zip((1, 2), files, strict=True):
        os.dup2(source, target)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    logging.root.handlers.clear()
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    try:
        return main(asked["argv"])
    except SystemExit as stopped:
        return stopped.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(ask(os.environ["TOPI_SERVER"]))
