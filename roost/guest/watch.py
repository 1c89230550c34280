"""Notices that the host has half-closed a connection, while its request is being served."""

from __future__ import annotations

import _thread
import ctypes
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType

from roost.guest.faults import Cancelled
from roost.guest.reactor import HasFileno

#: Interrupts the main thread. A real-time signal near the end of the range: the usual ones belong to the user.
INTERRUPT = signal.SIGRTMAX - 2


class Watcher:
    """One thread asleep in epoll. It costs nothing per request: connections are added once."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[HasFileno, Callable[[], object], bool]] = {}
        self._lock = threading.Lock()
        # Unlike Thread.start this does not wait until the thread runs: it is on the way of a cold start.
        _thread.start_new_thread(self._run, ())

    def renew(self) -> None:
        """In a copy of the process, which has no other threads, and all descriptors at the same numbers."""
        self._lock = threading.Lock()
        _thread.start_new_thread(self._run, ())

    def add(self, sock: HasFileno, on_hangup: Callable[[], object]) -> None:
        """Call `on_hangup` (in the watcher's thread) once the peer has half-closed."""
        self._add(sock, on_hangup, select.EPOLLRDHUP | select.EPOLLET, readable=False)

    def add_reader(self, sock: HasFileno, on_readable: Callable[[], None]) -> None:
        self._add(sock, on_readable, select.EPOLLIN, readable=True)

    def remove(self, sock: HasFileno) -> None:
        """Before `sock` is closed. No callback of it runs afterwards."""
        with self._lock:
            if self._callbacks.pop(sock.fileno(), None) is not None:
                self._epoll.unregister(sock)

    def _add(self, sock: HasFileno, callback: Callable[[], object], events: int, *, readable: bool) -> None:
        with self._lock:
            self._callbacks[sock.fileno()] = (sock, callback, readable)
        self._epoll.register(sock, events)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                with self._lock:
                    entry = self._callbacks.get(fd)
                    # The number may have gone to a new connection since the event: ask the socket itself.
                    if entry is not None and (entry[2] or hung_up(entry[0])):
                        entry[1]()


def hung_up(sock: HasFileno) -> bool:
    """Whether the peer has half-closed or closed, even behind bytes not yet read."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


class MainThread:
    """Knows what the main thread serves, for the signal that interrupts it. Make it in the main thread."""

    def __init__(self) -> None:
        self.id = threading.get_ident()
        self.serving: Interruptible | None = None
        signal.signal(INTERRUPT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.serving is not None:
            self.serving.on_signal()


class Interruptible:
    """Runs one request after another on the thread that calls `begin`/`end`, and can be cancelled from another.

    Between `begin` and `end` a cancel raises Cancelled in that thread: at once in the main thread, even in a blocking
    system call; elsewhere at the next step of Python code.
    """

    __slots__ = ("_lock", "_main", "_running", "_thread", "cancelled")

    def __init__(self, main: MainThread) -> None:
        self._main = main
        self._lock = threading.Lock()
        self._running = False
        self._thread = 0
        self.cancelled = False

    def begin(self) -> None:
        """Raises Cancelled if the peer has gone already."""
        self._thread = threading.get_ident()
        if self._thread == self._main.id:
            self._main.serving = self
        self._running = True
        if self.cancelled:
            self._running = False
            raise Cancelled

    def end(self) -> None:
        """After this no exception comes any more."""
        with self._lock:
            self._running = False
            if self.cancelled and self._thread != self._main.id:
                _set_exception(self._thread, None)

    def cancel(self) -> None:
        """From another thread. Only the first call counts."""
        with self._lock:
            if self.cancelled:
                return
            self.cancelled = True
            if not self._running:
                return
            if self._thread == self._main.id:
                signal.pthread_kill(self._thread, INTERRUPT)
            else:
                self._running = False
                _set_exception(self._thread, Cancelled)

    def on_signal(self) -> None:
        """In the main thread, on INTERRUPT."""
        if self._running and self.cancelled:
            self._running = False
            raise Cancelled


def _set_exception(thread: int, kind: type[BaseException] | None) -> None:
    """Raise `kind` in the thread at its next step; None takes back one that it has not met yet."""
    argument = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), argument)
