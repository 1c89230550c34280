"""Copies of the whole room, on the side of the room's first process: what it is asked for, step by step.

The server asks on a socket of its own, with a directory in which the copy of the memory is to be. The room gets ready
(see `roost.guest.passed`), lets go of its connections and stands still; then runsc stops all its processes and writes
them down. They stay stopped while the server copies their files, until it says so, has gone, or takes too long.
Whatever fails, the room goes on. What the room says is hostile; it may be late, or say nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from dataclasses import dataclass, field
from enum import Enum, auto

from roost.isolation.gvisor.oci import Kernel, command_line
from roost.isolation.namespaces import wire

#: Words of the channel, as in `roost.guest.passed`.
HOLD, STOP, GO, NEW = b"h", b"s", b"g", b"n"
READY, STILL = b"r", b"q"
WORD = 4096

_READY_S = 25.0  # longer than the room waits for its cells
_STILL_S = 5.0
_TOOL_S = 10.0
_WRITE_S = 120.0
_COPY_S = 90.0  # longer than the server takes for the files
_RESUMES = 12  # what is being written down may have to come to its end
_IMAGE = 10
_SAID = 2000


class Step(Enum):
    IDLE = auto()
    READYING = auto()
    STOPPING = auto()
    COPIED = auto()


@dataclass
class Copying:
    """`asks` is where the server connects, `channel` the way to the room."""

    kernel: Kernel
    asks: socket.socket
    channel: socket.socket
    _step: Step = Step.IDLE
    _server: socket.socket | None = None
    _image: int = -1
    _number: int = 0
    _told: str = "[]"  # what the copy will lack
    _until: float = 0.0
    _words: list[bytes] = field(default_factory=list)  # that the channel has not taken yet

    def __post_init__(self) -> None:
        self.asks.setblocking(False)

    @property
    def under_way(self) -> bool:
        return self._step is not Step.IDLE or bool(self._words)

    @property
    def may_pass(self) -> bool:
        """Whether connections may go into the room."""
        return self._step in (Step.IDLE, Step.READYING) and not self._words

    def hear(self, word: bytes) -> None:
        """What the room says."""
        if word[1:2] != self._name or not self.under_way:
            return
        if word[:1] == READY and self._step is Step.READYING:
            self._told = word[2:_SAID].decode(errors="replace")
            self._next(Step.STOPPING, _STILL_S, STOP)
        elif word[:1] == STILL and self._step is Step.STOPPING:
            self._copy()

    def go_on(self, asked: bool) -> None:
        """Called again and again: `asked`, when somebody connects."""
        self._speak()
        if self._step is Step.IDLE:
            if asked:
                self._begin()
            return
        if self._said_by_server():
            self._end()
        elif time.monotonic() >= self._until:
            self._end("it took too long" if self._step is Step.COPIED else "the room does not get ready to be copied")

    @property
    def _name(self) -> bytes:
        return bytes([self._number])

    def _next(self, step: Step, seconds: float, word: bytes = b"") -> None:
        self._step, self._until = step, time.monotonic() + seconds
        if word:
            self._words.append(word + self._name)
            self._speak()

    def _speak(self) -> None:
        while self._words:
            try:
                self.channel.send(self._words[0])
            except BlockingIOError:  # connections are on their way in
                return
            self._words.pop(0)

    def _begin(self) -> None:
        try:
            server, _ = self.asks.accept()
        except OSError:
            return
        server.settimeout(_TOOL_S)
        try:
            received = wire.receive(server)
        except (OSError, ValueError):
            received = None
        if received is None or len(received[1]) != 1:
            server.close()
            return
        server.setblocking(False)
        self._server, self._image = server, received[1][0]
        self._number = (self._number + 1) % 256
        self._next(Step.READYING, _READY_S, HOLD)

    def _copy(self) -> None:
        """All its processes are stopped when this returns, or it is over."""
        self._step = Step.COPIED
        failed = self._run("pause", _TOOL_S) or self._run("checkpoint", _WRITE_S)
        if failed:
            self._end(failed)
            return
        self._answer({"lost": self._told})
        self._next(Step.COPIED, _COPY_S)

    def _end(self, error: str = "") -> None:
        """The room goes on, whatever came before."""
        if error:
            self._answer({"error": error})
        if self._step is Step.COPIED:
            for _ in range(_RESUMES):
                if not self._run("resume", _TOOL_S):
                    break
            else:
                os._exit(1)  # it would stand still for good
        self._next(Step.IDLE, 0.0, GO)
        if self._server is not None:
            self._server.close()
            self._server = None
        os.close(self._image)

    def _answer(self, message: dict[str, str]) -> None:
        if self._server is not None:
            with contextlib.suppress(OSError):
                wire.send(self._server, dict(message))

    def _said_by_server(self) -> bool:
        """It says one thing: that it is done. Or it has gone."""
        if self._server is None:
            return True
        try:
            self._server.recv(16)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _run(self, verb: str, seconds: float) -> str:
        """Have runsc do it; what went wrong, or nothing."""
        printed, prints = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        given = [(null, 0), (prints, 1), (prints, 2), (self._image, _IMAGE)]
        command = command_line(self.kernel, verb, _IMAGE if verb == "checkpoint" else -1)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in given]
            pid = os.posix_spawn(command[0], command, {"PATH": "/"}, file_actions=actions)
        except OSError as error:
            os.close(printed)
            return f"runsc {verb}: {error.strerror}"
        finally:
            os.close(prints)
            os.close(null)
        os.set_blocking(printed, False)
        said, process, until = b"", os.pidfd_open(pid), time.monotonic() + seconds
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.register(printed, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            ready = dict(poll.poll(left * 1000))
            if printed in ready:
                part = os.read(printed, _SAID)
                said = (said + part)[:_SAID]  # the reason comes first, then where the kernel was
                if not part:
                    poll.unregister(printed)
            elif process in ready:
                break
        else:
            os.kill(pid, signal.SIGKILL)
            said = b"it took too long"
        os.close(process)
        os.close(printed)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return ""
        reason = (said.decode(errors="replace").strip().splitlines() or [f"it ended with {code}"])[0]
        return f"runsc {verb}: {reason}"[:500]
