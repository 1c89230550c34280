"""The warm process of a template: it makes a room with one fork for each request of the server.

Runs as root in the root that `launcher` built: python -m roost.isolation.namespaces.zygote SOCKET_FD
It is single-threaded, holds no secret and runs no user code. The first message names the guest's entry point, the
modules to import ahead and the policy of rooms. Each request is answered by `{"id", "pid"}` with a pidfd, or by
`{"id", "error"}`; what happens in the room afterwards, until its guest runs, the server hears by a pipe. A request with
`shadow` is for a process that waits to be held, of which contexts of rooms are copies (see `seeds`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from roost.isolation import linux
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.enter import ZYGOTE_FILES, begin_shadow, enter, execute
from roost.isolation.namespaces.memory_file import map_own_memory
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.request import Request, ShadowRequest
from roost.isolation.namespaces.working_set import WorkingSets


class Zygote:
    """Serves one connection."""

    def __init__(
        self,
        sock: socket.socket,
        policy: RoomPolicy,
        guest: Callable[..., None],
        module: str,
        context: Callable[[int], None] | None = None,
    ) -> None:
        """`guest` is the entry point that `module` has, `context` that of a context, if the template has any."""
        self._sock = sock
        self._policy = policy
        self._guest = guest
        self._module = module
        self._context = context
        self._sets = WorkingSets()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> None:
        """Until the server has gone. Rooms live on."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_read in ready:
                self._reap()
            if self._sock.fileno() in ready and not self._answer():
                return

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 512):
                pass
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitpid(-1, os.WNOHANG)[0]:
                self._sets.ended(ended)

    def _answer(self) -> bool:
        received = wire.receive(self._sock)
        if received is None:
            return False
        message, fds = received
        reply = {"id": message["id"]}
        pidfds: list[int] = []
        try:
            if message.get("shadow"):
                reply |= self._begin_shadow(fds, pidfds)
                return self._told(reply, fds, pidfds)
            request = Request.parse(message, fds)
            # Others fork as soon as they run: what they had ahead would be shared again, and copied twice.
            kind = (request.kept, request.bare) if request.live else None
            pid, pidfd = linux.fork_into(request.cgroup, linux.CLONE_NEWPID)
            if pid == 0:
                _close_all_but(fds)
                ahead = self._sets.of(kind) if kind else []
                strict = request.strict
                enter(request, self._policy, (lambda *_: execute(self._module)) if strict else self._guest, ahead)
            if kind:
                self._sets.began(pid, kind)
            pidfds.append(pidfd)
            reply["pid"] = pid
        except OSError as error:
            reply["error"] = error.strerror
        told = self._told(reply, fds, pidfds)
        self._sets.learn()
        return told

    def _told(self, reply: dict[str, Any], fds: list[int], pidfds: list[int]) -> bool:
        wire.close_all(fds)
        wire.send(self._sock, reply, pidfds)
        wire.close_all(pidfds)
        return True

    def _begin_shadow(self, fds: list[int], pidfds: list[int]) -> dict[str, Any]:
        if self._context is None:
            raise OSError(95, "the template has no contexts")
        tid, robust = linux.thread_addresses()
        pid, pidfd = linux.fork_into(None, 0)
        if pid == 0:
            _close_all_but(fds)
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # each room has its own limit
            begin_shadow(ShadowRequest(waits=fds[0], open_files=most), self._context)
        pidfds.append(pidfd)
        return {"pid": pid, "tid": tid, "robust": robust}


def _close_all_but(fds: list[int]) -> None:
    """A room may wait for long until it is somebody's, and whoever has the other ends of what the zygote holds is to
    see at once that the zygote has ended."""
    begin = 3
    for fd in sorted(fds):
        os.closerange(begin, fd)
        begin = fd + 1
    os.closerange(begin, ZYGOTE_FILES)


def main() -> None:
    linux.set_process_name(b"roost-zygote")
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (ZYGOTE_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    sys.argv = ["roost"]
    received = wire.receive(sock)
    if received is None:
        return
    setup = received[0]
    try:
        guest = importlib.import_module(setup["guest"])
        for name in setup["preload"]:
            importlib.import_module(name)
        getattr(guest, "rehearse", lambda: None)()
    except Exception as error:
        wire.send(sock, {"error": f"{type(error).__name__}: {error}"})
        return
    context = getattr(guest, "entry_of_contexts", lambda: None)()
    zygote = Zygote(sock, RoomPolicy.from_json(setup["policy"]), guest.run, setup["guest"], context)
    wire.send(sock, {"ready": True})
    gc.disable()
    gc.collect()
    gc.freeze()
    original = map_own_memory()
    if original is None:
        linux.use_huge_pages()
    else:
        getattr(guest, "know_original", lambda *_: None)(*original)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        zygote.serve()


if __name__ == "__main__":
    main()
