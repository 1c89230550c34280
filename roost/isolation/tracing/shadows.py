"""Shadows of contexts: how one is held, branched and settled in a room.

A context's *shadow* shares its memory, is root of the host outside the room's pid namespace, and never runs by itself:
it is held at a stop for all its life. It is made to execute single system calls, of which one, in memory that hostile
code has written to, makes a copy of the memory and of the shadow: a *branch*. In a branch's memory nobody else runs, so
there whole programs of calls are run, which make the context's process and give it what a process of the room has.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roost.isolation import landlock, linux
from roost.isolation.tracing import mapped, memory, ptrace, status
from roost.isolation.tracing.tracee import EXTRA, MOST_EXTRA, Refused, Tracee, await_stop, end, let_go
from roost.isolation.tracing.x86_64 import Call, Registers
from roost.isolation.usernamespaces import IDS

CHANNEL = 3  # where a context has its socket; 1 and 2 are its outputs
_NOFILE = 7  # RLIMIT_NOFILE
_RESTS_IN = 7  # poll: where a context waits while it is copied
_COPIED = 2  # what that never returns by itself, of one descriptor: so a process knows that it is a copy
_VM, _PARENT, _CLEARTID, _SETTID = 0x100, 0x8000, 0x200000, 0x1000000
_INTO_CGROUP = 0x200000000
_SIGCHLD = 17
_JOINED = linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWNET | linux.CLONE_NEWCGROUP
_EVERY = 0xFFFFFFFF
_UNREGISTER = 1
_ROBUST_SIZE = 24
_FIXED = 0x32  # MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED
_CLOSED = Call("close_range", (0, _EVERY, 0))


@dataclass(frozen=True)
class Policy:
    """What a process of a room must be given, beside ids."""

    seccomp: bytes
    landlock: bool
    no_new_privileges: bool
    user_namespace: bool


@dataclass(frozen=True)
class Thread:
    """What the C library and the kernel know of the one thread: addresses in its memory, told before hostile code."""

    tid: int
    robust: int
    sequences: tuple[int, int, int]


@dataclass(frozen=True)
class State:
    """What a process is given when it is settled. Ids are those within the room."""

    registers: Registers
    extended: bytes
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    permitted: int | None = None  # capabilities; None: all that the room's root has
    bounding: int | None = None
    directory: str = "/"
    umask: int = 0o022
    name: str = "roost-init"
    mask: int = 0
    limits: tuple[tuple[int, tuple[int, int]], ...] = ()  # by number; those of a shadow stay where there is none
    leads: bool = False  # a session of its own; what is new makes one by itself


@dataclass(frozen=True)
class Place:
    """A room, as descriptors of the tracer's: `shadows` and `inside` are its cgroups, `joins` those of v1."""

    pid: int  # of its init
    pidfd: int
    shadows: int
    inside: int
    joins: tuple[int, ...]
    capabilities: int
    base: int  # host id of the room's id 0
    open_files: int  # the room's limit


@dataclass
class Shadow:
    """One that is held, with the process that shares its memory; or, without, a branch, which has an area."""

    tracee: Tracee
    pidfd: int
    thread: Thread
    state: State
    area: int = 0
    resident: int = 0
    room_pid: int = 0  # that of its process, in its room
    resident_fd: int = -1
    base: int = 0  # of the room that its ids are of
    size: int = 0  # of a branch: bytes of memory that are no file's, shared ones too, when it was made

    def kill(self) -> None:
        """Without a wait for its end; it may have ended, and its number be another's."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """End it, and forget its process, which lives on."""
        end(self.tracee.pid)
        self.tracee.close()
        for fd in (self.pidfd, self.resident_fd):
            if fd >= 0:
                os.close(fd)


def hold(pid: int, pidfd: int, tid: int, robust: int) -> Shadow:
    """Make a shadow of a process of the zygote's that waits in a call. Raises OSError, Refused."""
    tracee = Tracee.seize(pid, _RESTS_IN)
    try:
        sequences = ptrace.sequences(pid)
        if sequences[0]:
            # Else the kernel would read, at each of its steps, what hostile code tells of where it is to go on.
            tracee.call("rseq", *sequences[:2], _UNREGISTER, sequences[2])
        # Else its end would clear, in memory that is another's then, the number by which the C library knows its locks.
        tracee.call("set_tid_address", 0)
        tracee.call("close_range", 0, _EVERY, 0)
        area = tracee.map_area()
        state = State(registers=tracee.base, extended=ptrace.extended(pid), mask=ptrace.signal_mask(pid))
    except BaseException:
        end(pid)
        raise
    finally:
        tracee.close()
    return Shadow(tracee, pidfd, Thread(tid, robust, sequences), state, area)


def ready(branch: Shadow) -> Shadow:
    """A copy of a branch, to be settled as the last of it. Raises OSError, Refused."""
    within = branch.tracee.within(branch.area)
    copy = Tracee(within.branch("clone", _PARENT, 0, 0, 0, 0), branch.tracee.insn, branch.tracee.base)
    try:
        return replace(branch, tracee=copy, pidfd=os.pidfd_open(copy.pid))
    except BaseException:
        end(copy.pid)
        raise


def moved(branch: Shadow, group: int, joins: Sequence[int]) -> Shadow:
    """The same branch as a task of another cgroup from its start, with those of v1 that `joins` are; the one that it
    was is to be ended. To move a task takes the kernel twenty milliseconds. Raises OSError, Refused.
    """
    pid = _cloned_into(branch, [group, *joins], vm=True)
    made = Tracee(pid, branch.area, branch.tracee.base)
    try:
        made.run([*_joined(2, joins), _CLOSED])
        made.close()
        return replace(branch, tracee=Tracee(pid, branch.tracee.insn, branch.tracee.base), pidfd=os.pidfd_open(pid))
    except BaseException:
        made.close()
        end(pid)
        raise


@dataclass(frozen=True)
class Left:
    """What the process has that its copy has not."""

    threads: int
    processes: int
    files: tuple[str, ...]


def branch(shadow: Shadow, filters: int) -> tuple[Shadow, Left]:
    """A copy of its memory as it is now, held, with what is known of its process.

    All that could write to the memory stands still: the room is frozen. `filters`: how many the room's processes have.
    Raises OSError, Refused; then it is as it was.
    """
    left = Left(0, 0, ())
    if shadow.resident:
        state, left = _observe(shadow, filters)
    else:
        state = shadow.state
    mappings = _judged(shadow)
    copy = Tracee(shadow.tracee.branch("clone", _PARENT, 0, 0, 0, 0), shadow.tracee.insn, shadow.tracee.base)
    try:
        if status.size(copy.pid).mapped != status.size(shadow.tracee.pid).mapped:
            raise Refused("it has memory that it asked the kernel not to copy")
        # While the room stands still: later, what its code is mapped from may be written to.
        area = shadow.area or copy.map_area()
        within = copy.within(area)
        _own(within, shadow, memory.shared(mappings))
        within.close()
        size = status.size(copy.pid).own
        pidfd = os.pidfd_open(copy.pid)
        return Shadow(copy, pidfd, shadow.thread, state, area, base=shadow.base, size=size), left
    except BaseException:
        end(copy.pid)
        raise
    finally:
        copy.close()
        shadow.tracee.close()


def _judged(shadow: Shadow) -> list[memory.Mapping]:
    try:
        mappings = mapped.judged_by(shadow.tracee.pid, shadow.tracee.insn)
        memory.check_code(mappings, shadow.tracee.insn)
        memory.shared(mappings)
    except memory.Unfit as error:
        raise Refused(str(error)) from None
    shadow.tracee.check_call()
    return mappings


def _own(made: Tracee, original: Shadow, shared: Sequence[memory.Mapping]) -> None:
    """Private copies in place of what the copy would share with the original."""
    for mapping in shared:
        made.call("munmap", mapping.begin, mapping.size)
        made.call("mmap", mapping.begin, mapping.size, mapping.protection, _FIXED, -1, 0)
        for offset in range(0, mapping.size, 1 << 20):
            # What lies behind the end of a file can't be read, nor could it.
            with contextlib.suppress(OSError):
                content = original.tracee.read(mapping.begin + offset, min(1 << 20, mapping.size - offset))
                made.write(mapping.begin + offset, content)


def _observe(shadow: Shadow, filters: int) -> tuple[State, Left]:
    """What its process is. Raises Refused if that is not what it was made as, or can't be copied."""
    pid = shadow.resident
    try:
        now = status.read_status(pid)
        _check_same_memory(shadow)
        if filters >= 0 and now.filters >= 0 and now.filters != filters:
            raise Refused("it has a filter of system calls of its own")
        with _held(pid):
            registers = Registers()
            ptrace.registers(pid, registers)
            if registers.call != _RESTS_IN:
                raise Refused("it does not wait where it is to be copied")
            extended, mask = ptrace.extended(pid), ptrace.signal_mask(pid)
        left = Left(now.threads - 1, status.children_of(pid), status.open_elsewhere(pid, CHANNEL + 1))
        state = State(
            registers=registers,
            extended=extended,
            uid=_inside(now.uid, shadow),
            gid=_inside(now.gid, shadow),
            groups=tuple(_inside(group, shadow) for group in now.groups),
            permitted=now.permitted,
            bounding=now.bounding,
            directory=status.working_directory(pid),
            umask=now.umask,
            name=now.name,
            mask=mask,
            limits=tuple(enumerate(status.read_limits(pid))),
            leads=True,
        )
    except status.Unknown as error:
        raise Refused(str(error)) from None
    return state, left


def _inside(number: int, shadow: Shadow) -> int:
    """A host id as the room has it."""
    if not 0 <= number - shadow.base < IDS:
        raise Refused("it has the id of another room")
    return number - shadow.base


def _check_same_memory(shadow: Shadow) -> None:
    """A program that it has executed has another memory."""
    try:
        same = linux.same_memory(shadow.tracee.pid, shadow.resident)
    except OSError as error:
        raise Refused("it has ended" if error.errno == errno.ESRCH else str(error.strerror)) from None
    if not same:
        raise Refused("it is another program now")


@contextlib.contextmanager
def _held(pid: int) -> Iterator[None]:
    """A process that stands still already, so that its registers can be read. Where that fails, it may be held still:
    see `let_go`."""
    try:
        ptrace.seize(pid, 0)
    except OSError as error:
        raise Refused(f"it can't be held: {os.strerror(error.errno or 0)}") from None
    try:
        ptrace.interrupt(pid)
        await_stop(pid)
        yield
    finally:
        let_go(pid)


# --- settling


def settle(shadow: Shadow, place: Place, fds: tuple[int, int, int], policy: Policy, *, last: bool) -> Shadow:
    """Make a process with the memory of a branch, or of a new shadow, in a room: the shadow of that process.

    `fds` are its channel and its outputs. `last`: the branch itself is used up; else it can be settled again.
    Raises OSError, Refused; the branch stays then.
    """
    known = Path("/proc/self/ns/pid").stat().st_ino
    if shadow.resident or Path(f"/proc/{place.pid}/ns/pid").stat().st_ino == known:
        raise Refused("that is no branch, or no room")
    made: list[int] = []
    opened: list[int] = []
    try:
        # The shadow to be, in the room's cgroup from its start. Where the branch is used up, it takes over its memory.
        stem = Tracee(_cloned_into(shadow, [place.shadows], vm=last), shadow.area, shadow.tracee.base)
        made.append(stem.pid)
        between = _enter_pids(stem, place, fds, policy)
        made.append(between)
        resident, room_pid = _resident(Tracee(between, shadow.area, stem.base), shadow.thread)
        made.append(resident)
        end(between)  # so that the process is a child of the room's init
        made.remove(between)
        opened += [os.pidfd_open(stem.pid), os.pidfd_open(resident)]
        _become(Tracee(resident, shadow.area, stem.base), shadow, place, policy)
    except BaseException:
        for pid in reversed(made):
            end(pid)
        for fd in opened:
            os.close(fd)
        raise
    tracee = Tracee(stem.pid, shadow.tracee.insn, stem.base)
    return Shadow(tracee, opened[0], shadow.thread, shadow.state, 0, resident, room_pid, opened[1], place.base)


def _opened(own: int, wanted: Sequence[int]) -> list[Call]:
    """Take descriptors of this process, from 0 upwards."""
    calls = [_CLOSED, Call("pidfd_open", (own, 0), expect=0)]
    return [*calls, *(Call("pidfd_getfd", (0, fd, 0), expect=at) for at, fd in enumerate(wanted, start=1))]


def _cloned_into(shadow: Shadow, wanted: Sequence[int], *, vm: bool) -> int:
    """A clone in the cgroup that is the first of these descriptors of this process, with all of them, from 1 upwards;
    `vm`: it shares the memory."""
    flags = _PARENT | _INTO_CGROUP | (_VM if vm else 0)
    order = struct.pack("11Q", flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    calls = [*_opened(os.getpid(), wanted), Call("clone3", (order, len(order))), _CLOSED]
    within = shadow.tracee.within(shadow.area)
    try:
        return within.run(calls)[1][0]
    finally:
        within.close()


def _joined(first: int, joins: Sequence[int]) -> Iterator[Call]:
    """Of v1: a task that writes `0` has joined."""
    for number in range(first, first + len(joins)):
        yield Call("write", (number, b"0", 1))


def _enter_pids(stem: Tracee, place: Place, fds: tuple[int, int, int], policy: Policy) -> int:
    """The one between: in the room's pid namespace and cgroup, with the descriptors that the process needs."""
    ruleset = _ruleset(place.pid) if policy.landlock else -1
    wanted = [place.pidfd, place.inside, *fds, *([ruleset] if ruleset >= 0 else []), *place.joins]
    order = struct.pack("11Q", _PARENT | _VM | _INTO_CGROUP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2)
    calls = [
        *_opened(os.getpid(), wanted),
        *_joined(len(wanted) - len(place.joins) + 1, place.joins),
        Call("setns", (1, linux.CLONE_NEWPID)),
        Call("clone3", (order, len(order))),
        Call("setns", (0, linux.CLONE_NEWPID)),  # else its branches would be in the room
        _CLOSED,
    ]
    try:
        return stem.run(calls)[1][0]
    finally:
        stem.close()
        if ruleset >= 0:
            os.close(ruleset)


def _resident(between: Tracee, thread: Thread) -> tuple[int, int]:
    flags = _VM | _SIGCHLD | (_SETTID | _CLEARTID if thread.tid else 0)
    return between.branch_known("clone", flags, 0, 0, thread.tid, 0)


def _ruleset(pid: int) -> int:
    """That of Landlock, for the room's own root."""
    return landlock.ruleset(f"/proc/{pid}/root", scopes=False)


def _become(tracee: Tracee, shadow: Shadow, place: Place, policy: Policy) -> None:
    """Give it all that a process of the room has, its registers at last, and let it go."""
    state = shadow.state
    try:
        if len(policy.seccomp) > MOST_EXTRA:
            raise Refused("the filter of system calls is too long")
        extra = shadow.area + EXTRA
        tracee.write(extra, policy.seccomp)
        if not state.limits:
            files = min(place.open_files, status.read_limits(tracee.pid)[_NOFILE][1])
            state = replace(state, limits=((_NOFILE, (files, files)),))
        tracee.run(_calls(state, shadow.thread, place, policy, extra))
        tracee.unmap_area()
        ptrace.set_extended(tracee.pid, state.extended)
        ptrace.set_signal_mask(tracee.pid, state.mask)
        ptrace.set_registers(tracee.pid, state.registers.with_result(_COPIED))
        ptrace.detach(tracee.pid)
    finally:
        tracee.close()


def _calls(state: State, thread: Thread, place: Place, policy: Policy, filter_at: int) -> list[Call]:
    """The descriptors are those of `_enter_pids`. Ids are the room's, which has them from `base` on outside."""
    offset = 0 if policy.user_namespace else place.base
    uid, gid = state.uid + offset, state.gid + offset
    groups = struct.pack(f"{len(state.groups)}I", *(group + offset for group in state.groups))
    permitted = place.capabilities if state.permitted is None else state.permitted & place.capabilities
    bounding = place.capabilities if state.bounding is None else state.bounding & place.capabilities
    dropped = [number for number in range(linux.LAST_CAPABILITY + 1) if not bounding >> number & 1]
    name = state.name.encode(errors="replace")[:15] + b"\0"
    kinds = _JOINED | (linux.CLONE_NEWUSER if policy.user_namespace else 0)
    walls = [
        # Nobody else in the room may write to its memory before the filter is in force: not even read it.
        Call("prctl", (linux.PR_SET_DUMPABLE, 0, 0, 0, 0)),
        Call("setns", (1, kinds)),
        Call("chdir", (os.fsencode(state.directory) + b"\0",), may_fail=True),
        Call("umask", (state.umask,), may_fail=True),
        *([Call("setsid")] if state.leads else []),
        Call("prctl", (linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)),
        *(Call("prctl", (linux.PR_CAPBSET_DROP, number, 0, 0, 0)) for number in dropped),
        Call("setgroups", (len(state.groups), groups or 0)),
        Call("setresgid", (gid, gid, gid)),
        Call("setresuid", (uid, uid, uid)),
        Call("keyctl", (1, 0, 0, 0, 0)),
    ]
    if policy.no_new_privileges:
        walls.append(Call("prctl", (linux.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
    if policy.landlock and landlock.available():
        walls.append(Call("landlock_restrict_self", (6, 0)))
    files = [
        Call("dup3", (3, CHANNEL + 64, 0o2000000)),
        Call("dup3", (4, 1 + 64, 0)),
        Call("dup3", (5, 2 + 64, 0)),
        Call("close_range", (0, 63, 0)),
        # What the room has put there does not make it wait.
        Call("open", (b"/dev/null\0", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), may_fail=True),
        Call("dup3", (1 + 64, 1, 0)),
        Call("dup3", (2 + 64, 2, 0)),
        Call("dup3", (CHANNEL + 64, CHANNEL, 0o2000000)),
        Call("close_range", (CHANNEL + 1, _EVERY, 0)),
    ]
    of_thread = [Call("prctl", (linux.PR_SET_NAME, name, 0, 0, 0))]
    if thread.sequences[0]:
        of_thread.append(Call("rseq", (*thread.sequences[:2], 0, thread.sequences[2]), may_fail=True))
    if thread.robust:
        of_thread.append(Call("set_robust_list", (thread.robust, _ROBUST_SIZE), may_fail=True))
    # At most what the shadow has, so it takes no right to set them.
    limits = [Call("prlimit64", (0, kind, struct.pack("QQ", *limit), 0)) for kind, limit in state.limits]
    low, high = permitted & _EVERY, permitted >> 32
    header = struct.pack("Ii", 0x20080522, 0)
    last = [Call("capset", (header, struct.pack("IIIIII", low, low, 0, high, high, 0)))]
    if policy.seccomp:
        program = struct.pack("HxxxxxxP", len(policy.seccomp) // 8, filter_at)
        last.append(Call("prctl", (linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, program, 0, 0)))
    last.append(Call("prctl", (linux.PR_SET_DUMPABLE, 1, 0, 0, 0)))
    return [*walls, *files, *limits, *of_thread, *last]
