"""The guest's entry point."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from roost.guest.dedup import know as know_original
from roost.guest.rehearsal import rehearse
from roost.guest.sandbox.interpreter.spare import be_context
from roost.guest.supervisor import Settings, Supervisor


def run(guest_fd: int, app_fd: int, settings: Settings | None = None, *, live_fd: int = -1) -> NoReturn:
    """Be the room's PID 1. Both descriptors are listening unix stream sockets, owned by the guest from here on; so is
    `live_fd`, the lifeline by which the host hands contexts over, if there is one."""
    live = socket.socket(fileno=live_fd) if live_fd >= 0 else None
    serve(socket.socket(fileno=guest_fd), socket.socket(fileno=app_fd), settings, live)


def serve(
    guest: socket.socket, app: socket.socket, settings: Settings | None = None, live: socket.socket | None = None
) -> NoReturn:
    """The same with sockets, or with what can be accepted from as from them."""
    code = 70
    try:
        Supervisor(guest, app, settings or Settings(), live=live).run()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def entry_of_contexts() -> Callable[[int], NoReturn]:
    """What a process runs that the host makes to be a sandbox's first context, or the worker of a function."""
    return be_context


__all__ = ["entry_of_contexts", "know_original", "rehearse", "run", "serve"]


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
