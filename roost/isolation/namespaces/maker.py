"""A helper process that makes namespaces for rooms ahead of their use: each a user namespace and a network namespace.

The network namespace belongs to the host's user namespace, so a room's root has no power over it; `lo` is up in it and
any port may be bound. Runs as root: python -m roost.isolation.namespaces.maker SOCKET_FD
Each request is `{"id", "base", "ids"}`; the reply carries `{"id"}` and the two descriptors, or `{"id", "error"}`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from pathlib import Path

from roost.isolation import linux
from roost.isolation.namespaces import wire
from roost.isolation.usernamespaces import IDS

_SLEEP_S = 10  # for which a new user namespace lives without a descriptor, if this process is killed meanwhile


def serve(sock: socket.socket) -> None:
    """Answer requests until the server has gone."""
    while (received := wire.receive(sock)) is not None:
        message, fds = received
        wire.close_all(fds)
        try:
            made = make_namespaces(message["base"], message["ids"])
        except OSError as error:
            wire.send(sock, {"id": message["id"], "error": str(error.strerror)})
            continue
        wire.send(sock, {"id": message["id"]}, made)
        wire.close_all(made)


def make_namespaces(base: int, ids: int = IDS) -> list[int]:
    """Descriptors of a user namespace that maps ids from 0 on to `base`.., and of a network namespace."""
    opened = [_network()]
    try:
        opened.insert(0, _users(base, ids))
    except OSError:
        wire.close_all(opened)
        raise
    return opened


def _network() -> int:
    """A new one, which this process is in until the next call."""
    linux.unshare(linux.CLONE_NEWNET)
    linux.bring_loopback_up()
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _users(base: int, ids: int) -> int:
    """A user namespace whose owner is the range's first id: what the kernel counts by user (inotify, message queues,
    signals that wait, locked memory) it counts for a namespace's owner too, and rooms of one owner would use up each
    other's and the host's root's. Outside, nobody is that user."""
    os.setegid(base)
    os.seteuid(base)
    try:
        pid = linux.start_sleeper(linux.CLONE_NEWUSER, _SLEEP_S)
    finally:
        os.seteuid(0)
        os.setegid(0)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of the user takes it back
    try:
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{table}").write_text(f"0 {base} {ids}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    linux.set_process_name(b"roost-maker")
    sock = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    gc.freeze()
    wire.send(sock, {"ready": True})
    # The server may end at any moment: there is nobody left to answer.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(sock)


if __name__ == "__main__":
    main()
