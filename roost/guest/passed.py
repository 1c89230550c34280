"""The guest's entry point in a room whose kernel takes no listening socket of the host: connections come one by one.

Runs as `python -m roost.guest.passed MODULE`. The room's standard input and output are unix sockets on which the host
passes connections of guest.sock and app.sock, as descriptors. `MODULE.serve(guest, app)` is what any room runs.

On the channel of app.sock there are words beside connections, for copies of the whole room; `n` is a byte that tells
one copy from another:

| host sends | meaning |
|---|---|
| HOLD `n` | get ready to be copied; answered by READY `n` and a JSON list: what the copy will lack |
| STOP `n` | let go of all connections of the host's, which can't be copied; answered by STILL `n`, and silence |
| GO `n` | that is over, at whatever point |
| NEW `n` | the same, to the copy |
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

#: Said once on the channel of app.sock: the room is up, and what it prints from here on is nobody's.
UP = b"\1"
HOLD, STOP, GO, NEW = b"h", b"s", b"g", b"n"
READY, STILL = b"r", b"q"
WORD = 16  # bytes of a word of the host's at most
#: Found in a room's /tmp when gVisor looks whether that is empty, and would put it into memory then.
OCCUPIED = "/tmp/.roost-occupied"  # noqa: S108


class PassedConnections(socket.socket):
    """A channel that looks like a listening socket: `accept` takes the next connection that was passed."""

    on_word: Callable[[bytes], None] | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises BlockingIOError where there is none yet, ConnectionAbortedError when none will come."""
        data, descriptors, _, _ = socket.recv_fds(self, WORD, 1, socket.MSG_CMSG_CLOEXEC)
        if descriptors:
            os.set_inheritable(descriptors[0], False)  # gVisor does not heed the flag
            return socket.socket(fileno=descriptors[0]), ""
        if data and self.on_word is not None:
            self.on_word(data)
            raise BlockingIOError
        raise ConnectionAbortedError("The host passes no more connections." if not data else "Nothing was passed.")


def main() -> None:
    """Serve until the room ends."""
    channels = [PassedConnections(fileno=os.dup(number)) for number in (0, 1)]
    with contextlib.suppress(OSError):
        os.rmdir(OCCUPIED)  # noqa: PTH106
    channels[1].send(UP)
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    os.environ.clear()
    module = importlib.import_module(sys.argv.pop())
    module.serve(*channels)


if __name__ == "__main__":
    # Of the module by its name: others look whether what they are given is of its class.
    importlib.import_module("roost.guest.passed").main()
