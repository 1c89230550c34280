"""What a room's first process does between its fork from the zygote and the guest's entry point.

It starts as root of the host in the zygote's mount namespace and in a new pid namespace, waits halfway until it is
known whose room this is, and ends as root of a user namespace with the capabilities that the room was asked for with,
none by default, in a root file system of its own. Every mount is attached to a descriptor that was reached without
following links, since a kept layer may have been prepared by hostile code.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from roost.isolation import landlock, linux
from roost.isolation.gvisor.inside import surround
from roost.isolation.gvisor.keeper import keep
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.borrowed import brought, located
from roost.isolation.namespaces.filesystem import furnish, make_parts, make_root
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.request import ENTERED, Order, Request, ShadowRequest
from roost.isolation.namespaces.working_set import Range, copy_ahead

ZYGOTE_FILES = 4096  # the zygote's own limit of descriptors, so none is above it
_RUN = """
import importlib, os, sys
for descriptor in (3, 4):
    os.set_inheritable(descriptor, False)
importlib.import_module(sys.argv.pop()).run(3, 4)
"""
_OOM_SCORE = 500  # when the whole machine is short of memory, rooms go before the server


def enter(request: Request, policy: RoomPolicy, guest: Callable[..., None], ahead: Sequence[Range] = ()) -> None:
    """Become the room's init and run the guest; does not return. A failed step is written to the status pipe. `ahead`:
    memory that it is going to write to."""
    step = "standard streams"
    try:
        _point_streams(request.status, request.status)
        for name, action in _steps(request, policy):
            step = name
            action()
        copy_ahead(ahead)
        step = "waiting for its order"
        order = brought(_order(request.order))
        if request.bare:
            step = "root file system"
            request = replace(request, layer=order.layer)
            make_root(request, policy, order.lower)
        for name, action in _last_steps(request, order, policy):
            step = name
            action()
        if request.kernel is not None:
            # Does not return; it says on the status pipe what becomes of the room.
            keep(request.kernel, restored=order.image >= 0)
        step = "standard streams"
        null = os.open("/dev/null", os.O_RDWR)
        os.write(1, ENTERED)
        _point_streams(null, null)  # ends the status pipe
        os.close(null)
    except BaseException as error:
        text = error.strerror if isinstance(error, OSError) else repr(error)
        os.write(2, f"{step}: {text}".encode()[:2000])
        os._exit(1)
    code = 70
    try:
        if order.live < 0:
            guest(3, 4)
        else:
            guest(3, 4, live_fd=5)
        code = 0
    finally:
        os._exit(code)


def execute(module: str) -> None:
    """Run the guest in a new program: what the zygote had in memory, and where, is gone. Raises OSError."""
    for descriptor in (3, 4):
        os.set_inheritable(descriptor, True)
    os.execve(sys.executable, [sys.executable, "-P", "-c", _RUN, module], {})  # noqa: S606


def _steps(request: Request, policy: RoomPolicy) -> list[tuple[str, Callable[[], None]]]:
    steps = [
        ("joining the cgroups", lambda: _join(request.joins)),
        ("new namespaces", lambda: _new_namespaces(request)),
        ("devices and processes", lambda: make_parts(request, policy)),
    ]
    if not request.bare:
        steps.append(("root file system", lambda: make_root(located(request), policy)))
    return steps


def _last_steps(request: Request, order: Order, policy: RoomPolicy) -> list[tuple[str, Callable[[], None]]]:
    return [
        ("host name", lambda: linux.set_hostname(order.hostname.encode())),
        ("mounts", lambda: _furnish(request, order, policy)),
        ("resource limits", lambda: _limit(request)),
        ("changing the root", _pivot),
        ("user namespace", lambda: _become_room_root(request, policy)),
        ("process state", lambda: _reset_process(order)),
        ("privileges", lambda: _drop_privileges(request, policy)),
    ]


def _furnish(request: Request, order: Order, policy: RoomPolicy) -> None:
    root = furnish(request, order, policy)
    if request.kernel is None:
        os.close(root)
    else:
        surround(root, request, order)


def _point_streams(out: int, err: int) -> None:
    """0 reads nothing, 1 and 2 go where told; the zygote's own standard streams are left."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(null)


def _join(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.write(fd, b"0")


def _new_namespaces(request: Request) -> None:
    """All of them while this process is root of the host, so that the room's root has no power over them."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, str(_OOM_SCORE).encode())
    os.close(fd)
    linux.setns(request.netns, linux.CLONE_NEWNET)
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWCGROUP)
    os.setsid()


def _order(descriptor: int) -> Order:
    """Wait for it. Without one, since it is not wanted or the server has gone, the room ends."""
    linux.set_process_name(b"roost-vacant")
    with socket.socket(fileno=descriptor) as sock:
        received = wire.receive(sock)
    if received is None:
        os._exit(0)
    return Order.parse(*received)


def _limit(request: Request | ShadowRequest) -> None:
    """Before the user namespace is joined: raising a limit takes the host's root."""
    # A kernel of the room's own holds what its programs have open, and limits each of them itself.
    files = request.open_files if request.kernel is None else resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = {
        resource.RLIMIT_NOFILE: (files, files),
        # 1, not 0: with 1 the kernel starts no core handler of the host either (core_pattern "|...").
        resource.RLIMIT_CORE: (1, 1),
        resource.RLIMIT_NPROC: _both(request.processes),  # unlimited where a cgroup counts them
        resource.RLIMIT_DATA: _both(request.data_mb, 1 << 20),
        resource.RLIMIT_FSIZE: _both(request.file_mb, 1 << 20),  # unlimited where the layer's size bounds files
        resource.RLIMIT_STACK: (8 << 20, resource.RLIM_INFINITY),
        resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20),
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_RTPRIO: (0, 0),
    }
    for kind, (soft, hard) in limits.items():
        try:
            resource.setrlimit(kind, (soft, hard))
        except ValueError:  # a host root without CAP_SYS_RESOURCE may not go above what it has itself
            most = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (_lower(soft, most), _lower(hard, most)))


def _both(limit: int | None, unit: int = 1) -> tuple[int, int]:
    value = resource.RLIM_INFINITY if limit is None else limit * unit
    return value, value


def _lower(wanted: int, most: int) -> int:
    """The lower of two limits; RLIM_INFINITY, a negative number, is the highest."""
    finite = [value for value in (wanted, most) if value != resource.RLIM_INFINITY]
    return min(finite, default=resource.RLIM_INFINITY)


def _pivot() -> None:
    """The working directory is the new root; the zygote's root is below it afterwards, and leaves."""
    linux.pivot_root(b".", b".")
    linux.unmount(b".")
    os.chdir("/")


def _become_room_root(request: Request, policy: RoomPolicy) -> None:
    if policy.user_namespace:
        linux.setns(request.userns, linux.CLONE_NEWUSER)
    if not policy.by_user:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.new_session_keyring()


def _reset_process(order: Order) -> None:
    """Nothing of the zygote stays: descriptors, signal handlers, mask, timers, random numbers."""
    # Where the two sockets and the status pipe (1, 2) are wanted may be where one of them is: first move them away.
    own = [_duplicate(fd) for fd in (order.guest, order.app, order.live, order.image) if fd >= 0]
    for place, fd in enumerate(own, start=3):
        os.dup2(fd, place, inheritable=False)
    os.closerange(3 + len(own), ZYGOTE_FILES)
    _reset_signals()
    random.seed()
    os.environ.clear()
    linux.set_process_name(b"roost-init")


def _reset_signals() -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.set_wakeup_fd(-1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def begin_shadow(request: ShadowRequest, context: Callable[[int], None]) -> NoReturn:
    """In a fork of the zygote's: wait, as a process of the host, to be held. What goes on is its copy in a room."""
    try:
        linux.set_process_name(b"roost-shadow")
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, str(_OOM_SCORE).encode())
        os.close(fd)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        _point_streams(null, null)
        os.dup2(request.waits, 3, inheritable=False)
        os.closerange(4, ZYGOTE_FILES)
        _limit(request)
        _reset_signals()
        os.environ.clear()
        context(3)
    finally:
        os._exit(1)


def _duplicate(fd: int) -> int:
    """A copy of a descriptor at 7 or above."""
    copies = [os.dup(fd)]
    while copies[-1] < 7:
        copies.append(os.dup(fd))
    wire.close_all(copies[:-1])
    return copies[-1]


def _drop_privileges(request: Request, policy: RoomPolicy) -> None:
    """What is kept is permitted, effective and in the bounding set, so a program that the room's root executes has it.

    It is neither inheritable nor ambient, and the user namespace was joined with the usual secure bits: a process that
    becomes another user has none of it, and with no_new_privs no program gives it any.
    """
    if policy.no_new_privileges:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if request.kernel is not None:
        return  # it has to set itself up, in the room's user namespace, before it goes behind a filter of its own
    if policy.landlock:
        landlock.restrict(scopes=not request.live)
    linux.drop_capabilities(policy.capabilities | request.capabilities)
    # Readable to the room's own processes, which are one trust domain; memory of the zygote holds no secret.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    if policy.seccomp:
        linux.load_seccomp(policy.seccomp)
