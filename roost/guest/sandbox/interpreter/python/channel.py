"""A context's end of its socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

from roost.guest.dedup import QUIET_S, give_back
from roost.guest.fork import report
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.python.branching import stand_still, wait_for

_CHUNK = 1 << 16
_FEW = 1 << 11  # where memory is written to that a copy shares
_MAX_CODE = 128 << 20  # what is 16 MB of code may be longer as JSON
_QUIET, _FOR_EVER = struct.pack("ll", int(QUIET_S), 0), struct.pack("ll", 0, 0)


class Channel:
    """Reads cells and sends results. A process has one.

    SIGINT raises KeyboardInterrupt while a cell runs, but never within a message: that would be cut off. A process that
    user code forks is no context, so the channel is closed in it.
    """

    own: ClassVar[Channel | None] = None  # the process's

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = frames.FrameReader(_MAX_CODE)
        self._waiting: list[frames.Frame] = []
        self._lock = threading.Lock()
        self._sending = False
        self._interrupted = False
        self.interruptible = False
        self.is_open = True
        self.on_born: Callable[[], None] = lambda: None  # in a copy, which is going to take cells
        self.moving = False  # the process is being copied, and its copy has a channel too
        self._quiet = False  # it has waited for long
        self._bound_wait(_QUIET)
        Channel.own = self

    def receive(self) -> dict[str, Any] | None:
        """The next cell; None when the daemon has gone. This is where a context rests."""
        while True:
            try:
                kind, payload = self._next()
                if kind == frames.HOLD:
                    stand_still(self, payload)
            except (Exception, KeyboardInterrupt) as error:
                if not self.is_open:  # a fork that a handler has made
                    return None
                if _is_own(error):
                    raise
                report()  # of a signal's handler that a cell has left
                continue
            if kind == frames.RUN:
                cell: dict[str, Any] = json.loads(payload)
                return cell
            if not kind:
                return None

    def send(self, kind: bytes, payload: bytes) -> None:
        self._send(frames.frame(kind, payload), wait=False)

    def display(self, payload: bytes) -> None:
        """Returns when the daemon has passed it on. What was printed before it comes before it, the rest after.

        Only the main thread waits: the others' answers would be taken for its cells.
        """
        wait = threading.current_thread() is threading.main_thread()
        self._send(frames.frame(frames.DISPLAY if wait else frames.RESULT, payload), wait=wait)

    def take_interrupts(self) -> None:
        """Make SIGINT ours again, whatever the last cell made of it."""
        signal.signal(signal.SIGINT, self._on_interrupt)

    def _send(self, data: bytes, *, wait: bool) -> None:
        with self._lock:
            if not self.is_open:
                return
            self._sending = True
            try:
                self._sock.sendall(data)
                if wait:
                    self._next()
            finally:
                self._sending = False
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _next(self) -> frames.Frame:
        while not self._waiting:
            try:
                data = self._sock.recv(_CHUNK)
            except BlockingIOError:
                if self._quiet:  # then it waits for ever: this is somebody's doing
                    raise
                if not self._sending:
                    self._be_quiet()
                continue
            if not data:
                return b"", b""
            if self._quiet:
                self._quiet = False
                self._bound_wait(_QUIET)
            self._waiting += self._reader.feed(data)
        return self._waiting.pop(0)

    def _be_quiet(self) -> None:
        """Nothing has come for some time: until something does, have no more memory than needed."""
        self._quiet = True
        self._bound_wait(_FOR_EVER)
        give_back()

    def _bound_wait(self, most: bytes) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, most)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self.interruptible:
            return
        if self._sending:
            self._interrupted = True
            return
        raise KeyboardInterrupt

    def rest(self, said: bytes = b"") -> frames.Frame:
        """The next frame; if it is not here yet, waited for as in `branching`, once `said` has been sent."""
        with self._lock:  # no other thread is in the middle of a message
            while not self._waiting:
                sending, said = said, b""
                self._waiting += self._reader.feed(wait_for(self._sock.fileno(), _FEW, sending))
            return self._waiting.pop(0)

    def renew(self) -> None:
        """In a copy: nobody else is in the middle of anything."""
        self._lock = threading.Lock()
        self._interrupted = False
        self._quiet = False
        self._bound_wait(_QUIET)

    def leave(self) -> None:
        """In a fork."""
        if self.moving:
            return
        self.is_open = False
        self._lock = threading.Lock()
        self._sock.close()


def _is_own(error: BaseException) -> bool:
    """Whether it is of what a context does itself, and may come again at once."""
    return isinstance(error, MemoryError | frames.BadFrame) or getattr(error, "errno", None) is not None


def _leave() -> None:
    if Channel.own is not None:
        Channel.own.leave()


os.register_at_fork(after_in_child=_leave)  # once: what is registered runs in every copy of a context
