"""The programs that clients have started: one object each, and the table of all."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from roost.guest.reaping import wait
from roost.guest.sandbox import spawn
from roost.guest.sandbox.audience import Audience, Follower
from roost.guest.sandbox.connect import envelope
from roost.guest.sandbox.deadlines import Deadline
from roost.guest.sandbox.endings import Ending, ending_of
from roost.guest.sandbox.ends import Size, open_ends, set_size
from roost.guest.sandbox.pipes import Sink, Source
from roost.guest.sandbox.spawn import Program

PIPE_CHUNK = 32 << 10
TERMINAL_CHUNK = 16 << 10
#: How much of a killed program's output is still read: what its pipe can hold.
LAST_OUTPUT = 64 << 10
MAX_PROCESSES = 1000
#: Between looks at whether a terminal whose program has exited has anything left to be read.
HANG_UP_S = 0.1
#: How long the end of a program is remembered for those who ask for it late, and of how many.
RETAIN_S = 30.0
MAX_RETAINED = 1000


class TooManyProcesses(Exception):
    """The table is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a client wants started. `shown` is what the table tells about it, in JSON."""

    program: Program
    shown: bytes
    tag: str | None = None
    size: Size | None = None  # of a terminal, instead of pipes
    stdin: bool = True


class Process:
    """A running program, from its start until its last output has been read and it has been reaped."""

    def __init__(self, order: Order, child: spawn.Child, on_end: Callable[[Process, bytes], None]) -> None:
        self.pid = child.pid
        self.tag = order.tag
        self.shown = order.shown
        self._child = child
        self._on_end = on_end
        self._audience = Audience(self._on_pace)
        self._sources: list[Source] = []
        self._stdin: Sink | None = None
        self._terminal: int | None = None
        self._killed = False
        self._ended = False
        self._deadline: Deadline | None = None

    def run(self, outputs: dict[str, int], stdin: int | None, terminal: int | None, timeout: float | None) -> None:
        """From here on the descriptors are its own. After `timeout` seconds the program is killed."""
        loop = asyncio.get_running_loop()
        chunk = PIPE_CHUNK if terminal is None else TERMINAL_CHUNK
        self._terminal = terminal
        self._stdin = Sink(stdin) if stdin is not None else None
        for name, fd in outputs.items():
            head = f'{{"event":{{"data":{{"{name}":"'.encode()
            self._sources.append(Source(fd, chunk, partial(self._deliver, head), self._settle))
        loop.add_reader(self._child.ended, self._settle)
        if timeout is not None:
            self._deadline = Deadline(timeout, partial(self.signal, signal.SIGKILL), call_later=loop.call_later)

    @property
    def has_terminal(self) -> bool:
        return self._terminal is not None

    @property
    def followers(self) -> int:
        return len(self._audience)

    @contextlib.contextmanager
    def followed(self) -> Iterator[Follower]:
        follower = self._audience.join()
        try:
            yield follower
        finally:
            follower.leave()

    def signal(self, number: int) -> None:
        """To the program and its children. Who then still holds its output open does not keep it from ending."""
        self._killed = True
        spawn.signal_group(self.pid, number)
        self._settle()

    async def write(self, data: bytes) -> None:
        """OSError if it has no input any more, or reads none."""
        if self._stdin is None or not self._stdin.is_open:
            raise OSError("stdin not enabled or closed")
        await self._stdin.write(data)

    def close_stdin(self) -> None:
        if self._stdin is not None:
            self._stdin.close()

    def resize(self, size: Size) -> None:
        if self._terminal is None:
            raise OSError("tty not assigned to process")
        set_size(self._terminal, size)

    def _deliver(self, head: bytes, data: bytes) -> None:
        if len(self._audience):
            self._audience.tell(envelope(head + base64.b64encode(data) + b'"}}}'))

    def _on_pace(self, reading: bool) -> None:
        for source in self._sources:
            source.allow(reading)

    def _settle(self) -> None:
        """It has ended when it has exited and its output is read to the end, or it was killed."""
        if self._ended:
            return
        if not self._killed and any(source.is_open for source in self._sources):
            # An exit makes the descriptor readable for good. The end of the output will call again.
            if spawn.exit_status(self.pid) is not None:
                asyncio.get_running_loop().remove_reader(self._child.ended)
                if self.has_terminal:
                    asyncio.get_running_loop().call_later(HANG_UP_S, self._await_hang_up)
            return
        status = spawn.exit_status(self.pid)
        if status is None:
            return
        self._ended = True
        for source in self._sources:
            source.drain(LAST_OUTPUT)
            source.close()
        self._release()
        event = end_event(ending_of(*status))
        self._audience.tell(event)
        self._audience.end()
        self._on_end(self, event)

    def _await_hang_up(self) -> None:
        """With its session's leader a terminal ends; a kernel that does not say so, as gVisor's, is not waited for."""
        if self._ended:
            return
        if all(source.is_silent for source in self._sources):
            self._killed = True
            self._settle()
        else:
            asyncio.get_running_loop().call_later(HANG_UP_S, self._await_hang_up)

    def _release(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.close_stdin()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        asyncio.get_running_loop().remove_reader(self._child.ended)
        os.close(self._child.ended)
        wait(self.pid)


class ProcessTable:
    """All programs that run for clients, by number and by tag, and for a while the ends of those that did."""

    def __init__(self) -> None:
        self._running: dict[int, Process] = {}
        self._ended: dict[int, tuple[str | None, bytes]] = {}

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._running.values()))

    def by_pid(self, pid: int) -> Process | None:
        return self._running.get(pid)

    def by_tag(self, tag: str) -> Process | None:
        return next((process for process in self._running.values() if process.tag == tag), None)

    def end_of(self, *, pid: int | None, tag: str | None) -> tuple[int, bytes] | None:
        """(pid, event) of one that has ended lately."""
        for number, (its_tag, event) in self._ended.items():
            if number == pid or (tag is not None and its_tag == tag):
                return number, event
        return None

    def start(self, order: Order, timeout: float | None) -> Process:
        """Raises StartError and TooManyProcesses. Nothing of its output is lost for who follows it at once."""
        if len(self._running) >= MAX_PROCESSES:
            raise TooManyProcesses(f"there are {MAX_PROCESSES} processes already")
        with contextlib.ExitStack() as undo:
            ends = open_ends(order.program.argv[0], order.size, order.stdin, undo)
            child = spawn.start(order.program, ends.stdio, ends.slave)
            undo.pop_all()
        for fd in set(ends.stdio):
            os.close(fd)
        process = Process(order, child, self._on_end)
        self._running[child.pid] = process
        self._forget(child.pid, order.tag)
        process.run(ends.outputs, ends.stdin, ends.terminal, timeout)
        return process

    def _on_end(self, process: Process, event: bytes) -> None:
        if self._running.get(process.pid) is process:
            del self._running[process.pid]
        kept = (process.tag, event)
        self._ended[process.pid] = kept
        if len(self._ended) > MAX_RETAINED:
            del self._ended[next(iter(self._ended))]
        asyncio.get_running_loop().call_later(RETAIN_S, self._expire, process.pid, kept)

    def _expire(self, pid: int, kept: tuple[str | None, bytes]) -> None:
        if self._ended.get(pid) is kept:
            del self._ended[pid]

    def _forget(self, pid: int, tag: str | None) -> None:
        """A new program has taken the number or the tag: nobody who asks for it means the old one."""
        for number, (its_tag, _) in list(self._ended.items()):
            if number == pid or (tag is not None and its_tag == tag):
                del self._ended[number]


def start_event(pid: int) -> bytes:
    return envelope(b'{"event":{"start":{"pid":%d}}}' % pid)


def end_event(ending: Ending) -> bytes:
    end: dict[str, object] = {"exitCode": ending.code, "exited": ending.exited, "status": ending.status}
    if ending.error is not None:
        end["error"] = ending.error
    return envelope(json.dumps({"event": {"end": end}}).encode())


KEEPALIVE_EVENT = envelope(b'{"event":{"keepalive":{}}}')
