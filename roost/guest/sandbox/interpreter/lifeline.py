"""The daemon's end of the lifeline: the host hands contexts over, and has them stand still while it copies them.

Messages are JSON, with descriptors from the host alone:

| host sends | meaning |
|---|---|
| `first`, `pid`; its socket | the room's first context waits for its order; 0 and no socket: it can't be made |
| `copies` | copies of contexts that were made elsewhere are going to come |
| `context`, `id`, `cwd`, `default`, `pid`; its socket, its outputs | such a copy |
| `whole` | those were all |
| `hold`, `wait_s`, `now` | all contexts are to stand still between two cells, those that run interrupted if it is \
to be now; answered by `held` and `lost` |
| `rest`, `wait_s` | no cell is to run; answered as `hold`, which nothing is held by |
| `release` | they may go on |

Exactly one of `first` and `whole` comes, before `hold`. The daemon asks for one thing at a time, answered by `reply`.
Who asks gives a `number`, which the answer has too: an answer that nobody waits for any more is not the next one's.

| daemon asks for | reply |
|---|---|
| `another` | as `first` |
| `fork` of the context `pid`, which stands still; `said` | `pid` of a copy; its socket, its outputs |
| `branch` of such a context | `branch`: its memory as it is, held |
| `settle` of a `branch`, which stays; `said` | `pid` of a copy; its socket, its outputs |
| `drop` of a `branch` | |

or `error` with the reason. What is `said` the copy finds on its socket when it comes to be.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from roost.guest.sandbox.interpreter.launch import PYTHON
from roost.guest.sandbox.interpreter.spare import Spare

_FIRST_S = 5.0  # for what comes with the room
COPIES_S = 120.0  # for each copy: the host has bounds of its own, and its end is seen
_RELEASE_S = 120.0  # without a word from the host, contexts go on
_REPLY_S = 15.0
_MESSAGE = 256 << 10
#: How the reason ends for which a context is not held.
STILL_RUNS = "a cell of it still runs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A context that was copied elsewhere: its process here, and the daemon's ends of its socket and its outputs."""

    id: str
    cwd: str
    default: bool
    pid: int
    fds: tuple[int, int, int]


Reply = tuple[dict[str, Any], list[int]]


def receive(sock: socket.socket) -> Reply:
    """A message of the host's, with its descriptors; with none where this process can't have all of them.

    Raises OSError, also at the end, and ValueError.
    """
    data, ancillary, flags, _ = sock.recvmsg(_MESSAGE, socket.CMSG_SPACE(3 * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content)
    if flags & socket.MSG_CTRUNC:
        while fds:
            os.close(fds.pop())
    if not data:
        raise ConnectionResetError
    return json.loads(data), list(fds)


class NotCopied(Exception):
    """The text says why."""


class Holder(Protocol):
    """The contexts of the sandbox."""

    async def hold(self, wait_s: float, *, now: bool = False) -> dict[str, Any]:
        """Have them stand still, `now`: by interrupts; what the host is told of them."""
        ...

    async def rest(self, wait_s: float) -> dict[str, Any]:
        """Wait until no cell runs; what the host is told of those that go on."""
        ...

    def release(self) -> None: ...


class Lifeline:
    """Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reply: asyncio.Future[Reply] | None = None
        self._number = 0  # of what was asked last
        self._asking = asyncio.Lock()
        self._undoing: set[asyncio.Future[Reply]] = set()
        self._open = True

    async def another(self) -> Spare | None:
        """One more process that waits to be a context; None if there can be none."""
        try:
            reply, fds = await self.ask("another")
            return Spare.made(reply["pid"], socket.socket(fileno=fds[0])) if fds else None
        except NotCopied:
            return None

    async def ask(self, what: str, **fields: Any) -> Reply:
        """Raises NotCopied. Whoever does not wait for the answer leaves nothing with the host."""
        exchange = asyncio.ensure_future(self._exchange({"ask": what, **fields}))
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            exchange.add_done_callback(self._abandoned)
            raise

    def _abandoned(self, exchange: asyncio.Future[Reply]) -> None:
        if not exchange.cancelled() and exchange.exception() is None:
            self._undo(*exchange.result())

    def _undo(self, reply: dict[str, Any], fds: list[int]) -> None:
        """What nobody waits for: a process ends with its socket, a branch is dropped."""
        for fd in fds:
            os.close(fd)
        if "branch" in reply and self._open:
            dropping = asyncio.ensure_future(self._exchange({"ask": "drop", "branch": reply["branch"]}))
            self._undoing.add(dropping)
            dropping.add_done_callback(self._undone)

    def _undone(self, dropping: asyncio.Future[Reply]) -> None:
        self._undoing.discard(dropping)
        if not dropping.cancelled():
            dropping.exception()  # seen

    async def _exchange(self, message: dict[str, Any]) -> Reply:
        async with self._asking:
            if not self._open:
                raise NotCopied("the host that held it has gone")
            self._reply = asyncio.get_running_loop().create_future()
            self._number += 1
            try:
                self._sock.send(json.dumps({**message, "number": self._number}).encode())
                reply, fds = await asyncio.wait_for(self._reply, _REPLY_S)
            except (OSError, TimeoutError) as error:
                raise NotCopied("the host does not answer") from error
            finally:
                self._reply = None
        if "error" in reply:
            raise NotCopied(str(reply["error"]))
        return reply, fds

    def take(self) -> tuple[Spare | None, list[Copy]]:
        """What the host has made for this room; waits for it. Once, before `serve`."""
        copies: list[Copy] = []
        self._sock.settimeout(_FIRST_S)
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            while True:
                message, fds = self._receive()
                match message["op"]:
                    case "first" if fds and PYTHON in sys.modules:
                        return Spare.made(message["pid"], socket.socket(fileno=fds[0])), copies
                    case "copies":
                        self._sock.settimeout(COPIES_S)
                    case "context":
                        fields = {name: message[name] for name in ("id", "cwd", "default", "pid")}
                        copies.append(Copy(**fields, fds=(fds[0], fds[1], fds[2])))
                    case _:
                        for fd in fds:
                            os.close(fd)
                        return None, copies
        return None, copies

    def serve(self, holder: Holder) -> None:
        """In the event loop: do what the host asks for."""
        self._sock.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._sock, self._on_message, holder)

    def close(self) -> None:
        self._sock.close()

    def _receive(self) -> Reply:
        return receive(self._sock)

    def _on_message(self, holder: Holder) -> None:
        try:
            message, fds = self._receive()
        except BlockingIOError:
            return
        except (OSError, ValueError):  # the server has gone, and asks for nothing any more
            asyncio.get_running_loop().remove_reader(self._sock)
            self._open = False
            if self._reply is not None and not self._reply.done():
                self._reply.set_exception(NotCopied("the host that held it has gone"))
            self._release(holder)
            return
        if message.get("op") == "reply":
            if message.get("number") == self._number and self._reply is not None and not self._reply.done():
                self._reply.set_result((message, fds))
            else:
                self._undo(message, fds)
            return
        for fd in fds:
            os.close(fd)
        if message.get("op") == "hold":
            held = self._hold(holder, message.get("number"), float(message["wait_s"]), now=bool(message.get("now")))
            self._run(held)
        elif message.get("op") == "rest":
            self._run(self._rest(holder, message.get("number"), float(message["wait_s"])))
        elif message.get("op") == "release":
            self._release(holder)

    async def _hold(self, holder: Holder, number: object, wait_s: float, *, now: bool) -> None:
        self._timer = asyncio.get_running_loop().call_later(wait_s + _RELEASE_S, holder.release)
        self._tell(await holder.hold(wait_s, now=now), number)

    async def _rest(self, holder: Holder, number: object, wait_s: float) -> None:
        self._tell(await holder.rest(wait_s), number)

    def _tell(self, reply: dict[str, Any], number: object) -> None:
        with contextlib.suppress(OSError):
            self._sock.send(json.dumps({**reply, "number": number}).encode())

    def _release(self, holder: Holder) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None and not self._task.done():
            self._task.cancel()
        holder.release()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
