"""The host's end of the control connection to a guest. What the guest says is hostile input: parsed, typed, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.isolation.pace import Pace
from roost.model.errors import Fault, InitializerFailed, InstanceExited, RoostError, Unavailable

LINE_LIMIT = 1 << 20
_STACK_LINES = 100
#: A guest that floods the connection gets this many lines handled, then others get their turn.
_LINES_A_TURN = 64
#: Of this process' time, what one connection's messages may take up: in the long run, and at once. A function's output
#: at its full rate takes half of that share; what is over waits in the room.
_SHARE = 0.1
_BURST_S = 0.1


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """How the worker ended by itself; one of the two is set."""

    code: int | None
    signal: int | None


class GuestLink:
    """One guest's control connection. `on_log(stream, text)` and `on_exit(WorkerExit)` are called in order.

    `on_lost` is called when the guest's end is closed, or what came was no protocol; not after `close`.
    """

    def __init__(
        self,
        socket: Path,
        *,
        on_log: Callable[[str, str], None],
        on_exit: Callable[[WorkerExit], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._on_log = on_log
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._writer: asyncio.StreamWriter | None = None
        self._reader_task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[float] | None = None
        self._pre_stopped = asyncio.Event()

    async def open(self) -> None:
        """Connect. Raises Unavailable when nobody listens (the room is gone)."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=LINE_LIMIT)
        except OSError as error:
            raise Unavailable(f"The guest of the instance can't be reached: {error.strerror}.") from error
        self._writer = writer
        writer.write(b"control\n")
        self._reader_task = asyncio.create_task(self._read(reader))

    async def start(self, configuration: Mapping[str, Any], timeout: float) -> float:
        """Send `start`, wait for the guest's answer. Returns the initializer's time in ms.

        Raises InitializerFailed, InstanceExited, Unavailable (no answer in `timeout` seconds).
        """
        return await self._ask_ready({"op": "start", **configuration}, timeout)

    async def attach(self, timeout: float) -> None:
        """After a restart of the server: learn the guest's present state. Raises as `start`."""
        await self._ask_ready({"op": "attach"}, timeout)

    async def restart(self, timeout: float) -> None:
        """Replace the worker and everything it started. Raises as `start`."""
        await self._ask_ready({"op": "restart"}, timeout)

    async def pre_stop(self, timeout: float) -> None:
        """Run the pre-stop hook; returns after `timeout` seconds at the latest, sooner if the guest has gone."""
        if self._lost():
            return
        self._pre_stopped.clear()
        self._send({"op": "pre_stop"})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pre_stopped.wait(), timeout)

    async def close(self) -> None:
        """Close the connection. Log lines that were already received have been delivered."""
        if self._reader_task is not None:
            self._reader_task.cancel()
            await asyncio.gather(self._reader_task, return_exceptions=True)
        if self._writer is not None:
            # Not `close`: that waits for a guest that does not read what was sent.
            self._writer.transport.abort()

    def broken(self, error: RoostError) -> None:
        """The room has ended: fail whoever waits for the guest's answer."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)

    async def drained(self, timeout: float) -> None:
        """Wait until the guest has closed its end: after the room's death, all it had logged has arrived then."""
        if self._reader_task is not None:
            await asyncio.wait([self._reader_task], timeout=timeout)

    async def _ask_ready(self, message: Mapping[str, Any], timeout: float) -> float:
        if self._lost():
            raise Unavailable("The guest closed its control connection.")
        self._ready = asyncio.get_running_loop().create_future()
        self._send(message)
        try:
            return await asyncio.wait_for(self._ready, timeout)
        except TimeoutError:
            raise Unavailable(f"The instance was not ready within {timeout:g} seconds.") from None

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _lost(self) -> bool:
        return self._reader_task is None or self._reader_task.done()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        # A line over the limit (ValueError) or a dead peer end the connection; the room's own end is seen elsewhere.
        with contextlib.suppress(ConnectionError, ValueError):
            clock = time.monotonic  # the loop's own stands still meanwhile
            pace = Pace(share=_SHARE, burst=_BURST_S)
            lines = 0
            while line := await reader.readline():
                began = clock()
                self._receive(line)
                lines += 1
                pause = pace.spend(began, clock())
                if pause or lines % _LINES_A_TURN == 0:
                    await asyncio.sleep(pause)
        self.broken(Unavailable("The guest closed its control connection."))
        self._pre_stopped.set()
        self._on_lost()

    def _receive(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        event = message.get("event")
        if event == "log":
            stream = "stderr" if message.get("stream") == "stderr" else "stdout"
            self._on_log(stream, _text(message.get("text")))
        elif event == "ready":
            self._answer(_number(message.get("init_ms")))
        elif event == "failed":
            self.broken(InitializerFailed(parse_fault(message.get("error"))))
        elif event == "exited":
            self._exited(WorkerExit(code=_whole(message.get("code")), signal=_whole(message.get("signal"))))
        elif event == "pre_stopped":
            self._pre_stopped.set()

    def _answer(self, init_ms: float) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(init_ms)

    def _exited(self, how: WorkerExit) -> None:
        self._on_exit(how)
        self.broken(exit_error(how))


def exit_error(how: WorkerExit, *, memory_mb: int = 0) -> InstanceExited:
    """What requests that it served are told. `memory_mb`: its limit, if the kernel ended something for that. Pure."""
    if memory_mb:
        text = f"The function ran out of memory: its limit is {memory_mb} MB."
        return InstanceExited(Fault(type="OutOfMemory", message=text))
    if how.signal is not None:
        text = f"The function's process was ended by signal {how.signal}."
    else:
        text = f"The function's process exited with code {how.code if how.code is not None else 'unknown'}."
    return InstanceExited(Fault(type="InstanceExited", message=text))


def start_error(error: RoostError, *, memory_mb: int = 0) -> RoostError:
    """`error`, or what is behind it: to the guest, a process that the kernel ended for memory is just gone. Pure."""
    if not isinstance(error, InitializerFailed) or not memory_mb:
        return error
    text = f"The function ran out of memory while it started: its limit is {memory_mb} MB."
    return InitializerFailed(Fault(type="OutOfMemory", message=text))


def parse_fault(value: object) -> Fault:
    """A fault that the guest reports, reduced to bounded strings."""
    error = value if isinstance(value, dict) else {}
    stack = error.get("stackTrace")
    lines = tuple(_text(item) for item in stack[:_STACK_LINES]) if isinstance(stack, list) else ()
    return Fault(
        type=_text(error.get("errorType"))[:200] or "InitializerFailed",
        message=_text(error.get("errorMessage"))[:65536] or "The function did not start.",
        stack=lines,
    )


def _text(value: object) -> str:
    """Text that can be encoded: JSON may hold halves of surrogate pairs."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _whole(value: object) -> int | None:
    """An exit code or a signal's number, if it can be one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 256 else None


def _number(value: object) -> float:
    """Milliseconds; 0.0 for what is no such time (JSON's numbers may be of any size)."""
    try:
        number = float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0
    return number if math.isfinite(number) and number >= 0 else 0.0
