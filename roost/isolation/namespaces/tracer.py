"""A helper process that holds the shadows of rooms' contexts and copies them. See ARCHITECTURE.md, "Live branches".

Runs as root: python -m roost.isolation.namespaces.tracer SOCKET_FD
The first message is the policy of rooms. Then each request is `{"id", "op", ...}` with descriptors, answered by
`{"id", ...}` or `{"id", "error"}`:

| op | what is told, descriptors | reply |
|---|---|---|
| hold | `pid`, `tid`, `robust`; a pidfd | `shadow` |
| branch | `shadow`, of a frozen room; `keep`: it is to be settled more than once; cgroups of where it outlives the \
room, that of v2 first | `shadow`, `left`, `process`, `bytes` |
| settle | `shadow`, `last`, the room as `shadows.Place`; pidfd, two cgroups, three of the process, v1 cgroups | \
`shadow`, `pid` within the room |
| fork | as settle, of a context in a frozen room, which goes on as soon as it is copied | the same |
| look | `shadow`, a branch | `area`, and open files as `images.Source` has them |
| shelve | `shadow`, a branch: its memory ends, its number stays | |
| unshelve | `shadow`, and cgroups of where it is then; its image | `process`, and its memory, to be \
written to; or why it is `lost` |
| drop | `shadow` | |
| alive | `shadows` | `shadows`: those that have not ended |

Of what is kept to be settled again, a copy is made ahead while nobody asks: most of the time that it takes to settle
one is that of the copy.

A seed that is dropped stays as long as there is something that is a copy of it: images are the difference to it.

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
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from roost.isolation import linux
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.tracing import images, ptrace, shadows, shelving, status
from roost.isolation.tracing.tracee import AREA, Refused, end, let_go
from roost.isolation.tracing.x86_64 import MACHINE

_MOST = 4096  # shadows
_NO_MORE = frozenset({"look", "shelve", "drop", "alive"})  # what makes none: it is done when there are so many, too
_TIME_S = 5.0  # for one request
_AHEAD_S = 1.0  # for a copy ahead, for which a request that comes then has to wait
_AFTER_S = 0.02  # in which nothing happens before that: who has asked for the branch goes on first
_LATEST_S = 0.2  # for which that is waited for: then it is done as soon as nothing waits
_MOST_READY = 64
_SETTLING = 6  # descriptors before those of v1's cgroups
_INSIDE = 2  # that of the room's own processes in the v2 tree
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
        self._shelved: dict[int, shelving.Shelved] = {}
        self._seeds: dict[int, int] = {}  # the number of what each is a copy of, in the end; of a seed, its own
        self._unwanted: set[int] = set()  # seeds that were dropped
        self._ready: OrderedDict[int, shadows.Shadow] = OrderedDict()  # by what they are copies of
        self._unready: set[int] = set()  # of what a copy is to be made ahead
        self._prepared_at = 0.0  # when that was done last, or there was nothing to do
        self._watched: dict[int, int] = {}  # pidfds of shadows and of their processes: number of the shadow
        self._ending: dict[int, shadows.Shadow] = {}  # by pidfd
        self._late: set[int] = set()  # contexts' processes that are held and are to be let go
        self._stirred = -1
        self._poll = select.epoll()
        self._poll.register(sock, select.EPOLLIN)
        self._used_up = 0  # the branch that has become a context, to be forgotten after the reply
        self._next = 1

    def serve(self) -> None:
        """Until the server has gone."""
        self._stirred = linux.signal_descriptor(signal.SIGCHLD)
        self._poll.register(self._stirred, select.EPOLLIN)
        while self.turn():
            pass

    def turn(self) -> bool:
        """Do what has come; where nothing does for a while, make a copy ahead. False: the server has gone."""
        late = time.monotonic() - self._prepared_at > _LATEST_S
        found = self._poll.poll(None if not self._unready else 0 if late else _AFTER_S)
        if not found:
            self._prepare(self._unready.pop())
        if not found or not self._unready:
            self._prepared_at = time.monotonic()
        for fd, _ in found:
            if fd == self._sock.fileno():
                if not self._answer():
                    return False
            elif fd in self._watched:
                self._drop(self._watched[fd])
            elif fd in self._ending:
                self._poll.unregister(fd)
                self._ending.pop(fd).close()
                self._end_strangers()
            elif fd == self._stirred:
                os.read(fd, 1 << 10)
                self._end_strangers()
        return True

    def _end_strangers(self) -> None:
        """What has stopped or ended and is none of ours. Behind one of ours it is found when that has been closed."""
        while (found := _stirring()) and not any(found == shadow.tracee.pid for shadow in self._all()):
            if found in self._late:
                self._let_go(found)
            else:
                end(found)

    def _let_go(self, pid: int) -> None:
        """Of a context: its process is its room's."""
        self._late.discard(pid)
        if not let_go(pid):
            self._late.add(pid)

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
        opened: list[int] = []
        try:
            with _in_time(_TIME_S):
                reply = self._do(message, fds, opened)
        except Refused as error:
            reply = {"error": str(error)}
        except (OSError, status.Unknown) as error:
            reply = {"error": str(getattr(error, "strerror", None) or error)}
        except Exception as error:  # whatever hostile code has made of its memory: others' contexts live on
            reply = {"error": f"it is not as expected: {error!r}"[:300]}
        finally:
            wire.close_all(fds)
        if "error" in reply and (asked := self._shadows.get(message.get("shadow", 0))) and asked.resident:
            self._let_go(asked.resident)
        try:
            wire.send(self._sock, {**reply, "id": message["id"]}, opened)
        finally:
            wire.close_all(opened)
        if self._used_up:
            self._drop(self._used_up)
            self._used_up = 0
        if "shadow" in reply and message["op"] == "branch" and message["keep"]:
            self._unready.add(reply["shadow"])
        elif "shadow" in reply and message["op"] == "settle" and not message["last"]:
            self._unready.add(message["shadow"])
        return True

    def _prepare(self, number: int) -> None:
        """Have a copy of a branch ready. Without one, it takes longer to settle it."""
        try:
            with _in_time(_AHEAD_S):
                self._ready[number] = shadows.ready(self._shadows[number])
        except (OSError, Refused):
            return
        if len(self._ready) > _MOST_READY:
            self._end(self._ready.popitem(last=False)[1])

    def _do(self, message: dict[str, Any], fds: list[int], opened: list[int]) -> dict[str, Any]:
        """`opened`: descriptors that go with the reply."""
        if os.uname().machine != MACHINE:
            raise Refused(f"live branches are for {MACHINE}, not for {os.uname().machine}")
        if len(self._shadows) >= _MOST and message["op"] not in _NO_MORE:
            raise Refused(f"there are {_MOST} live contexts and branches already")
        match message["op"]:
            case "hold":
                held = shadows.hold(message["pid"], fds[0], message["tid"], message["robust"])
                fds.clear()  # it is the shadow's
                return {"shadow": self._keep(held)}
            case "branch":
                source = message["shadow"]
                made, left = shadows.branch(self._find(source), self._filters)
                told = {"threads": left.threads, "processes": left.processes, "files": list(left.files)}
                made = self._moved(made, fds)
                number = self._keep(made, self._seeds[source])
                return {"shadow": number, "left": told, "process": made.tracee.pid, "bytes": made.size}
            case "settle":
                return self._settle(message, fds)
            case "fork":
                return self._fork(message, fds)
            case "look":
                found = self._find(message["shadow"])
                opened += shelving.look(found, self._base(message["shadow"]))
                return {"area": [found.area, found.area + AREA]}
            case "shelve":
                self._shelve(message["shadow"])
                return {}
            case "unshelve":
                try:
                    return self._unshelve(message["shadow"], fds, opened)
                except images.Corrupt as error:
                    return {"lost": str(error)}
            case "alive":
                return {"shadows": [number for number in message["shadows"] if self._is_there(number)]}
            case "drop":
                self._dismiss(message["shadow"])
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
        kept = self._keep(made, self._seeds[number])
        if last:
            self._used_up = number
        return {"shadow": kept, "pid": made.room_pid}

    def _fork(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """What is copied lives on in a room that runs again: what is settled where all stands still would, too."""
        source = message["shadow"]
        made, _ = shadows.branch(self._find(source), self._filters)
        number = self._keep(made, self._seeds[source])
        try:
            _thaw(fds[_INSIDE])
            return self._settle({**message, "shadow": number}, fds)
        except BaseException:
            self._drop(number)
            raise

    def _moved(self, made: shadows.Shadow, groups: list[int]) -> shadows.Shadow:
        """A new branch in these cgroups, if there are any; where that fails, it has ended."""
        if not groups:
            return made
        try:
            return shadows.moved(made, groups[0], groups[1:])
        finally:
            self._end(made)

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

    def _shelve(self, number: int) -> None:
        self._base(number)
        shelved = shelving.shelve(self._find(number))
        self._release(number)
        self._shelved[number] = shelved

    def _unshelve(self, number: int, fds: list[int], opened: list[int]) -> dict[str, Any]:
        shelved = self._shelved.get(number)
        if shelved is None:
            raise Refused("it has ended")
        *into, image = fds
        made = self._moved(shelving.unshelve(shelved, self._base(number), images.read_layout(image)), into)
        try:
            opened.append(os.open(f"/proc/{made.tracee.pid}/mem", os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            made.close()
            raise
        del self._shelved[number]
        self._watch(number, made)
        return {"process": made.tracee.pid}

    def _is_there(self, number: int) -> bool:
        if number in self._shelved:
            return self._seeds[number] in self._shadows
        return number in self._shadows and number not in self._unwanted

    def _base(self, number: int) -> shadows.Shadow:
        base = self._shadows.get(self._seeds.get(number, 0))
        if base is None:
            raise Refused("what it is a copy of has ended")
        return base

    def _keep(self, shadow: shadows.Shadow, seed: int = 0) -> int:
        """Without a seed it is one itself."""
        number, self._next = self._next, self._next + 1
        self._seeds[number] = seed or number
        self._watch(number, shadow)
        return number

    def _watch(self, number: int, shadow: shadows.Shadow) -> None:
        self._shadows[number] = shadow
        for fd in (shadow.pidfd, shadow.resident_fd):
            if fd >= 0:
                self._watched[fd] = number
                self._poll.register(fd, select.EPOLLIN)

    def _dismiss(self, number: int) -> None:
        """It is wanted no more: it ends, unless images and branches are the difference to it."""
        if self._has_copies(number):
            self._unwanted.add(number)
        else:
            self._drop(number)

    def _has_copies(self, number: int) -> bool:
        """Whether it is a seed that something is a copy of."""
        return any(seed == number != other for other, seed in self._seeds.items())

    def _drop(self, number: int) -> None:
        """End it, whether it is held or shelved, and with the last of them the seed that nobody wants any more."""
        seed = self._seeds.pop(number, 0)
        self._shelved.pop(number, None)
        self._unwanted.discard(number)
        self._release(number)
        if seed in self._unwanted and not self._has_copies(seed):
            self._drop(seed)

    def _release(self, number: int) -> None:
        """End its task."""
        shadow = self._shadows.pop(number, None)
        if shadow is None:
            return
        self._unready.discard(number)
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


def _thaw(group: int) -> None:
    """Raises OSError."""
    fd = os.open("cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC, dir_fd=group)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def _stirring() -> int:
    """A task that is held by this process and has stopped or ended, which it was not told yet; 0 if there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, _ANY)
    except ChildProcessError:
        return 0
    return found.si_pid if found is not None else 0


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Raises Refused in the block when it takes too long, or at its very end; never after it."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
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
