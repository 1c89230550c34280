"""A worker that is forked before the room's configuration has come, so that both come up at the same time."""

from __future__ import annotations

import socket

from roost.guest.config import parse_start
from roost.guest.control import MAX_MESSAGE, LineReader, parse_message
from roost.guest.custom import exec_server
from roost.guest.invocation import Output
from roost.guest.worker import run_worker


def wait_and_run(app: socket.socket, status: socket.socket) -> None:
    """The body of such a worker: its first line from the supervisor is the `start` message, found good already."""
    output = Output()
    reader = LineReader(MAX_MESSAGE)
    lines: list[bytes] = []
    while not lines:
        data = status.recv(64 << 10)
        if not data:  # the supervisor is gone
            return
        lines = reader.feed(data)
    config = parse_start(parse_message(lines[0]))
    if config.runtime == "custom":
        app.close()
        exec_server(config, status)
    else:
        run_worker(config, app, status, output)
