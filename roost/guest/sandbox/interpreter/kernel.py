"""The daemon's side of one context process: sends it cells, takes what they show, say and print, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Mapping

from roost.guest.reaping import expect, forget
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.processes import Child, Descriptors
from roost.guest.sandbox.interpreter.sink import Sink

_CHUNK = 1 << 16  # what a pipe holds: one read empties it
_END_S = 1.0  # from the end of a process' connection to its own
_HOLD_S = 10.0  # a context rests when it is told to stand still; what is registered for a fork runs first
_SOON_S, _SOON_TRIES = 0.0001, 5  # from what it says to its wait
_SAID = 2048  # bytes that are kept of what a process says before it takes cells
_LAST_WORDS = 16  # chunks of output that are read of a dead process
#: Between cells, output (of threads, of processes in the background) belongs to nobody. It is taken at this pace.
_IDLE_PAUSE_S = 0.05
STREAMS = ("stdout", "stderr")

Spawn = Callable[[Descriptors], Child]


class KernelEnded(Exception):
    """The process has ended, or is as good as that. The text says how."""


def born(own: Mapping[str, str]) -> bytes:
    """What a copy is told, with variables of its own. Pure."""
    return frames.frame(frames.BORN, json.dumps({"env": dict(own)}).encode())


class Kernel:
    """`start`, then `run` for each cell, one at a time; `close` at last. Making one needs no event loop yet."""

    def __init__(self, spawn: Spawn) -> None:
        """Raises OSError when there can be no process."""
        with contextlib.ExitStack() as undo:
            self._sock, theirs = socket.socketpair()
            undo.callback(self._sock.close)
            undo.callback(theirs.close)
            self._outputs: dict[int, str] = {}  # descriptor: name of the stream
            writers = []
            for name in STREAMS:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                undo.callback(os.close, reader)
                undo.callback(os.close, writer)
                os.set_blocking(reader, False)
                self._outputs[reader] = name
                writers.append(writer)
            self._sock.setblocking(False)
            self._epoll = select.epoll()
            undo.callback(self._epoll.close)
            for fd in (self._sock.fileno(), *self._outputs):
                self._epoll.register(fd, select.EPOLLIN)
            self._child = spawn((theirs.fileno(), writers[0], writers[1]))
            undo.pop_all()
        theirs.close()
        for writer in writers:
            os.close(writer)
        self._begin()

    @classmethod
    def adopt(cls, pid: int, fds: Descriptors, own: Mapping[str, str] | None = None) -> Kernel:
        """Of a process that is a copy of a context and stands still, until it is told that; `own`: variables of its
        own, where it was not told yet. Raises OSError; the process ends then."""
        kernel = cls.__new__(cls)
        with contextlib.ExitStack() as undo:
            expect(pid)
            undo.callback(forget, pid)
            for fd in fds:
                undo.callback(os.close, fd)
                os.set_blocking(fd, False)
            kernel._epoll = select.epoll()
            undo.callback(kernel._epoll.close)
            for fd in fds:
                kernel._epoll.register(fd, select.EPOLLIN)
            kernel._child = Child(pid, live=True)
            undo.pop_all()
        kernel._sock = socket.socket(fileno=fds[0])
        kernel._sock.setblocking(False)
        kernel._outputs = dict(zip(fds[1:], STREAMS, strict=True))
        kernel._begin()
        kernel.adopted = True
        if own is not None:
            with contextlib.suppress(OSError):  # then it is found to have ended
                kernel._sock.send(born(own))
        return kernel

    def _begin(self) -> None:
        self._child.on_end = self._wake
        self._reader = frames.FrameReader()
        self._waiter: asyncio.Future[None] | None = None
        self._watched = False
        self._open = True
        self._busy = False
        self._more = False  # the socket may have more to read
        self.started = False
        self.adopted = False  # a copy: something is in it from the start
        self._holds = 0
        self.next_number = 1

    @property
    def live_pid(self) -> int:
        """Of a process that the host can copy; else 0."""
        return self._child.pid if self._child.live else 0

    async def start(self, timeout_s: float) -> None:
        """Wait until it takes cells. Raises KernelEnded, with the last line that it said."""
        self._loop = asyncio.get_running_loop()
        self._child.watch()
        said = b""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._wait(None)
                    ended = self._has_ended
                    said = (said + self._read_all())[-_SAID:]
                    for kind, payload in self._receive():
                        if kind == frames.READY:
                            self._learn(payload)
                            self.started = True
                            self._watch()
                            return
                        if kind == frames.FAILED:
                            raise KernelEnded(str(json.loads(payload)["error"]))
                    if ended and not self._more:
                        raise ConnectionResetError
        except TimeoutError:
            raise KernelEnded(f"it did not start in {timeout_s:.0f} s") from None
        except OSError:
            reason = await self._await_end()
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise KernelEnded(f"{reason}: {last}" if last else reason) from None
        except (ValueError, KeyError, TypeError):
            raise KernelEnded("it does not keep to the protocol") from None

    async def run(self, cell: bytes, sink: Sink) -> None:
        """Give it a cell and pass on what comes of it, until the cell has ended. Raises KernelEnded."""
        self._busy = True
        try:
            await self._send(cell, sink)
            await self._wait(sink.deadline)
            while not await self._pass_on(sink):
                await sink.flush()
                await self._wait(sink.deadline)
        except frames.BadFrame as error:
            self._child.kill()
            raise KernelEnded(f"it does not keep to the protocol: {error}") from None
        except (BrokenPipeError, ConnectionResetError):
            raise KernelEnded(await self._end(sink)) from None
        finally:
            self._busy = False
        self._watch()

    async def hold(self, *, rests: bool = True) -> None:
        """Between cells: have it stand still, until `release` or `renew`; `rests`: and wait in the kernel by then.

        Raises KernelEnded; one that says why it can't lives on, as does one that is only slow, or stopped.
        """
        self._busy = True
        self._holds += 1
        number = b"%d" % self._holds  # what is said of one that was given up may come late
        try:
            async with asyncio.timeout(_HOLD_S):
                await self._loop.sock_sendall(self._sock, frames.frame(frames.HOLD, number))
                while True:
                    await self._wait(None)
                    ended = self._has_ended
                    self._read_all()  # what threads print now is nobody's
                    if (stays := self._answer_to(number)) is not None:
                        break
                    if ended and not self._more:
                        raise ConnectionResetError
                if rests and not stays:
                    await self._rests()
        except TimeoutError:
            self.release()  # it goes on as soon as it has heard of both
            raise KernelEnded("it did not stand still") from None
        except (OSError, frames.BadFrame):
            self._child.kill()
            raise KernelEnded("it did not stand still") from None
        if stays:
            self._busy = False
            self._watch()
            raise KernelEnded(stays)

    def _answer_to(self, number: bytes) -> str | None:
        """Why it does not stand still, if it says so; "" if it does; None if it has not answered. Raises BadFrame,
        ConnectionResetError."""
        for kind, payload in self._receive():
            if kind in (frames.HELD, frames.STAYS):
                said, _, why = payload.partition(b" ")
                if said == number:
                    return why.decode(errors="replace") if kind == frames.STAYS else ""
        return None

    def _rests_soon(self) -> bool:
        for _ in range(_SOON_TRIES):  # a timer of the loop's would take four times as long
            if self._child.sleeps():
                return True
            time.sleep(_SOON_S)
        return False

    async def _rests(self) -> None:
        """Until it waits: it has said that it soon does. Raises ConnectionResetError."""
        while not self._rests_soon():
            if self._has_ended:
                raise ConnectionResetError
            await asyncio.sleep(_SOON_S)

    def release(self) -> None:
        """It may go on; after `hold`."""
        self._let_go(frames.frame(frames.GO))

    def renew(self, own: Mapping[str, str]) -> None:
        """The same, in a copy of the whole room; `own` are variables of its own."""
        self._let_go(frames.frame(frames.RENEW, json.dumps({"env": dict(own)}).encode()))

    def _let_go(self, word: bytes) -> None:
        self._busy = False
        with contextlib.suppress(OSError):
            self._sock.send(word)
        self._watch()

    def interrupt(self) -> None:
        self._child.interrupt()

    @property
    def alive(self) -> bool:
        return self._open and not self._has_ended

    def close(self) -> None:
        """Kill the process and release what is held for it. A cell that runs raises KernelEnded."""
        if not self._open:
            return
        self._open = False
        self._child.watch()  # it is reaped also if it was never started
        self._child.kill()
        self._unwatch()
        self._wake()
        self._sock.close()
        self._epoll.close()
        for fd in self._outputs:
            os.close(fd)
        self._outputs.clear()

    async def ended(self) -> None:
        """After `close`: wait until the process is reaped."""
        loop = asyncio.get_running_loop()
        while not self._has_ended:
            self._waiter = loop.create_future()
            await self._waiter

    # -- while a cell runs

    async def _send(self, data: bytes, sink: Sink) -> None:
        """Meanwhile what it prints is passed on, so that it can't stand in its own way. Raises KernelEnded, OSError."""
        rest = memoryview(data)
        while rest:
            if not self._open:
                raise KernelEnded("it was ended")
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                self._epoll.modify(self._sock, select.EPOLLIN | select.EPOLLOUT)
                await self._wait(sink.deadline)
                if self._open:
                    self._epoll.modify(self._sock, select.EPOLLIN)
                    self._read_output(sink, self._loop.time())
                    await sink.flush()

    async def _pass_on(self, sink: Sink) -> bool:
        """What has come by now. True at the cell's end."""
        if not self._open:
            raise KernelEnded("it was ended")
        now = self._loop.time()
        ended = self._has_ended
        received = self._receive()  # first: what is in the pipes after this was written before these frames
        self._read_output(sink, now)
        done = False
        for kind, payload in received:
            if kind == frames.DISPLAY:
                sink.result(payload)
                await sink.flush()
                await self._send(frames.frame(frames.ACK), sink)
            elif kind in (frames.RESULT, frames.ERROR):
                sink.result(payload)
            elif kind == frames.DONE:
                self._learn(payload)
                done = True
        sink.release_due(now)
        if ended and not done and not self._more:
            raise KernelEnded(await self._end(sink))
        return done

    def _receive(self) -> list[frames.Frame]:
        """Raises BadFrame, and ConnectionResetError at the end of what a dead process sent."""
        self._more = False
        try:
            data = self._sock.recv(_CHUNK * 4)
        except BlockingIOError:
            return []
        self._more = True
        if not data:
            raise ConnectionResetError
        return self._reader.feed(data)

    def _read_output(self, sink: Sink, now: float) -> bool:
        found = False
        for fd, name in list(self._outputs.items()):
            if data := self._read(fd):
                sink.output(name, data, now)
                found = True
        return found

    def _read_all(self) -> bytes:
        return b"".join([self._read(fd) for fd in list(self._outputs)])

    def _read(self, fd: int) -> bytes:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return b""
        if not data:  # nothing holds the other end any more
            self._epoll.unregister(fd)
            del self._outputs[fd]
            os.close(fd)
        return data

    def _learn(self, payload: bytes) -> None:
        try:
            self.next_number = int(json.loads(payload)["next"])
        except (ValueError, KeyError, TypeError) as error:
            raise frames.BadFrame("no number of the next cell") from error

    @property
    def _has_ended(self) -> bool:
        return self._child.ended

    async def _end(self, sink: Sink) -> str:
        """Pass on its last words; how it ended."""
        for _ in range(_LAST_WORDS):
            if not self._read_output(sink, self._loop.time()):
                break
            await sink.flush()
        return await self._await_end()

    async def _await_end(self) -> str:
        """How it ended, of one that does not answer any more."""
        if not self._open:
            return "it was ended"
        deadline = self._loop.time() + _END_S
        while not self._has_ended and self._loop.time() < deadline:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(deadline, self._wake)
            await self._waiter
            timer.cancel()
        if not self._has_ended:
            self._child.kill()
            return "it closed its connection"
        return self.how_it_ended()

    def how_it_ended(self) -> str:
        """Of one that is not alive."""
        if not self._child.ended:
            return "it was ended"
        if self._child.status is None:
            return "its process ended"
        code = os.waitstatus_to_exitcode(self._child.status)
        if code >= 0:
            return f"its process ended with exit code {code}"
        reason = ", as one does that takes more memory than there is" if code == -9 else ""
        return f"its process was killed by signal {-code}{reason}"

    # -- waiting

    async def _wait(self, until: float | None) -> None:
        """Until something can be read, the process has ended, or the time has come."""
        self._waiter = waiter = self._loop.create_future()
        if self._has_ended or not self._open:
            self._wake()
        else:
            self._watch()
        timer = self._loop.call_at(until, self._wake) if until is not None else None
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _watch(self) -> None:
        if not self._watched and self._open:
            self._loop.add_reader(self._epoll.fileno(), self._on_readable)
            self._watched = True

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._epoll.fileno())
            self._watched = False

    def _on_readable(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            return
        self._unwatch()  # it is read when somebody asks again
        if not self._busy:
            self._discard()

    # -- between cells

    def _discard(self) -> None:
        """Take what comes between cells. A process that ends is noticed by the next cell."""
        if not self._open or self._busy:
            return
        try:
            self._receive()
        except (OSError, frames.BadFrame):
            self._child.kill()
            return
        self._read_all()
        self._loop.call_later(_IDLE_PAUSE_S, self._watch)
