"""Servers on unix sockets of a room's, or of the control plane's: there when they serve, and else nothing of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path


async def serve_unix(path: Path, mode: int, make: Callable[..., Awaitable[asyncio.Server]]) -> asyncio.Server:
    """One that serves at `path`, in the place of whatever was there. `make` takes `sock` and `start_serving`, as
    `asyncio.start_unix_server` does.

    Raises OSError when the socket can't be made. Nothing is left of what has not begun to serve.
    """
    with ExitStack() as undo:
        listener = _bound(path, mode, undo)
        server = await make(sock=listener, start_serving=False)
        undo.callback(server.close)
        await server.start_serving()
        undo.pop_all()
    return server


def _bound(path: Path, mode: int, undo: ExitStack) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    undo.callback(listener.close)
    undo.callback(path.unlink, missing_ok=True)
    listener.bind(str(path))
    os.chmod(path, mode)  # noqa: PTH101 - of the socket itself, not through a link
    return listener
