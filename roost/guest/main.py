"""The guest's entry point."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import traceback
from typing import NoReturn

from roost.guest.rehearsal import rehearse
from roost.guest.supervisor import Settings, Supervisor


def run(guest_fd: int, app_fd: int, settings: Settings | None = None) -> NoReturn:
    """Be the room's PID 1. Both descriptors are listening unix stream sockets, owned by the guest from here on."""
    code = 70
    try:
        guest = socket.socket(fileno=guest_fd)
        app = socket.socket(fileno=app_fd)
        Supervisor(guest, app, settings or Settings()).run()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


__all__ = ["rehearse", "run"]


def _main() -> NoReturn:
    parser = argparse.ArgumentParser(description="Serve a room. Without a room around it, for tests.")
    parser.add_argument("--guest-fd", type=int, required=True, help="listening unix socket: control and ports")
    parser.add_argument("--app-fd", type=int, required=True, help="listening unix socket: requests")
    defaults = Settings()
    parser.add_argument("--orphan-s", type=float, default=defaults.orphan_s)
    parser.add_argument("--egress-port", type=int, default=defaults.egress_port)
    parser.add_argument("--egress-path", default=defaults.egress_path)
    arguments = parser.parse_args()
    run(
        arguments.guest_fd,
        arguments.app_fd,
        Settings(
            orphan_s=arguments.orphan_s,
            egress_port=arguments.egress_port,
            egress_path=arguments.egress_path,
        ),
    )


if __name__ == "__main__":
    _main()
