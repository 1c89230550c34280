"""How a function's worker stands still between two requests while its process is copied, and what the copy does first.

To Python it is a fork (see `sandbox.interpreter.python.branching`). The host's connections are at their end in the
copy, and it serves another listening socket, which PID 1 of its room hands over with the configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from roost.guest import renewal
from roost.guest.at_fork import at_fork
from roost.guest.config import StartConfig, parse_start
from roost.guest.control import MAX_MESSAGE
from roost.guest.descriptors import remember, renew
from roost.guest.environment import worker_environment
from roost.guest.fork import after_fork_in_child, wait_for_input

STATUS = 3  # where a worker that can be copied has its status socket
BORN = b"B"  # before the line of JSON that tells a copy what it is; every other byte is for who was copied
_HELD = {"event": "held"}
_PAUSE_S = 0.005
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.recv.restype = ctypes.c_ssize_t


class Report(Protocol):
    """What is needed of `worker.Reporter`."""

    pause: Callable[[], None]
    resume: Callable[[], None]

    def send(self, message: Mapping[str, Any]) -> None: ...
    def renew(self) -> None: ...


class Still:
    """`ask` and `call_off` from any thread; `stand` in the main one, when `fd` can be read. `on_copy` is called in a
    copy when it has its descriptors."""

    def __init__(self, app: socket.socket, report: Report, *, on_copy: Callable[[], None]) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.wanted = False
        self._app = app
        self._report = report
        self._on_copy = on_copy

    def ask(self) -> None:
        self.wanted = True
        os.eventfd_write(self.fd, 1)

    def call_off(self) -> None:
        self.wanted = False

    def serve(self, loop: asyncio.AbstractEventLoop, is_quiet: Callable[[], bool]) -> None:
        """On the loop. The stop is between two of its steps, when no request is under way."""

        def on_asked() -> None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.fd)
            when_quiet()

        def when_quiet() -> None:
            if not self.wanted:
                return
            if not is_quiet():
                loop.call_later(_PAUSE_S, when_quiet)
            elif self._stand():
                _renew_loop(loop)

        loop.add_reader(self.fd, on_asked)

    def stand(self) -> None:
        """Between two requests of a handler that has the main thread for itself."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        if self.wanted:
            self._stand()

    def _stand(self) -> bool:
        """Until it may go on. True: this is the copy."""
        with renewal.undisturbed():
            return self._stand_still()

    def _stand_still(self) -> bool:
        self._report.pause()  # what comes from now on is read here
        if not self.wanted:  # what came just before
            self._report.resume()
            return False
        renewal.prepare()
        try:
            opened = remember()
        except Exception as error:  # user code may have made anything of what that takes
            self.wanted = False
            self._report.resume()
            self._report.send({**_HELD, "error": f"what it has open can't be made anew: {error}"})
            return False
        at_fork.before()
        born = _first(json.dumps(_HELD).encode() + b"\n") == BORN
        if born:
            config, app = _told()
            os.set_blocking(app, self._app.getblocking())
            renew(opened, {self._app.fileno(): app})
            _begin(config)
            self._report.renew()
            self._on_copy()
        else:
            at_fork.after_in_original()
        self.wanted = False
        self._report.resume()
        if born:
            self._report.send({"event": "ready", "init_ms": 0.0})
        return born


def _first(said: bytes) -> bytes:
    """The next byte for this process, waited for with the interpreter's lock held, once `said` has been sent. What is
    for who was copied is left to who reads it always. In the copy the wait is begun again, when the interpreter is
    that of a fork's child."""
    buffer = ctypes.create_string_buffer(1)
    while True:
        while not wait_for_input(STATUS, after_fork_in_child, said):
            said = b""
        if _libc.recv(STATUS, buffer, ctypes.c_size_t(1), socket.MSG_PEEK) <= 0:
            os._exit(0)
        if buffer.raw == BORN:
            _libc.recv(STATUS, buffer, ctypes.c_size_t(1), 0)
        return buffer.raw


def _told() -> tuple[StartConfig, int]:
    """What it is, and what it is to serve."""
    sock = socket.socket(fileno=os.dup(STATUS))
    try:
        data, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 1)
        while not data.endswith(b"\n"):
            more = sock.recv(MAX_MESSAGE)
            if not more:
                os._exit(0)
            data += more
        return parse_start(json.loads(data)), fds[0]
    finally:
        sock.close()


def _begin(config: StartConfig) -> None:
    """What must be its own, and what the kernel knows of no more."""
    os.environ.update(worker_environment(config))
    renewal.reseed()
    renewal.handle_signals()


def _renew_loop(loop: Any) -> None:
    """It runs on in the copy; what it had of threads is gone."""
    asyncio._set_running_loop(loop)  # a fork takes that away
    with contextlib.suppress(AttributeError):  # a loop that is not asyncio's own has wakened itself by other means
        loop._close_self_pipe()
        loop._make_self_pipe()
        loop._default_executor = None
    backend: Any = sys.modules.get("anyio._backends._asyncio")
    with contextlib.suppress(Exception):  # whatever version that is, and if it is there
        backend._threadpool_idle_workers.get().clear()
        backend._threadpool_workers.get().clear()
