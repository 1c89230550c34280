"""What every room does at its start, done once by the zygote before it makes rooms.

A room's processes share the zygote's memory until they write to it, and running a function for the first times writes
to it: the interpreter counts the calls, adapts the code, remembers where it found each attribute. What has been
rehearsed is at rest; rooms copy less of it, and start sooner for that.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from roost.guest import holes
from roost.guest.at_fork import at_fork
from roost.guest.child import NOBODY, Forked, Pipes
from roost.guest.gathering import gather
from roost.guest.sandbox.interpreter.launch import PYTHON
from roost.guest.sandbox.rehearsal import Visit
from roost.guest.supervisor import Settings, Supervisor

_TIMES = 12  # the interpreter adapts code after eight calls
_ORPHAN_S = 0.003  # what ends each rehearsal of the supervisor
_LIMIT_S = 10.0
_RESTART = b'{"op": "restart"}\n'  # what ends a sandbox
_START = {
    "op": "start",
    "instance": "rehearsal",
    "runtime": "python",
    "handler": "index.handler",
    "env": {"A": "b"},
    "function": {"name": "rehearsal", "memory": 1},
    "entropy": "00" * 64,
    "time_zone": "UTC",
}
_SANDBOX = {**_START, "runtime": "sandbox", "sandbox": {"user": "root", "workdir": "/", "interpreter": True}}


def rehearse() -> None:
    """Leaves nothing behind, and prevents nothing where it fails: rooms then start as if it had not been."""
    forget_attributes()
    with contextlib.suppress(Exception):  # whatever interpreter that is
        at_fork.arrange()
    with contextlib.suppress(Exception):  # whatever a template is like
        _once()
        gather(_once)
        for _ in range(_TIMES):
            _once()
    gc.unfreeze()
    gc.collect()
    holes.take()


def _once() -> None:
    _rehearse_worker()
    _rehearse_sandbox()
    context = sys.modules.get(PYTHON)
    if context is not None:
        context.rehearse()


def forget_attributes() -> None:
    """Empty the interpreter's cache of attributes. It holds names that imports have left there; each that gives way to
    another is written to, wherever in memory it is, in every process anew."""
    getattr(sys, "_clear_internal_caches", sys._clear_type_cache)()


@contextlib.contextmanager
def _listener() -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(Path(directory) / "sock"))
        listener.listen(8)
        yield listener


def _rehearse_worker() -> None:
    """The host connects, says `start`, hears of a worker that is ready, and goes away."""
    with _told(_START) as (guest, app, host), contextlib.closing(_Worker()) as worker:
        host.shutdown(socket.SHUT_WR)
        Supervisor(guest, app, Settings(orphan_s=_ORPHAN_S), fork=worker.fork, spare=lambda: None).run()


def _rehearse_sandbox() -> None:
    """The same of a sandbox with a context, which is used before the host goes away."""
    with (
        _told(_SANDBOX) as (guest, app, host),
        _outputs_kept(),
        contextlib.closing(Visit(app, lambda: host.sendall(_RESTART))) as visit,
    ):
        settings = Settings(orphan_s=_LIMIT_S)
        Supervisor(guest, app, settings, live=visit.live, spare=lambda: None, daemon=visit.be_daemon).run()


@contextlib.contextmanager
def _told(start: Mapping[str, Any]) -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """The two sockets of a room, and a host's that has said `start`."""
    with _listener() as guest, _listener() as app, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as host:
        host.connect(guest.getsockname())
        host.sendall(b"control\n" + json.dumps(start).encode() + b"\n")
        try:
            yield guest, app, host
        finally:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextlib.contextmanager
def _outputs_kept() -> Iterator[None]:
    """A daemon's own take their place."""
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        yield
    finally:
        for number, fd in kept.items():
            os.dup2(fd, number)
            os.close(fd)


class _Worker:
    """Stands where a fork would be: what it has to say is said."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None

    def fork(self, body: Callable[[socket.socket], None], *, keep: tuple[int, ...]) -> Forked:
        ours, self._sock = socket.socketpair()
        self._sock.sendall(json.dumps({"event": "ready", "init_ms": 1.0, "stops": False}).encode() + b"\n")
        outputs = []
        for _ in range(2):
            reader, writer = os.pipe()
            os.close(writer)
            outputs.append(reader)
        ours.setblocking(False)
        return NOBODY, Pipes(stdout=outputs[0], stderr=outputs[1], status=ours)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
