"""Messages between the server and its helper processes: JSON with descriptors, over SOCK_SEQPACKET."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

#: The kernel passes at most 253 descriptors in a message (SCM_MAX_FD).
MAX_FDS = 253
MAX_MESSAGE = 128 << 10


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends. Neither is inherited by programs unless passed on explicitly."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message. Raises OSError, BlockingIOError included: a message is sent whole or not at all."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE or len(fds) > MAX_FDS:
        raise OSError(90, f"a message of {len(data)} bytes with {len(fds)} descriptors is too large")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message, or None at the end of the connection. The descriptors are the caller's, close-on-exec."""
    space = socket.CMSG_SPACE(MAX_FDS * 4)
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise OSError(90, "a message was cut off")
    if not data:
        return None
    return json.loads(data), list(fds)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
