"""Serves app.sock with blocking handlers: up to `concurrency` threads, each of which takes whatever is ready next.

All threads wait on one epoll; the one that wakes serves the request itself, so no request changes threads. With a
concurrency of 1 that is the main thread alone.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable

from roost.guest.connection import Connection
from roost.guest.faults import Cancelled
from roost.guest.http1 import BadMessage, Head, reply_head
from roost.guest.still import Still
from roost.guest.watch import Interruptible, MainThread, Watcher

#: Serves one request; True keeps the connection.
Handler = Callable[[Connection, Head], bool]
MAX_CONNECTIONS = 2048


class BlockingServer:
    """`run` never returns. Raise nothing from the handler but Cancelled (its connection is then closed)."""

    def __init__(
        self,
        listener: socket.socket,
        handler: Handler,
        *,
        concurrency: int,
        watcher: Watcher,
        main: MainThread,
        still: Still | None = None,
    ) -> None:
        """`still`: with a concurrency of 1 it can be copied between two requests."""
        self._listener = listener
        self._handler = handler
        self._concurrency = concurrency
        self._watcher = watcher
        self._main = main
        self._still = still
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._lock = threading.Lock()
        self._threads = 1
        self._idle = 0
        # With several threads a connection that is ready must wake one of them only, until it is armed again.
        self._events = select.EPOLLIN | (select.EPOLLONESHOT if concurrency > 1 else 0)

    def run(self) -> None:
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        if self._still is not None:
            self._epoll.register(self._still.fd, select.EPOLLIN)
        self._loop()

    def _loop(self) -> None:
        listener = self._listener.fileno()
        single = self._concurrency == 1
        poll = self._epoll.poll
        while True:
            if single:
                ready = poll(None, 1)
            else:
                self._before_wait()
                ready = poll(None, 1)
                self._before_work()
            for fd, _ in ready:
                if fd == listener:
                    self._accept()
                elif (connection := self._connections.get(fd)) is not None:
                    self._serve(connection)
                elif self._still is not None and fd == self._still.fd:
                    self._still.stand()

    def _before_wait(self) -> None:
        with self._lock:
            self._idle += 1

    def _before_work(self) -> None:
        """Leave a thread waiting, as long as there may be more."""
        with self._lock:
            self._idle -= 1
            if self._idle > 0 or self._threads >= self._concurrency:
                return
            self._threads += 1
        threading.Thread(target=self._loop, name=f"request-{self._threads}", daemon=True).start()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: the backlog holds until some are free
            time.sleep(0.05)
            return
        sock.setblocking(True)
        if len(self._connections) >= MAX_CONNECTIONS:
            sock.close()
            return
        interrupt = Interruptible(self._main)
        self._connections[sock.fileno()] = Connection(sock, interrupt)
        self._watcher.add(sock, interrupt.cancel)
        self._epoll.register(sock, self._events)

    def _serve(self, connection: Connection) -> None:
        keep = connection.receive()
        while keep:
            try:
                head = connection.next_head()
            except BadMessage as error:
                _refuse(connection, error)
                keep = False
                break
            if head is None:
                break
            keep = self._serve_one(connection, head)
        if not keep:
            self._close(connection)
        elif self._concurrency > 1:
            self._epoll.modify(connection.sock, self._events)

    def _serve_one(self, connection: Connection, head: Head) -> bool:
        try:
            try:
                connection.interrupt.begin()
                return self._handler(connection, head)
            finally:
                connection.interrupt.end()
        except Cancelled:
            connection.interrupt.end()
            return False

    def _close(self, connection: Connection) -> None:
        self._watcher.remove(connection.sock)
        del self._connections[connection.sock.fileno()]
        self._epoll.unregister(connection.sock)
        connection.close()


def _refuse(connection: Connection, error: BadMessage) -> None:
    text = str(error).encode()
    fields = [("content-type", "text/plain"), ("content-length", str(len(text))), ("connection", "close")]
    try:
        connection.send(reply_head(error.status, fields) + text)
    except Cancelled:
        return
