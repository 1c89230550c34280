"""CORS for the daemon's ports, as envd answers it: any page may ask, the tokens decide. Pure.

Whether a page reaches a server without keys at all is decided before, in `browsers`.
"""

from __future__ import annotations

from roost.gateway.faults import Answer
from roost.gateway.head import RequestHead

_MAX_AGE_S = 7200
_METHODS = frozenset({"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"})
_VARY = b"vary: origin\r\n"
_ACTUAL = (
    b"access-control-allow-origin: *\r\naccess-control-expose-headers: Grpc-Status, Grpc-Message, "
    b"Grpc-Status-Details-Bin, Location, Cache-Control, X-Content-Type-Options\r\n"
)


def preflight(head: RequestHead) -> Answer | None:
    """The answer to a browser that asks whether a page may ask; None for any other request."""
    method = head.values.get(b"access-control-request-method")
    if head.method != "OPTIONS" or method is None:
        return None
    fields = b"vary: origin, access-control-request-method, access-control-request-headers\r\n"
    if b"origin" in head.values and method.decode("latin-1").upper() in _METHODS:
        fields += b"access-control-allow-origin: *\r\naccess-control-allow-methods: %b\r\n" % method.upper()
        if wanted := head.values.get(b"access-control-request-headers"):
            fields += b"access-control-allow-headers: %b\r\n" % wanted
        fields += b"access-control-max-age: %d\r\n" % _MAX_AGE_S
    return Answer(status=204, fields=fields, body=b"")


def cors_lines(head: RequestHead) -> bytes:
    """Fields of the reply to any other request."""
    return _ACTUAL + _VARY if b"origin" in head.values else _VARY
