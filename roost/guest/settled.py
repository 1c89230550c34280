"""The worker of a function whose process the host has made, so that it can be copied while it runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from roost.guest.child import exit_with, isolate
from roost.guest.config import parse_start
from roost.guest.invocation import Output
from roost.guest.still import STATUS
from roost.guest.worker import run_worker


def be_worker(message: Mapping[str, Any], fds: Sequence[int]) -> NoReturn:
    """`message` is the `start` of its room; `fds` are its status socket, its outputs and what it is to serve."""

    def body() -> None:
        status, out, err, app = fds
        isolate(out, err, {status, app})
        os.dup2(status, STATUS, inheritable=False)
        os.close(status)
        run_worker(parse_start(message), socket.socket(fileno=app), socket.socket(fileno=STATUS), Output())

    exit_with(body)
