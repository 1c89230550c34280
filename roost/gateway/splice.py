"""After `101 Switching Protocols`: bytes both ways as they are, each direction ended by itself (half-close)."""

from __future__ import annotations

from collections.abc import Callable

from roost.gateway.connection import ClientConnection
from roost.gateway.upstream import UpstreamConnection


class Tunnel:
    """Joins a client and an upstream.

    `on_end(client_lost)` is called once: when both directions have ended, or one side is lost.
    """

    __slots__ = ("_client", "_client_eof", "_ended", "_on_end", "_upstream", "_upstream_eof")

    def __init__(
        self, client: ClientConnection, upstream: UpstreamConnection, *, on_end: Callable[[bool], None]
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._on_end = on_end
        self._client_eof = False
        self._upstream_eof = False
        self._ended = False

    def client_data(self, data: bytes) -> None:
        self._upstream.write(data)

    def client_eof(self) -> None:
        self._client_eof = True
        if self._upstream_eof:
            self._end(client_lost=False)
        else:
            self._upstream.write_eof()

    def client_lost(self) -> None:
        self._end(client_lost=not self._upstream_eof)

    def client_writable(self, writable: bool) -> None:
        self._upstream.resume() if writable else self._upstream.pause()

    def upstream_data(self, data: bytes) -> None:
        self._client.write(data)

    def upstream_eof(self) -> None:
        self._upstream_eof = True
        if self._client_eof:
            self._end(client_lost=False)
        else:
            self._client.write_eof()

    def upstream_lost(self) -> None:
        self._upstream_eof = True
        self._end(client_lost=False)

    def upstream_writable(self, writable: bool) -> None:
        self._client.resume() if writable else self._client.pause()

    def _end(self, *, client_lost: bool) -> None:
        if self._ended:
            return
        self._ended = True
        self._client.close()
        self._on_end(client_lost)
