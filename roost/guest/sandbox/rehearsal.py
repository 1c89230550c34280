"""What a sandbox's daemon does first, done in the zygote. See `roost.guest.rehearsal`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from roost.guest.child import close_others
from roost.guest.config import StartConfig
from roost.guest.fork import fork
from roost.guest.reaping import wait
from roost.guest.sandbox.daemon import INTERPRETER_PORT, InterpreterHandler, run_sandbox
from roost.guest.sandbox.identities import Identities
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.processes import Descriptors, Order
from roost.guest.sandbox.interpreter.server import Interpreter

_LIMIT_S = 10.0
_RESULT = b'{"type": "result", "text": "2", "extra": {}, "is_main_result": true}'


class Visit:
    """Stands where a room and its host are: a context that was copied elsewhere, which only says what contexts say,
    requests that come, and a copy that is asked for. `leave` is called when that is over."""

    def __init__(self, app: socket.socket, leave: Callable[[], None]) -> None:
        """`live` is the daemon's end of the lifeline, the daemon's to close."""
        self._app = app
        self._leave = leave
        self._task: asyncio.Task[None] | None = None
        self.live, self._host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel, theirs = socket.socketpair()
        outputs = [os.pipe(), os.pipe()]
        pid = fork()
        if pid == 0:
            close_others({0, 1, 2, theirs.fileno()})
            _answer({}, (theirs.fileno(), 1, 2))
        self._pid = pid
        told = {"op": "context", "id": "a", "cwd": "/", "default": True, "pid": pid}
        socket.send_fds(self._host, [json.dumps(told).encode()], [channel.fileno(), *(reader for reader, _ in outputs)])
        self._host.send(b'{"op": "whole"}')
        for sock in (channel, theirs):
            sock.close()
        for fd in (fd for output in outputs for fd in output):
            os.close(fd)

    def be_daemon(self, config: StartConfig, app: socket.socket, status: socket.socket, make: Any, **more: Any) -> None:
        """As `daemon.run_sandbox`, but that nothing of the room is written to."""
        with _as_it_was():
            run_sandbox(config, app, status, partial(make, launch=_answer), furnish=self._begin, **more)

    async def _begin(self, identities: Identities, interpreter: InterpreterHandler | None) -> None:
        assert isinstance(interpreter, Interpreter)
        self._task = asyncio.get_running_loop().create_task(self._visit(interpreter))

    async def _visit(self, interpreter: Interpreter) -> None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                await _ask(self._app, b"GET", b"/health", b"")
                await _ask(self._app, b"POST", b"/execute", b'{"code": "1+1", "env_vars": {"A": "b"}}')
                await self._copied()
        finally:
            await interpreter.close()
            self._leave()

    async def _copied(self) -> None:
        """The host asks for a copy of all contexts, and makes none."""
        self._host.setblocking(False)
        self._host.send(b'{"op": "hold", "wait_s": 1, "now": false, "number": 1}')
        await asyncio.get_running_loop().sock_recv(self._host, 1 << 16)
        self._host.send(b'{"op": "release"}')

    def close(self) -> None:
        """The context has ended, whether the daemon has got it or not."""
        self._host.close()
        with contextlib.suppress(ChildProcessError):  # reaped, so its number is another's
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(self._pid, signal.SIGKILL)
            wait(self._pid)


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """What a daemon makes of its process is undone, but for its outputs."""
    environ, place = dict(os.environ), os.getcwd()
    mask, handler = os.umask(0o022), signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        os.chdir(place)
        os.umask(mask)
        signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(environ)
        time.tzset()


async def _ask(listener: socket.socket, method: bytes, target: bytes, body: bytes) -> None:
    """One request, over a connection of its own, as a gateway sends it."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, listener.getsockname())
        head = b"%s %s HTTP/1.1\r\nhost: rehearsal\r\nconnection: close\r\nx-roost-port: %s\r\n" % (
            method,
            target,
            INTERPRETER_PORT.encode(),
        )
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) if body else b"\r\n"
        await loop.sock_sendall(sock, head + fields + body)
        while await loop.sock_recv(sock, 1 << 16):
            pass


def _answer(order: Order, fds: Descriptors) -> NoReturn:
    """In the fork that stands for a context."""
    try:
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(True)
        number = 1
        ready = frames.frame(frames.READY, json.dumps({"next": number}).encode())
        if order:  # it is not a copy
            sock.sendall(ready)
        reader = frames.FrameReader()
        while data := sock.recv(1 << 16):
            for kind, payload in reader.feed(data):
                if kind == frames.BORN:
                    sock.sendall(ready)
                elif kind == frames.HOLD:
                    sock.sendall(frames.frame(frames.HELD, payload))
                elif kind == frames.RUN:
                    number += 1
                    done = frames.frame(frames.DONE, json.dumps({"next": number}).encode())
                    sock.sendall(frames.frame(frames.RESULT, _RESULT) + done)
    finally:
        os._exit(0)
