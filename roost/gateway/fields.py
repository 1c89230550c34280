"""Heads written anew for the next hop: to a function, to the control plane, back to the client. Pure."""

from __future__ import annotations

from collections.abc import Callable

from roost.gateway.head import RequestHead, ResponseHead
from roost.model.function import FunctionSpec

_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
    b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"expect",
})  # fmt: skip
_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix"})
_OURS = (b"x-fc-", b"x-roost-")
#: Names of ours that a function may use in its reply.
_REPLY_ALLOWED = frozenset({b"x-fc-error-type", b"x-fc-status"})
COOKIE = b"x-fc-cookie-session-id"
_BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})


def _is_ours(lower: bytes) -> bool:
    # WSGI and CGI see "x_fc_request_id" as the same variable as "x-fc-request-id".
    return lower.replace(b"_", b"-").startswith(_OURS) if lower.startswith(b"x") else False


def _copy(head: RequestHead, out: list[bytes], dropped: frozenset[bytes], private: Callable[[bytes], bool]) -> None:
    options = head.options
    for lower, name, value in head.fields:
        if lower in dropped or lower in options or private(lower):
            continue
        out.append(b"%b: %b\r\n" % (name, value))


def _signed_or_ours(lower: bytes) -> bool:
    """What proves the caller's identity to the API is not the function's to see."""
    return lower == b"authorization" or lower.startswith(b"x-acs-") or _is_ours(lower)


def _none(lower: bytes) -> bool:
    return False


def _frame(head: RequestHead, method: str, out: list[bytes]) -> None:
    if head.upgrade:
        out.append(b"connection: Upgrade\r\nupgrade: %b\r\n" % head.upgrade)
    if head.chunked:
        out.append(b"transfer-encoding: chunked\r\n")
    elif head.length is not None:
        out.append(b"content-length: %d\r\n" % head.length)
    elif method not in _BODILESS:
        out.append(b"content-length: 0\r\n")


def _forwarded(head: RequestHead, peer: str, out: list[bytes]) -> None:
    """The chain of proxies: the client's own claims are kept in front, as every reverse proxy keeps them."""
    values = head.values
    before = values.get(b"x-forwarded-for")
    chain = peer.encode("latin-1") if before is None else b"%b, %b" % (before, peer.encode("latin-1"))
    out.append(
        b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\n"
        % (chain, values.get(b"x-forwarded-proto", b"http"), values.get(b"x-forwarded-host", values.get(b"host", b"")))
    )


_DROP_GUEST = _HOP | _FORWARDED


def guest_head(
    head: RequestHead,
    *,
    method: str,
    target: bytes,
    control_path: str,
    prefix: str,
    peer: str,
    keyed: bool,
    extra: bytes,
) -> bytes:
    """The request as the guest gets it; `prefix` is "" for an event. `extra` are whole lines: the `x-fc-*` fields.

    `keyed`: what proves the caller's identity was meant for this server, and stays here.
    """
    out = [b"%b %b HTTP/1.1\r\n" % (method.encode("ascii"), target)]
    _copy(head, out, _DROP_GUEST, _signed_or_ours if keyed else _is_ours)
    _frame(head, method, out)
    _forwarded(head, peer, out)
    if prefix:
        out.append(b"x-forwarded-prefix: %b\r\n" % prefix.encode("latin-1"))
    out.append(b"x-fc-control-path: %b\r\n" % control_path.encode("ascii"))
    out.append(extra)
    out.append(b"\r\n")
    return b"".join(out)


_DROP_CONTROL = _HOP | _FORWARDED | {b"x-fc-request-id"}


def control_head(head: RequestHead, *, peer: str, request_id: str) -> bytes:
    """The request as the control plane gets it: signed fields stay as they are."""
    out = [b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), head.target)]
    _copy(head, out, _DROP_CONTROL, _none)
    _frame(head, head.method, out)
    _forwarded(head, peer, out)
    out.append(b"x-fc-request-id: %b\r\n\r\n" % request_id.encode("ascii"))
    return b"".join(out)


def function_fields(spec: FunctionSpec, *, qualifier: str, region: str, request_id: str) -> bytes:
    """Function Compute's request fields for custom runtimes; credentials are empty, as no role is attached."""
    text = (
        f"x-fc-request-id: {request_id}\r\nx-fc-function-name: {spec.name}\r\nx-fc-function-handler: {spec.handler}\r\n"
        f"x-fc-function-memory: {spec.limits.memory_mb}\r\nx-fc-function-timeout: {spec.timeout_s:g}\r\n"
        f"x-fc-region: {region}\r\nx-fc-account-id: {spec.account}\r\nx-fc-qualifier: {qualifier}\r\n"
        f"x-fc-version-id: {spec.version}\r\nx-fc-access-key-id: \r\nx-fc-access-key-secret: \r\n"
        "x-fc-security-token: \r\n"
    )
    return text.encode("latin-1", "replace")


def line(name: str, value: str) -> bytes:
    """One field line. A value can't smuggle in another line."""
    clean = value.replace("\r", " ").replace("\n", " ").replace("\0", " ")
    return f"{name}: {clean}\r\n".encode("latin-1", "replace")


def response_head(
    head: ResponseHead,
    *,
    extra: bytes,
    length: int | None,
    chunked: bool,
    close: bool,
    keep_alive_10: bool,
    strip_ours: bool,
) -> bytes:
    """The reply as the client gets it, framed as said. `extra` are whole lines."""
    out = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    options = head.options
    for lower, name, value in head.fields:
        if lower in _HOP or lower in options or lower == b"x-fc-request-id":
            continue
        if strip_ours and _not_the_functions(lower, value):
            continue
        out.append(b"%b: %b\r\n" % (name, value))
    if length is not None:
        out.append(b"content-length: %d\r\n" % length)
    elif chunked:
        out.append(b"transfer-encoding: chunked\r\n")
    if close:
        out.append(b"connection: close\r\n")
    elif keep_alive_10:
        out.append(b"connection: keep-alive\r\n")
    out.append(extra)
    out.append(b"\r\n")
    return b"".join(out)


def _not_the_functions(lower: bytes, value: bytes) -> bool:
    """Fields that only the server may set."""
    if lower == b"set-cookie":
        # Also a cookie without a name: browsers send "=a=b" back as "a=b".
        return value.lstrip(b"= \t").startswith(COOKIE)
    if lower == b"service-worker-allowed":
        return True  # all functions are one origin to a browser: this would hand one the pages of the others
    return _is_ours(lower) and lower not in _REPLY_ALLOWED


def switching_head(head: ResponseHead, *, extra: bytes) -> bytes:
    """`101 Switching Protocols` as the client gets it."""
    out = [b"HTTP/1.1 101 %b\r\nconnection: Upgrade\r\n" % (head.reason or b"Switching Protocols")]
    for lower, name, value in head.fields:
        if lower == b"upgrade" or not (lower in _HOP or _not_the_functions(lower, value)):
            out.append(b"%b: %b\r\n" % (name, value))
    out.append(extra)
    out.append(b"\r\n")
    return b"".join(out)
