"""process.Process of envd: programs of the room by remote call."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import AsyncIterator

from roost.guest.http1 import Head
from roost.guest.sandbox.audience import MAX_FOLLOWERS, Follower
from roost.guest.sandbox.caller import keepalive_of, user_of
from roost.guest.sandbox.connect import Code, ConnectError, InputMethod, Stream, StreamMethod, UnaryMethod, timeout_of
from roost.guest.sandbox.ends import Size
from roost.guest.sandbox.identities import Identities
from roost.guest.sandbox.messages import Message
from roost.guest.sandbox.paths import BadPath, resolve
from roost.guest.sandbox.processes import (
    KEEPALIVE_EVENT,
    Order,
    Process,
    ProcessTable,
    TooManyProcesses,
    start_event,
)
from roost.guest.sandbox.spawn import Program, StartError

#: The room has no process, descriptor or memory left.
_EXHAUSTED = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_SIGNALS: dict[str | int, signal.Signals] = {
    "SIGNAL_SIGTERM": signal.SIGTERM,
    "SIGNAL_SIGKILL": signal.SIGKILL,
    15: signal.SIGTERM,
    9: signal.SIGKILL,
}


class ProcessService:
    """Programs run with the rights of the user that the call names. One outlives the call that started it."""

    def __init__(self, identities: Identities, table: ProcessTable) -> None:
        self._identities = identities
        self._table = table
        self.unary: dict[str, UnaryMethod] = {
            "List": self.list,
            "Update": self.update,
            "SendInput": self.send_input,
            "SendSignal": self.send_signal,
            "CloseStdin": self.close_stdin,
        }
        self.streams: dict[str, StreamMethod] = {"Start": self.start, "Connect": self.connect}
        self.inputs: dict[str, InputMethod] = {"StreamInput": self.stream_input}

    async def start(self, request: Message, stream: Stream) -> None:
        order = self._order(request, stream.head)
        try:
            process = self._table.start(order, timeout_of(stream.head))
            with process.followed() as follower:
                await stream.send(start_event(process.pid))
                await _follow(follower, stream)
        except TooManyProcesses as error:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, str(error)) from None
        except StartError as error:
            shown = " ".join(order.program.argv)[:500]
            if error.errno in _EXHAUSTED:
                text = f"the sandbox has no process, descriptor or memory left for '{shown}': {error}"
                raise ConnectError(Code.RESOURCE_EXHAUSTED, text) from None
            raise ConnectError(Code.INVALID_ARGUMENT, f"error starting process '{shown}': {error}") from None

    async def connect(self, request: Message, stream: Stream) -> None:
        selector = request.message("process")
        process = self._find(selector)
        if process is None:
            await self._tell_end(selector, stream)
            return
        if process.followers >= MAX_FOLLOWERS:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, f"process {process.pid} has {MAX_FOLLOWERS} clients already")
        with process.followed() as follower:
            await stream.send(start_event(process.pid))
            await _follow(follower, stream)

    async def list(self, request: Message, head: Head) -> bytes:
        return b'{"processes":[' + b",".join(_shown(process) for process in self._table) + b"]}"

    async def update(self, request: Message, head: Head) -> bytes:
        process = self._get(request)
        if request.has("pty"):
            try:
                process.resize(_size(request))
            except OSError as error:
                raise ConnectError(Code.INTERNAL, f"error resizing tty: {error}") from None
        return b"{}"

    async def send_input(self, request: Message, head: Head) -> bytes:
        await _write(self._get(request), request.message("input"))
        return b"{}"

    async def stream_input(self, messages: AsyncIterator[Message]) -> bytes:
        process: Process | None = None
        async for message in messages:
            if message.has("start"):
                process = self._get(message.message("start"))
            elif message.has("data"):
                if process is None:
                    raise ConnectError(Code.INVALID_ARGUMENT, "the first event of an input stream must be its start")
                await _write(process, message.message("data").message("input"))
            elif not message.has("keepalive"):
                raise ConnectError(Code.UNIMPLEMENTED, "invalid event type")
        return b"{}"

    async def send_signal(self, request: Message, head: Head) -> bytes:
        process = self._get(request)
        number = _SIGNALS.get(request.enum("signal"))
        if number is None:
            raise ConnectError(Code.UNIMPLEMENTED, f"invalid signal: {request.enum('signal') or 'SIGNAL_UNSPECIFIED'}")
        process.signal(number)
        return b"{}"

    async def close_stdin(self, request: Message, head: Head) -> bytes:
        process = self._get(request)
        if process.has_terminal:
            raise ConnectError(
                Code.UNKNOWN, "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) instead"
            )
        process.close_stdin()
        return b"{}"

    def _order(self, request: Message, head: Head) -> Order:
        user = user_of(head, self._identities)
        config = request.message("process")
        cmd, args, envs = config.text("cmd"), config.texts("args"), config.text_map("envs")
        try:
            cwd = resolve(config.text("cwd"), user, self._identities.workdir)
        except BadPath as error:
            raise ConnectError(Code.INVALID_ARGUMENT, str(error)) from None
        if not cmd or any(not name or "=" in name for name in envs):
            raise ConnectError(Code.INVALID_ARGUMENT, "a command, or the name of an environment variable, is missing")
        env = self._identities.environment(user) | envs
        shown: dict[str, object] = {"cmd": cmd, "args": args, "envs": envs}
        if config.has("cwd"):
            shown["cwd"] = config.text("cwd")
        return Order(
            program=Program(argv=(cmd, *args), env=env, cwd=cwd, user=user),
            shown=json.dumps(shown).encode(),
            tag=request.text("tag") if request.has("tag") else None,
            size=_size(request) if request.has("pty") else None,
            stdin=request.flag("stdin", True),
        )

    def _get(self, request: Message) -> Process:
        selector = request.message("process")
        process = self._find(selector)
        if process is None:
            raise _missing(selector)
        return process

    def _find(self, selector: Message) -> Process | None:
        if selector.has("pid"):
            return self._table.by_pid(selector.unsigned("pid"))
        if selector.has("tag"):
            return self._table.by_tag(selector.text("tag"))
        raise ConnectError(Code.UNIMPLEMENTED, "a process is selected by its pid or its tag")

    async def _tell_end(self, selector: Message, stream: Stream) -> None:
        """Of a program that ended while nobody followed it."""
        known = self._table.end_of(
            pid=selector.unsigned("pid") if selector.has("pid") else None,
            tag=selector.text("tag") if selector.has("tag") else None,
        )
        if known is None:
            raise _missing(selector)
        pid, event = known
        await stream.send(start_event(pid), event)


async def _follow(follower: Follower, stream: Stream) -> None:
    patience_s = keepalive_of(stream.head)
    while (events := await follower.take(patience_s)) is not None:
        await stream.send(*events or (KEEPALIVE_EVENT,))


async def _write(process: Process, given: Message) -> None:
    kind = "pty" if given.has("pty") else "stdin"
    if not given.has(kind):
        raise ConnectError(Code.UNIMPLEMENTED, "invalid input type")
    try:
        if kind == "pty" and not process.has_terminal:
            raise OSError("tty not assigned to process — input should be written to the stdin, not the tty")
        if kind == "stdin" and process.has_terminal:
            raise OSError("tty assigned to process — input should be written to the pty, not the stdin")
        await process.write(given.data(kind))
    except OSError as error:
        where = "tty" if kind == "pty" else "stdin"
        raise ConnectError(Code.INTERNAL, f"error writing to {where}: {error.strerror or error}") from None


def _size(request: Message) -> Size:
    size = request.message("pty").message("size")
    return Size(columns=size.unsigned("cols"), rows=size.unsigned("rows"))


def _shown(process: Process) -> bytes:
    tag = b"" if process.tag is None else b',"tag":' + json.dumps(process.tag).encode()
    return b'{"config":%b,"pid":%d%b}' % (process.shown, process.pid, tag)


def _missing(selector: Message) -> ConnectError:
    what = f"pid {selector.unsigned('pid')}" if selector.has("pid") else f"tag {selector.text('tag')}"
    return ConnectError(Code.NOT_FOUND, f"process with {what} not found")
