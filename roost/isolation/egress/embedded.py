"""An ASGI application on a unix socket, served by uvicorn inside this process's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn


class _Quiet(uvicorn.Server):
    """Leaves the process's signals to the server that embeds it, and says when it accepts."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class EmbeddedServer:
    """`start` returns when connections are accepted; `close` when the last one has ended or `grace_s` has passed."""

    def __init__(self, app: Any, path: Path, *, mode: int = 0o600, grace_s: int = 5, max_connections: int = 1000):
        self._path = path
        self._mode = mode
        self._server = _Quiet(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                limit_concurrency=max_connections,
                timeout_graceful_shutdown=grace_s,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError when the socket can't be made."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        os.chmod(self._path, self._mode)  # noqa: PTH101 - of the socket itself, not through a link
        listener.listen(256)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self._server.accepting.wait()

    async def close(self) -> None:
        """Idempotent."""
        if self._task is None:
            return
        self._server.should_exit = True
        task, self._task = self._task, None
        await task
        self._path.unlink(missing_ok=True)
