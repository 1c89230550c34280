"""An ASGI application on a unix socket inside this process's event loop: uvicorn's protocol without its main loop.

One for the control plane and one for each room that has doors, so it must cost nothing while nobody calls.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import uvicorn
from uvicorn.server import ServerState

from roost.isolation.egress.listening import serve_unix


class _Refusal(asyncio.Protocol):
    """Of a connection that is one too many: it is closed unread."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


class EmbeddedServer:
    """`start` returns when connections are accepted; `close` lets requests end for `grace_s` seconds.

    What is behind a room's socket is hostile: `parser="h11"` bounds a request's head to 64 KiB, which "httptools",
    faster, leaves to a proxy in front. Connections above `max_connections` are closed when they come.
    """

    def __init__(
        self,
        app: Any,
        path: Path,
        *,
        mode: int = 0o600,
        grace_s: float = 5,
        max_connections: int = 64,
        parser: Literal["httptools", "h11"] = "httptools",
    ) -> None:
        self._path = path
        self._mode = mode
        self._grace_s = grace_s
        self._max_connections = max_connections
        self._state = ServerState()
        self._config = uvicorn.Config(
            app,
            http=parser,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            date_header=False,  # uvicorn's main loop keeps these fresh; the gateway adds what clients should see
            server_header=False,
        )
        self._config.load()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError when the socket can't be made. Nothing is left of one that has not started."""
        make = partial(asyncio.get_running_loop().create_unix_server, self._connection, backlog=256)
        self._server = await serve_unix(self._path, self._mode, make)

    def _connection(self) -> asyncio.Protocol:
        if len(self._state.connections) >= self._max_connections:
            return _Refusal()
        protocol = self._config.http_protocol_class
        assert not isinstance(protocol, str)
        return protocol(config=self._config, server_state=self._state, app_state={})  # type: ignore[call-arg]

    async def close(self) -> None:
        """Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=self._grace_s)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            connection.transport.abort()
        self._path.unlink(missing_ok=True)
