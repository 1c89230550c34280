"""HTTP/1.1 as a room's proxy takes and gives it: heads that are read, checked, and shown."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11

from roost.isolation.egress.addresses import canonical
from roost.isolation.egress.ends import End
from roost.isolation.egress.redaction import Redactor
from roost.isolation.egress.refusal import Refused
from roost.model.errors import InvalidArgument

HTTP, HTTPS = 80, 443
HEAD = 64 << 10
HOP_BY_HOP = frozenset(
    {
        b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"te", b"trailer", b"upgrade",
        b"expect",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Whom the requests of a tunnel are for."""

    host: str
    port: int
    tls: bool


async def next_event_of(connection: h11.Connection, side: End, timeout_s: float) -> Any:
    """The next one. Raises h11.ProtocolError, OSError, TimeoutError."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        async with asyncio.timeout(timeout_s):
            connection.receive_data(await side.read())
    return event


async def request_of(server: h11.Connection, near: End) -> h11.Request:
    """Raises Refused, OSError."""
    try:
        while (event := server.next_event()) is h11.NEED_DATA:
            server.receive_data(await near.read())
    except h11.RemoteProtocolError as error:
        raise Refused(error.error_status_hint, f"This is not HTTP/1.1 as a proxy takes it: {error}.") from None
    if not isinstance(event, h11.Request):
        raise ConnectionResetError
    return event


def shown(reply: h11.Response, redactor: Redactor | None) -> h11.Response:
    """The head that the room gets. Raises Refused for a reply that a secret can't be looked for in."""
    kept = [(name, value) for name, value in reply.headers if name not in HOP_BY_HOP]
    if redactor is not None:
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in kept):
            raise Refused(502, "The reply is compressed, though it was asked not to be.")
        kept = [(name, redactor.whole(value)) for name, value in kept]
    headers = [*kept, (b"connection", b"close")]
    return h11.Response(status_code=reply.status_code, reason=reply.reason, headers=headers)


def absolute(target: str) -> tuple[str, int, str]:
    """Host, port and path of a URL. Raises Refused."""
    try:
        parts = urlsplit(target)
        if parts.scheme != "http" or "@" in parts.netloc or not parts.netloc:
            raise Refused(400, "A proxy takes http:// URLs, and CONNECT for everything else.")
        host, port = host_and_port(parts.netloc, HTTP)
    except ValueError:
        raise Refused(400, "This is no URL.") from None
    return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def host_and_port(text: str, usual_port: int | None) -> tuple[str, int]:
    """Raises Refused."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        host, port = text, "" if usual_port is None else str(usual_port)
    if not host or not (port.isascii() and port.isdigit() and len(port) < 6):
        raise Refused(400, "A host and a port are expected.")
    return host, int(port)


def check_host(headers: list[tuple[bytes, bytes]], asked: Asked) -> None:
    """Raises Refused when the request's own field names another server."""
    named = [value.decode("latin-1") for name, value in headers if name == b"host"]
    usual = HTTPS if asked.tls else HTTP
    try:
        right = len(named) == 1 and _same(host_and_port(named[0], usual), (asked.host, asked.port))
    except (Refused, InvalidArgument):
        right = False
    if not right:
        raise Refused(400, "The field Host names another server than the request.")


def _same(one: tuple[str, int], other: tuple[str, int]) -> bool:
    return canonical(one[0]) == canonical(other[0]) and one[1] == other[1]
