"""The head of a request as a sandbox gets it: without its caller's tokens, with the port it is for. Pure."""

from __future__ import annotations

from roost.gateway.head import RequestHead
from roost.gateway.sandbox_access import ACCESS_TOKEN, TRAFFIC_TOKEN

_DROPPED = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
    b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"expect",
    b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"host",
    ACCESS_TOKEN, TRAFFIC_TOKEN, b"e2b-sandbox-id", b"e2b-sandbox-port",
})  # fmt: skip
_BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})


def room_head(head: RequestHead, *, host: bytes, peer: str, daemon_port: int | None) -> bytes:
    """`host` is what the room is told; `daemon_port` goes along when the daemon is to answer for that port."""
    out = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method.encode("ascii"), head.target, host)]
    for lower, name, value in head.fields:
        if lower in _DROPPED or lower in head.options or lower.replace(b"_", b"-").startswith(b"x-roost-"):
            continue
        out.append(b"%b: %b\r\n" % (name, value))
    if head.upgrade:
        out.append(b"connection: Upgrade\r\nupgrade: %b\r\n" % head.upgrade)
    if head.chunked:
        out.append(b"transfer-encoding: chunked\r\n")
    elif head.length is not None:
        out.append(b"content-length: %d\r\n" % head.length)
    elif head.method not in _BODILESS:
        out.append(b"content-length: 0\r\n")
    if daemon_port is None:
        values = head.values
        before = values.get(b"x-forwarded-for")
        chain = peer.encode("latin-1") if before is None else b"%b, %b" % (before, peer.encode("latin-1"))
        out.append(
            b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\n"
            % (chain, values.get(b"x-forwarded-proto", b"http"), values.get(b"x-forwarded-host", host))
        )
    else:
        out.append(b"x-roost-port: %d\r\n" % daemon_port)
    out.append(b"\r\n")
    return b"".join(out)
