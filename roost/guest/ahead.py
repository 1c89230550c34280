"""A worker that is forked before the room's configuration has come, so that both come up at the same time."""

from __future__ import annotations

import socket
from functools import partial

from roost.guest.config import parse_start
from roost.guest.control import MAX_MESSAGE, LineReader, parse_message
from roost.guest.custom import exec_server
from roost.guest.invocation import Output
from roost.guest.sandbox.daemon import run_sandbox
from roost.guest.sandbox.interpreter.server import Interpreter
from roost.guest.sandbox.interpreter.spare import make_spare
from roost.guest.worker import run_worker


def wait_and_run(app: socket.socket, status: socket.socket) -> None:
    """The body of such a worker: its first line from the supervisor is the `start` message, found good already."""
    output = Output()
    spare = make_spare()
    reader = LineReader(MAX_MESSAGE)
    lines: list[bytes] = []
    while not lines:
        data = status.recv(64 << 10)
        if not data:  # the supervisor is gone
            return  # and the spare hears of it
        lines = reader.feed(data)
    config = parse_start(parse_message(lines[0]))
    if spare is not None and not config.sandbox.interpreter:
        spare.close()
        spare = None
    if config.runtime == "custom":
        app.close()
        exec_server(config, status)
    elif config.runtime == "sandbox":
        run_sandbox(config, app, status, partial(Interpreter, spare=spare))
    else:
        run_worker(config, app, status, output)
