"""A helper process, on the server's side: started with one end of a socket, asked, and gone with the server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.isolation.namespaces import wire
from roost.isolation.namespaces.within import python, within
from roost.model.errors import Unavailable

_IN_FLIGHT = 8  # requests; their messages fit the socket's buffer
_START_TIMEOUT_S = 60.0
_REPLY_TIMEOUT_S = 10.0  # since it got to it. A fork takes milliseconds; what is silent for so long is given up
_STOP_TIMEOUT_S = 5.0
_LAST_WORDS_S = 1.0
_STDERR_LIMIT = 16 << 10

Reply = tuple[dict[str, Any], list[int]]
Spent = Callable[[float], None]


def unnoted(_: float) -> None:
    """Nobody wants to know how long it took."""


@dataclass(eq=False)
class _Asked:
    at: float
    reply: asyncio.Future[Reply]
    took_s: float = 0.0  # since the helper got to it


class Helper:
    """One process of `roost.isolation.namespaces.<module>`, run by this interpreter. Serves requests in order.

    `realm`: a user namespace that it is in, as its root; None: where the server is.
    """

    def __init__(self, module: str, setup: Sequence[dict[str, Any]] = (), *, realm: int | None = None) -> None:
        self._module = module
        self._setup = setup
        self._realm = realm
        self._sock: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._pending: dict[int, _Asked] = {}
        self._heard = 0.0  # when it answered last
        self._ids = itertools.count(1)
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._ready: asyncio.Future[Reply] | None = None

    @property
    def alive(self) -> bool:
        return self._sock is not None

    async def start(self) -> None:
        """Start it and wait until it serves. Raises Unavailable with what it said."""
        ours, theirs = wire.pair()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            with theirs:
                for message in self._setup:
                    wire.send(ours, message)
                command = python(f"roost.isolation.namespaces.{self._module}", str(theirs.fileno()))
                realm = [] if self._realm is None else [self._realm]
                self._process = await asyncio.create_subprocess_exec(
                    *within(self._realm, command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=[theirs.fileno(), *realm],
                    env={"PYTHONPATH": str(Path(__file__).parents[3])},
                    cwd="/",
                    start_new_session=True,
                    limit=_STDERR_LIMIT,
                )
        except BaseException:
            ours.close()
            raise
        self._sock = ours
        self._ready = loop.create_future()
        loop.add_reader(ours, self._receive)
        try:
            reply, _ = await asyncio.wait_for(self._ready, _START_TIMEOUT_S)
        except BaseException as error:
            said = await self._stop()
            if isinstance(error, Unavailable | TimeoutError):
                raise Unavailable(f"The {self._module} did not start: {said or error or 'no answer'}.") from error
            raise
        if "error" in reply:
            await self._stop()
            raise Unavailable(f"The {self._module} did not start: {reply['error']}.")

    async def request(self, message: dict[str, Any], fds: Sequence[int] = (), spent: Spent = unnoted) -> Reply:
        """Send a request and wait for its reply; the descriptors in the reply are the caller's. `spent` is told for how
        many seconds the helper was at it.

        Raises Unavailable with the reason if the helper refuses or has gone.
        """
        async with self._slots:
            if self._sock is None:
                raise Unavailable(f"The {self._module} has ended.")
            number = next(self._ids)
            asked = _Asked(time.monotonic(), asyncio.get_running_loop().create_future())
            self._pending[number] = asked
            try:
                wire.send(self._sock, {**message, "id": number}, fds)
                reply, received = await self._answered(asked)
                spent(asked.took_s)
            except (ConnectionError, TimeoutError) as error:
                self._give_up()
                raise Unavailable(f"The {self._module} does not answer: {error or 'time is up'}.") from error
            except OSError as error:  # nothing was sent: this request alone has failed
                raise Unavailable(f"The {self._module} can't be asked: {error.strerror}.") from error
            except asyncio.CancelledError:
                if asked.reply.done() and asked.reply.exception() is None:  # it came just then, and nobody takes it
                    wire.close_all(asked.reply.result()[1])
                raise
            finally:
                self._pending.pop(number, None)
        if "error" in reply:
            wire.close_all(received)
            raise Unavailable(str(reply["error"]))
        return reply, received

    async def _answered(self, asked: _Asked) -> Reply:
        """Raises TimeoutError. The helper gets to it when it has answered what was asked before."""
        while not asked.reply.done():
            left = max(asked.at, self._heard) + _REPLY_TIMEOUT_S - time.monotonic()
            if left <= 0:
                raise TimeoutError
            await asyncio.wait([asked.reply], timeout=left)
        return asked.reply.result()

    def _receive(self) -> None:
        if self._sock is None or self._ready is None:
            return
        try:
            while (received := wire.receive(self._sock)) is not None:
                before, self._heard = self._heard, time.monotonic()
                asked = self._pending.get(received[0].get("id", 0))
                future = self._ready if asked is None else asked.reply
                if future.done():  # nobody waits any more
                    wire.close_all(received[1])
                    continue
                if asked is not None:
                    asked.took_s = self._heard - max(asked.at, before)
                future.set_result(received)
        except BlockingIOError:
            return
        except OSError:
            pass
        self._lost()

    def _lost(self) -> None:
        """The connection has ended: fail what waits."""
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._sock = None
        for future in (*(asked.reply for asked in self._pending.values()), self._ready):
            if future is not None and not future.done():
                future.set_exception(Unavailable(f"The {self._module} has ended."))
                future.exception()  # seen: those who asked may have gone

    def _give_up(self) -> None:
        """It may be stopped or stuck: without this, everyone who comes would wait for it in turn."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._lost()

    async def drain(self) -> None:
        """Wait until nothing that was asked is unanswered. Nobody asks any more."""
        for _ in range(_IN_FLIGHT):
            await self._slots.acquire()  # behind who waits for one already
        for _ in range(_IN_FLIGHT):
            self._slots.release()

    async def close(self) -> None:
        """End the process. Rooms that it made live on."""
        await self._stop()

    async def _stop(self) -> str:
        """End the process; what it wrote to its standard error."""
        self._lost()
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen, whether or not anybody waited for it
        process, self._process = self._process, None
        if process is None or process.stderr is None:
            return ""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        said = b""
        with contextlib.suppress(TimeoutError):  # what it left behind may hold the other end
            said = await asyncio.wait_for(process.stderr.read(_STDERR_LIMIT), _LAST_WORDS_S)
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class Standing:
    """A helper that is there when it is asked for: started by the first who does, and anew when it has ended."""

    def __init__(self, module: str, start: Callable[[str], Helper] = Helper) -> None:
        self._module = module
        self._new = start
        self._helper: Helper | None = None
        self._starting = asyncio.Lock()  # one for all who find it gone

    async def get(self) -> Helper:
        """Raises Unavailable with what it said."""
        async with self._starting:
            if self._helper is None or not self._helper.alive:
                await self.close()
                helper = self._new(self._module)
                await helper.start()
                self._helper = helper
            return self._helper

    async def close(self) -> None:
        """End the process. What it made lives on."""
        helper, self._helper = self._helper, None
        if helper is not None:
            await helper.close()
