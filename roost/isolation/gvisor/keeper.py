"""The room's first process, outside of gVisor: it starts runsc, and passes connections into the room one by one.

gVisor's kernel can't accept on a socket of the host's, but it takes connected sockets that are passed to it. So this
process accepts on guest.sock and app.sock and passes what it accepted; no byte of a connection goes through it. It is
PID 1 of the room's pid namespace: its end is the end of runsc and all that this has started, and the other way round.

What the room may do to it is to be slow: then connections wait, in the backlog of the socket, as for any guest. It
reads words from the room: that it is up, with what runsc prints until then; and those of `copying`.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from roost.isolation.gvisor.copying import NEW, WORD, Copying
from roost.isolation.gvisor.oci import PID_FILE, Kernel, command_line
from roost.isolation.namespaces.request import ENTERED

_GUEST, _APP, _COPIES, _IMAGE, _STATUS = 3, 4, 5, 6, (1, 2)  # descriptors that it is made with
_PASSED_IMAGE = 10  # where runsc finds it
_SAID_LIMIT = 4096
_BUFFER = 8192  # of a channel: a few connections on their way in, others wait in the backlog
_PAUSE_MS = 50
_STEP_MS = 5  # between looks at what the server says while the room is copied


class Passage:
    """From a listening socket into the room."""

    def __init__(self, listener: socket.socket, channel: socket.socket) -> None:
        self.listener = listener
        self.channel = channel
        self._held: socket.socket | None = None
        listener.setblocking(False)
        channel.setblocking(False)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    @property
    def full(self) -> bool:
        """Whether a connection waits for the room to take earlier ones."""
        return self._held is not None

    def pass_on(self) -> None:
        """Pass what there is. Raises OSError when the room has closed its end."""
        while True:
            if self._held is None:
                try:
                    self._held, _ = self.listener.accept()
                except OSError:  # there is none, or it has gone again
                    return
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self._held.fileno()]))]
            try:
                self.channel.sendmsg([b"c"], rights, socket.MSG_NOSIGNAL)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except OSError:  # too many on their way
                return
            self._held.close()
            self._held = None


def keep(kernel: dict[str, Any], *, restored: bool) -> NoReturn:
    """Run the room, anew or as the copy that it is given. The status pipe says that it is up, or why it is not."""
    code = 1
    with contextlib.suppress(OSError):
        code = _serve(Kernel(flags=tuple(kernel["flags"]), command=tuple(kernel["command"])), restored)
    os._exit(code)


def _serve(kernel: Kernel, restored: bool) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of PID 1 nobody asks to end
    passages, ends = [], []
    for number in (_GUEST, _APP):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        passages.append(Passage(socket.socket(fileno=number), ours))
        ends.append(theirs)
    copying = Copying(kernel, socket.socket(fileno=_COPIES), passages[-1].channel)
    printed, prints = os.pipe()
    given = [*(end.fileno() for end in ends), prints]
    actions: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(given)]
    command = command_line(kernel, "run")
    if restored:
        actions.append((os.POSIX_SPAWN_DUP2, _IMAGE, _PASSED_IMAGE))
        command = command_line(kernel, "restore", _PASSED_IMAGE)
        passages[-1].channel.send(NEW)
    pid = os.posix_spawn(command[0], command, {"PATH": "/"}, file_actions=actions)
    for end in ends:
        end.close()
    os.close(prints)
    if restored:
        os.close(_IMAGE)
    pid = Keeping(pid, printed, passages, copying, restored=restored).until_it_ends()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF


class Keeping:
    """One room's life. `pid` is of what was started, and `printed` what that says."""

    def __init__(
        self, pid: int, printed: int, passages: Sequence[Passage], copying: Copying, *, restored: bool
    ) -> None:
        self._pid = pid
        self._process = os.pidfd_open(pid)
        self._printed = printed
        self._passages = passages
        self._app = passages[-1].channel
        self._copying = copying
        self._restored = restored
        self._said = b""
        self._up = False
        self._poll = select.poll()
        for fd in (self._process, printed, self._app):
            self._poll.register(fd, select.POLLIN)

    def until_it_ends(self) -> int:
        """The number of the process that has ended, and is to be waited for."""
        while True:
            ready = self._ready()
            if self._printed in ready:
                self._read()
            if self._app.fileno() in ready:
                self._hear()
            if self._process in ready and not self._follow():
                if not self._up:
                    lines = self._said.decode(errors="replace").strip().splitlines()
                    os.write(_STATUS[1], f"gVisor: {(lines or ['it ended without a word'])[-1]}".encode())
                return self._pid
            if self._up:
                self._copying.go_on(self._copying.asks.fileno() in ready)
            for passage in self._passages:
                if self._copying.may_pass and (passage.full or passage.listener.fileno() in ready):
                    passage.pass_on()

    def _ready(self) -> dict[int, int]:
        copying, full = self._copying.under_way, False
        for passage in self._passages:
            full = full or passage.full
            self._poll.register(passage.listener, 0 if passage.full or not self._copying.may_pass else select.POLLIN)
        self._poll.register(self._copying.asks, 0 if copying else select.POLLIN)
        return dict(self._poll.poll(_STEP_MS if copying else _PAUSE_MS if full else None))

    def _read(self) -> None:
        part = os.read(self._printed, _SAID_LIMIT)
        self._said = b"" if self._up else (self._said + part)[-_SAID_LIMIT:]
        if not part:
            self._poll.unregister(self._printed)

    def _hear(self) -> None:
        try:
            word = self._app.recv(WORD)
        except OSError:
            word = b""
        if not word:
            self._poll.unregister(self._app)  # it has closed its end, and says no more
        elif self._up:
            self._copying.hear(word)
        else:
            self._up = True
            _point_status_nowhere()

    def _follow(self) -> bool:
        """What `restore` has left is this process' child now: watch that. False if there is nothing to follow."""
        restored, self._restored = self._restored, False
        if not restored:
            return False
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        try:
            left = int(Path(PID_FILE).read_text())
            process = os.pidfd_open(left)
        except (OSError, ValueError):
            return False
        os.waitpid(self._pid, 0)
        self._poll.unregister(self._process)
        os.close(self._process)
        self._pid, self._process = left, process
        self._poll.register(process, select.POLLIN)
        return True


def _point_status_nowhere() -> None:
    os.write(_STATUS[0], ENTERED)
    null = os.open("/dev/null", os.O_RDWR)
    for number in _STATUS:
        os.dup2(null, number)
    os.close(null)
