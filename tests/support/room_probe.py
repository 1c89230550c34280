"""The first process of a test's room: it runs the Python source that the test sends on app.sock, a fork each time."""

from __future__ import annotations

import json
import os
import signal
import socket
import traceback


def run(guest_fd: int, app_fd: int) -> None:
    serve(socket.socket(fileno=guest_fd), socket.socket(fileno=app_fd))


def serve(guest: socket.socket, listener: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
                os._exit(0)


def _answer(connection: socket.socket) -> None:
    with connection.makefile("rwb") as stream:
        names: dict[str, object] = {}
        try:
            exec(json.loads(stream.readline()), names)
            answer = {"result": names.get("result")}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        stream.write(json.dumps(answer).encode() + b"\n")
