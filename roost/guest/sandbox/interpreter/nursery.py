"""The daemon's end of the nursery."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import json
import os
import signal
import socket
from collections.abc import Callable

from roost.guest.sandbox.interpreter.nursery_process import MAX_MESSAGE, Launch, run_nursery

_GONE = 0x100  # the wait status of "exit code 1": what is told of children whose end nobody saw


class NurseryGone(OSError):
    """No process can be made."""


class Child:
    """A process that the nursery made. `status` is its wait status once it has ended; `on_end` is called then."""

    def __init__(self, nursery: Nursery, number: int) -> None:
        self._nursery = nursery
        self._number = number
        self.status: int | None = None
        self.on_end: Callable[[], None] = lambda: None

    def watch(self) -> None:
        """In the event loop: notice the end from now on."""
        self._nursery.watch()

    def interrupt(self) -> None:
        """SIGINT to the process and what it started."""
        self._nursery.signal(self._number, signal.SIGINT)

    def kill(self) -> None:
        self._nursery.signal(self._number, signal.SIGKILL)

    def end(self, status: int) -> None:
        self.status = status
        self.on_end()


class Nursery:
    """Forks a nursery when it is made, and another one when that has died. `launch` runs in its children."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._numbers = itertools.count(1)
        self._children: dict[int, Child] = {}
        self._pid = 0
        self._sock: socket.socket | None = None
        self._watched = False
        self._start()

    def spawn(self, language: str, cwd: str, fds: tuple[int, int, int]) -> Child:
        """A process for a context: it gets the descriptors of its socket, its output and its error output.

        Needs no event loop yet. Raises NurseryGone.
        """
        sock = self._sock or self._start()
        number = next(self._numbers)
        message = {"op": "spawn", "number": number, "language": language, "cwd": cwd}
        try:
            socket.send_fds(sock, [json.dumps(message).encode()], fds)
        except OSError as error:
            raise NurseryGone(error.errno, f"no process can be asked for: {error.strerror}") from error
        child = self._children[number] = Child(self, number)
        return child

    def watch(self) -> None:
        if not self._watched and self._sock is not None:
            asyncio.get_running_loop().add_reader(self._sock, self._on_message, self._sock)
            self._watched = True

    def signal(self, number: int, which: signal.Signals) -> None:
        if number in self._children and self._sock is not None:
            message = {"op": "signal", "number": number, "signal": int(which)}
            with contextlib.suppress(OSError):  # it has died: so have its children
                self._sock.send(json.dumps(message).encode())

    def _start(self) -> socket.socket:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise NurseryGone(error.errno, "no socket can be made") from error
        gc.freeze()  # what exists now is shared with the nursery; a collection here must not touch (and so copy) it
        try:
            pid = os.fork()
        except OSError as error:
            ours.close()
            theirs.close()
            raise NurseryGone(error.errno, "no process can be made") from error
        if pid == 0:
            run_nursery(theirs, self._launch)
        theirs.close()
        ours.setblocking(False)
        self._pid, self._sock, self._watched = pid, ours, False
        return ours

    def _on_message(self, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError as error:
                data = b""
                if error.errno not in (errno.ECONNRESET, errno.EPIPE):
                    raise
            if not data:
                self._lost(sock)
                return
            message = json.loads(data)
            child = self._children.pop(message["number"], None)
            if child is not None:
                child.end(message.get("ended", _GONE))

    def _lost(self, sock: socket.socket) -> None:
        """The nursery has died, and its children with it."""
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()
        self._sock = None
        with contextlib.suppress(ChildProcessError):  # the daemon may reap its children itself
            os.waitpid(self._pid, 0)
        children, self._children = self._children, {}
        for child in children.values():
            child.end(_GONE)
