"""The head of a request as a sandbox gets it: without its caller's tokens, with the port it is for. Pure."""

from __future__ import annotations

from functools import lru_cache

from roost.gateway.fields import EOL, FORWARDED, HOP, forwarded, frame
from roost.gateway.head import RequestHead
from roost.gateway.sandbox_access import ACCESS_TOKEN, TRAFFIC_TOKEN

_OURS = frozenset({b"host", ACCESS_TOKEN, TRAFFIC_TOKEN, b"e2b-sandbox-id", b"e2b-sandbox-port"})


@lru_cache(4096)
def _for_room(lower: bytes) -> bool:
    known = lower in HOP or lower in FORWARDED or lower in _OURS
    return not (known or lower.replace(b"_", b"-").startswith(b"x-roost-"))


def room_head(head: RequestHead, *, host: bytes, peer: bytes, daemon_port: int | None) -> bytes:
    """`host` is what the room is told; `daemon_port` goes along when the daemon is to answer for that port."""
    method = head.method.encode("ascii")
    out = [method, b" ", head.target, b" HTTP/1.1\r\nHost: ", host, EOL]
    options = head.options
    for lower, name, value in head.fields:
        if _for_room(lower) and lower not in options:
            out += (name, b": ", value, EOL)
    frame(head, method, out)
    if daemon_port is None:
        forwarded(head, peer, out)
    else:
        out.append(b"x-roost-port: %d\r\n" % daemon_port)
    out.append(EOL)
    return b"".join(out)
