"""A helper process that makes namespaces for rooms ahead of their use: each a user namespace and a network namespace.

The network namespace belongs to the host's user namespace, so a room's root has no power over it; `lo` is up in it and
any port may be bound. Runs as root: python -m roost.isolation.namespaces.maker SOCKET_FD
Each request is `{"id", "base"}`; the reply carries `{"id"}` and the two descriptors, or `{"id", "error"}`.
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


def serve(sock: socket.socket) -> None:
    """Answer requests until the server has gone."""
    while (received := wire.receive(sock)) is not None:
        message, fds = received
        wire.close_all(fds)
        try:
            made = make_namespaces(message["base"])
        except OSError as error:
            wire.send(sock, {"id": message["id"], "error": str(error.strerror)})
            continue
        wire.send(sock, {"id": message["id"]}, made)
        wire.close_all(made)


def make_namespaces(base: int) -> list[int]:
    """Descriptors of a user namespace that maps 0..65535 to `base`.., and of a network namespace."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _live_in_new_namespaces(ours, theirs)
    opened: list[int] = []
    try:
        theirs.close()
        failure = ours.recv(4096)
        if failure != b"ok":
            raise OSError(1, failure.decode(errors="replace") or "the maker's child ended")
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{table}").write_text(f"0 {base} {IDS}")
        for kind in ("user", "net"):
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            opened.append(fd)
    except OSError:
        wire.close_all(opened)
        raise
    finally:
        ours.close()
        os.waitpid(pid, 0)
    return opened


def _live_in_new_namespaces(ours: socket.socket, theirs: socket.socket) -> None:
    """In the child: make the namespaces, and stay until the parent has opened them."""
    try:
        ours.close()
        try:
            linux.unshare(linux.CLONE_NEWNET)
            linux.bring_loopback_up()
            with contextlib.suppress(FileNotFoundError):
                Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
            linux.unshare(linux.CLONE_NEWUSER)
            theirs.send(b"ok")
        except OSError as error:
            theirs.send(str(error.strerror).encode())
        theirs.recv(1)
    finally:
        os._exit(0)


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
