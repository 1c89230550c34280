"""`roost.server` on a machine whose resolver knows a few names: this machine by `good.test` and `other.test`, a private
network by `inner.test`."""

from __future__ import annotations

import socket
import sys
from typing import Any

from roost.server.program import main

KNOWN = {"good.test": "127.0.0.1", "other.test": "127.0.0.1", "inner.test": "10.0.0.1"}


def know_names() -> None:
    usual = socket.getaddrinfo

    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        return usual(KNOWN.get(host, host), port, *arguments, **options)

    socket.getaddrinfo = look_up


if __name__ == "__main__":
    know_names()
    sys.exit(main(sys.argv[1:]))
