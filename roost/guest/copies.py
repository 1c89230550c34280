"""A function's worker that can be copied, as PID 1 of its room sees it: the host makes its process, and copies it.

By the lifeline of `sandbox.interpreter.lifeline`, of which it knows `first`, `context` and `whole`, then `hold` and
`release`: the worker is the one context of this room.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from roost.guest.child import Forked, Pipes
from roost.guest.fork import sleeps
from roost.guest.reactor import READ, Reactor, Timer
from roost.guest.sandbox.interpreter.lifeline import COPIES_S, receive
from roost.guest.still import BORN

ID = "0"
_FIRST_S = 5.0  # for what comes with the room
_RELEASE_S = 120.0  # without a word from the host, it goes on
_SOON_S, _SOON_TRIES = 0.001, 500  # from what it says to its wait

Message = Mapping[str, Any]


class Worker(Protocol):
    """What is needed of `life.Life`."""

    def tell(self, message: dict[str, Any]) -> bool: ...


class Copies:
    """Owns the lifeline. `begin` once, then `serve`; `held` is called with the worker's answer to a hold."""

    def __init__(self, reactor: Reactor, sock: socket.socket, app: socket.socket) -> None:
        self._reactor = reactor
        self._sock = sock
        self._app = app
        self._pid = 0
        self._worker: Worker | None = None
        self._asked = False  # by the host, which has no answer yet
        self._number: object = None  # of what it asked last
        self._limit: Timer | None = None

    def begin(self, start: Message) -> Forked | None:
        """The worker, told what it is: a new one, or a copy. None where there is none: it is to be forked."""
        self._sock.settimeout(_FIRST_S)
        begun: Forked | None = None
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            while True:
                message, fds = receive(self._sock)
                if message["op"] == "copies":
                    self._sock.settimeout(COPIES_S)
                    continue
                if message["op"] == "context":
                    self._pid = message["pid"]
                    begun = self._copied(start, fds)
                    continue
                if fds:
                    self._pid = message["pid"]
                    begun = self._made(start, fds[0])
                break
        self._sock.setblocking(False)
        self._reactor.watch(self._sock, READ, self._on_message)
        return begun

    def _made(self, start: Message, order: int) -> Forked:
        """Raises OSError."""
        with socket.socket(fileno=order) as sock, contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            fds = [theirs.fileno()]
            readers = []
            for _ in range(2):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                undo.callback(os.close, reader)
                readers.append(reader)
                fds.append(writer)
            try:
                message = json.dumps({"worker": start}).encode()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(message))
                socket.send_fds(sock, [message], [*fds, self._app.fileno()])
            finally:
                theirs.close()
                for writer in fds[1:]:
                    os.close(writer)
            undo.pop_all()
        ours.setblocking(False)
        return self._pid, Pipes(stdout=readers[0], stderr=readers[1], status=ours)

    def _copied(self, start: Message, fds: list[int]) -> Forked:
        """Raises OSError; the worker hears of the end of its socket then, and ends."""
        status = socket.socket(fileno=fds[0])
        status.sendall(BORN)
        socket.send_fds(status, [json.dumps(start).encode() + b"\n"], [self._app.fileno()])
        status.setblocking(False)
        for fd in fds[1:]:
            os.set_blocking(fd, True)
        return self._pid, Pipes(stdout=fds[1], stderr=fds[2], status=status)

    def serve(self, worker: Worker) -> None:
        self._worker = worker

    def lost(self, pid: int) -> None:
        """A process of the room has ended."""
        if pid == self._pid:
            self._pid = 0
            self._answer([], ["its process has ended"])

    def held(self, why_not: str) -> None:
        """The worker says that it stands still; so it does in a moment. Or that it can't, and goes on."""
        if why_not:
            self._give_up(why_not)
        else:
            self._await_rest(_SOON_TRIES)

    def _await_rest(self, tries: int) -> None:
        if not self._asked:
            return
        if sleeps(self._pid):
            self._answer([{"id": ID, "cwd": "/", "pid": self._pid, "default": True}], [])
            self._wait(_RELEASE_S, self._release)
        elif tries:
            self._reactor.call_later(_SOON_S, lambda: self._await_rest(tries - 1))
        else:
            self._give_up("it did not stand still")

    def _on_message(self, events: int) -> None:
        try:
            message, fds = receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, ValueError):  # the server has gone, and asks for nothing any more
            self._reactor.watch(self._sock, 0, self._on_message)
            self._release()
            return
        for fd in fds:
            os.close(fd)
        if message.get("op") == "hold":
            self._number = message.get("number")
            self._hold(float(message["wait_s"]))
        elif message.get("op") == "release":
            self._release()

    def _hold(self, wait_s: float) -> None:
        self._asked = True
        if not self._pid or self._worker is None:
            self._answer([], ["its process has no shadow: it was made without one, or anew since"])
        elif not self._worker.tell({"op": "hold"}):
            self._answer([], ["it takes no messages"])
        else:
            self._wait(wait_s, lambda: self._give_up("its requests did not end, or its handler serves them in threads"))

    def _give_up(self, why: str) -> None:
        self._answer([], [why])
        self._release()

    def _release(self) -> None:
        self._asked = False
        self._wait(0, None)
        if self._worker is not None and self._pid:
            self._worker.tell({"op": "go"})

    def _answer(self, held: list[dict[str, Any]], lost: list[str]) -> None:
        if self._asked:
            self._asked = False
            with contextlib.suppress(OSError):
                self._sock.send(json.dumps({"held": held, "lost": lost, "number": self._number}).encode())

    def _wait(self, seconds: float, then: Callable[[], None] | None) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self._reactor.call_later(seconds, then) if then is not None else None
