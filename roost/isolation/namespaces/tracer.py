"""A helper process that holds the shadows of rooms' contexts and copies them. See ARCHITECTURE.md, "Live branches".

Runs as root: python -m roost.isolation.namespaces.tracer SOCKET_FD
The first message is the policy of rooms. Then each request is `{"id", "op", ...}` with descriptors, answered by
`{"id", ...}` or `{"id", "error"}`:

| op | what is told, descriptors | reply |
|---|---|---|
| hold | `pid`, `tid`, `robust`; a pidfd | `shadow` |
| branch | `shadow`, of a frozen room; `keep`: it is to be settled more than once; `cgroup.procs` of where it outlives \
the room | `shadow`, `left`, `process` |
| settle | `shadow`, `last`, the room as `shadows.Place`; pidfd, two cgroups, three of the process, v1 cgroups | \
`shadow`, `pid` within the room |
| drop | `shadow` | |
| alive | `shadows` | `shadows`: those that have not ended |

Of what is kept to be settled again, a copy is made ahead, between requests: most of the time that it takes to settle
one is that of the copy.

A shadow ends with its process, and with its room. When this process ends, all of them do; rooms live on. What a task
made just before something else killed it is held by this process too, which nobody told of it: unless it were ended
here, its room could not end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from roost.isolation import linux
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.tracing import ptrace, shadows, status
from roost.isolation.tracing.tracee import Refused, end
from roost.isolation.tracing.x86_64 import MACHINE

_MOST = 4096  # shadows
_TIME_S = 5.0  # for one request
_MOST_READY = 64
_SETTLING = 6  # descriptors before those of v1's cgroups
_ANY = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | ptrace.WAIT_ALL


class Tracer:
    """Serves one connection."""

    def __init__(self, sock: socket.socket, policy: RoomPolicy) -> None:
        self._sock = sock
        self._policy = shadows.Policy(
            seccomp=policy.seccomp,
            landlock=policy.landlock,
            no_new_privileges=policy.no_new_privileges,
            user_namespace=policy.user_namespace,
        )
        self._filters = 1 if policy.seccomp else 0
        self._shadows: dict[int, shadows.Shadow] = {}
        self._ready: OrderedDict[int, shadows.Shadow] = OrderedDict()  # by what they are copies of
        self._watched: dict[int, int] = {}  # pidfds of shadows and of their processes: number of the shadow
        self._ending: dict[int, shadows.Shadow] = {}  # by pidfd
        self._poll = select.epoll()
        self._next = 1

    def serve(self) -> None:
        """Until the server has gone."""
        self._poll.register(self._sock, select.EPOLLIN)
        stirred = linux.signal_descriptor(signal.SIGCHLD)
        self._poll.register(stirred, select.EPOLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._sock.fileno():
                    if not self._answer():
                        return
                elif fd in self._watched:
                    self._drop(self._watched[fd])
                elif fd in self._ending:
                    self._poll.unregister(fd)
                    self._ending.pop(fd).close()
                    self._end_strangers()
                elif fd == stirred:
                    os.read(stirred, 1 << 10)
                    self._end_strangers()

    def _end_strangers(self) -> None:
        """What has stopped or ended and is none of ours. Behind one of ours it is found when that has been closed."""
        while (found := _stirring()) and not any(found == shadow.tracee.pid for shadow in self._all()):
            end(found)

    def _all(self) -> Iterator[shadows.Shadow]:
        yield from self._shadows.values()
        yield from self._ready.values()
        yield from self._ending.values()

    def _answer(self) -> bool:
        received = wire.receive(self._sock)
        if received is None:
            return False
        message, fds = received
        reply: dict[str, Any] = {}
        try:
            with _in_time():
                reply = self._do(message, fds)
        except Refused as error:
            reply = {"error": str(error)}
        except (OSError, status.Unknown) as error:
            reply = {"error": str(getattr(error, "strerror", None) or error)}
        except Exception as error:  # whatever hostile code has made of its memory: others' contexts live on
            reply = {"error": f"it is not as expected: {error!r}"[:300]}
        finally:
            wire.close_all(fds)
        wire.send(self._sock, {**reply, "id": message["id"]})
        if "shadow" in reply and message["op"] == "branch" and message["keep"]:
            self._prepare(reply["shadow"])
        elif "shadow" in reply and message["op"] == "settle" and not message["last"]:
            self._prepare(message["shadow"])
        return True

    def _prepare(self, number: int) -> None:
        """Have a copy of a branch ready. Without one, it takes longer to settle it."""
        try:
            with _in_time():
                self._ready[number] = shadows.ready(self._shadows[number])
        except (OSError, Refused):
            return
        if len(self._ready) > _MOST_READY:
            self._end(self._ready.popitem(last=False)[1])

    def _do(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if os.uname().machine != MACHINE:
            raise Refused(f"live branches are for {MACHINE}, not for {os.uname().machine}")
        if len(self._shadows) >= _MOST and message["op"] not in ("drop", "alive"):
            raise Refused(f"there are {_MOST} live contexts and branches already")
        match message["op"]:
            case "hold":
                held = shadows.hold(message["pid"], fds[0], message["tid"], message["robust"])
                fds.clear()  # it is the shadow's
                return {"shadow": self._keep(held)}
            case "branch":
                made, left = shadows.branch(self._find(message["shadow"]), self._filters)
                told = {"threads": left.threads, "processes": left.processes, "files": list(left.files)}
                number = self._keep(made)
                try:
                    for fd in fds:
                        os.write(fd, b"%d" % made.tracee.pid)
                except OSError:
                    self._drop(number)
                    raise
                return {"shadow": number, "left": told, "process": made.tracee.pid}
            case "settle":
                return self._settle(message, fds)
            case "alive":
                return {"shadows": [number for number in message["shadows"] if number in self._shadows]}
            case "drop":
                self._drop(message["shadow"])
                return {}
        raise Refused("there is no such request")

    def _settle(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        pidfd, outside, inside, channel, out, err = fds[:_SETTLING]
        place = shadows.Place(
            pid=message["pid"],
            pidfd=pidfd,
            shadows=outside,
            inside=inside,
            joins=tuple(fds[_SETTLING:]),
            capabilities=message["capabilities"],
            base=message["base"],
            open_files=message["open_files"],
        )
        number, last = message["shadow"], message["last"]
        source, ready = self._find(number), self._take_ready(number)
        try:
            made = shadows.settle(
                ready or source, place, (channel, out, err), self._policy, last=last or ready is not None
            )
        finally:
            if ready is not None:
                self._end(ready)
        if last:
            self._drop(number)
        return {"shadow": self._keep(made), "pid": status.read_status(made.resident).room_pid}

    def _take_ready(self, number: int) -> shadows.Shadow | None:
        ready = self._ready.pop(number, None)
        if ready is not None and linux.has_ended(ready.pidfd):  # its room's memory was at its end
            self._end(ready)
            return None
        return ready

    def _find(self, number: int) -> shadows.Shadow:
        found = self._shadows.get(number)
        if found is None:
            raise Refused("it has ended")
        return found

    def _keep(self, shadow: shadows.Shadow) -> int:
        number, self._next = self._next, self._next + 1
        self._shadows[number] = shadow
        for fd in (shadow.pidfd, shadow.resident_fd):
            if fd >= 0:
                self._watched[fd] = number
                self._poll.register(fd, select.EPOLLIN)
        return number

    def _drop(self, number: int) -> None:
        shadow = self._shadows.pop(number, None)
        if shadow is None:
            return
        if (ready := self._ready.pop(number, None)) is not None:
            self._end(ready)
        for fd in (shadow.pidfd, shadow.resident_fd):
            if fd >= 0:
                self._poll.unregister(fd)
                del self._watched[fd]
        self._end(shadow)

    def _end(self, shadow: shadows.Shadow) -> None:
        """Kill it. Its end, which frees its memory, takes milliseconds; others are served meanwhile."""
        shadow.kill()
        self._poll.register(shadow.pidfd, select.EPOLLIN)
        self._ending[shadow.pidfd] = shadow


def _stirring() -> int:
    """A task that is held by this process and has stopped or ended, which it was not told yet; 0 if there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, _ANY)
    except ChildProcessError:
        return 0
    return found.si_pid if found is not None else 0


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Raises Refused in the block when it takes too long, or at its very end; never after it."""
    signal.setitimer(signal.ITIMER_REAL, _TIME_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _time_is_up(*_: object) -> None:
    raise Refused("it took too long")


def main() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    linux.set_process_name(b"roost-tracer")
    signal.signal(signal.SIGALRM, _time_is_up)
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    received = wire.receive(sock)
    if received is None:
        return
    tracer = Tracer(sock, RoomPolicy.from_json(received[0]))
    wire.send(sock, {"ready": True})
    gc.freeze()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        tracer.serve()


if __name__ == "__main__":
    main()
