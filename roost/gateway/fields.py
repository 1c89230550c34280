"""Heads written anew for the next hop: to a function, to the control plane, back to the client. Pure."""

from __future__ import annotations

from functools import lru_cache

from roost.gateway.head import RequestHead, ResponseHead, Written
from roost.gateway.routes import Event, Http
from roost.model.function import FunctionSpec

#: Fields that end at this hop.
HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
    b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"expect",
})  # fmt: skip
FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix"})
_OURS = (b"x-fc-", b"x-roost-")
#: Names of ours that a function may use in its reply.
_REPLY_ALLOWED = frozenset({b"x-fc-error-type", b"x-fc-status"})
COOKIE = b"x-fc-cookie-session-id"
_BODILESS = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"})
EOL = b"\r\n"
_SPECS = 1024  # described at once, with each of their qualifiers


def _is_ours(lower: bytes) -> bool:
    # WSGI and CGI see "x_fc_request_id" as the same variable as "x-fc-request-id".
    return lower.replace(b"_", b"-").startswith(_OURS) if lower.startswith(b"x") else False


# What becomes of a field depends on its name alone, and names repeat: the answers are remembered, a bounded number.


@lru_cache(4096)
def _for_guest(lower: bytes, keyed: bool) -> bool:
    """Whether a function may see a field of the request. What proves its caller to the API (`keyed`) is not its."""
    if lower in HOP or lower in FORWARDED or _is_ours(lower):
        return False
    return not (keyed and (lower == b"authorization" or lower.startswith(b"x-acs-")))


@lru_cache(4096)
def _for_control(lower: bytes) -> bool:
    return not (lower in HOP or lower in FORWARDED or lower in (b"x-fc-request-id", b"x-roost-hops"))


@lru_cache(4096)
def _for_client(lower: bytes, strip_ours: bool) -> bool | None:
    """Whether a field of a reply goes on to the client; None: its value decides, see `_plants_ours`."""
    if lower in HOP or lower == b"x-fc-request-id":
        return False
    if not strip_ours:
        return True
    if lower == b"set-cookie":
        return None
    if lower == b"service-worker-allowed":
        return False  # all functions are one origin to a browser: this would hand one the pages of the others
    return not _is_ours(lower) or lower in _REPLY_ALLOWED


def _plants_ours(cookie: bytes) -> bool:
    """A cookie that only the server may set; also one without a name: browsers send "=a=b" back as "a=b"."""
    return cookie.lstrip(b"= \t").startswith(COOKIE)


def frame(head: RequestHead, method: bytes, out: list[bytes]) -> None:
    """Add the fields that say where the body ends, or what the connection is to become."""
    if head.upgrade:
        out += (b"connection: Upgrade\r\nupgrade: ", head.upgrade, EOL)
    if head.chunked:
        out.append(b"transfer-encoding: chunked\r\n")
    elif head.length is not None:
        out.append(b"content-length: %d\r\n" % head.length)
    elif method not in _BODILESS:
        out.append(b"content-length: 0\r\n")


def kept_fields(head: RequestHead, keyed: bool, peer: bytes) -> dict[str, str]:
    """The fields that a function may see, to be sent to it later, and the chain of proxies before this server; of the
    same name, all values in one."""
    kept: dict[str, str] = {}
    before = head.values.get(b"x-forwarded-for")
    chain = {**head.values, b"x-forwarded-for": peer if before is None else b"%b, %b" % (before, peer)}
    fields = [
        (lower, value) for lower, _, value in head.fields if _for_guest(lower, keyed) and lower not in head.options
    ]
    fields += [(lower, chain[lower]) for lower in FORWARDED if lower in chain]
    for lower, value in fields:
        name, text = lower.decode("latin-1"), value.decode("latin-1")
        kept[name] = f"{kept[name]}{'; ' if lower == b'cookie' else ', '}{text}" if name in kept else text
    return kept


def forwarded(head: RequestHead, peer: bytes, out: list[bytes]) -> None:
    """Add the chain of proxies: the client's own claims are kept in front, as every reverse proxy keeps them."""
    get = head.values.get
    before = get(b"x-forwarded-for")
    if before is not None:
        peer = b"%b, %b" % (before, peer)
    proto, host = get(b"x-forwarded-proto", b"http"), get(b"x-forwarded-host") or get(b"host", b"")
    out += (b"x-forwarded-for: ", peer, b"\r\nx-forwarded-proto: ", proto, b"\r\nx-forwarded-host: ", host, EOL)


def guest_head(
    head: RequestHead,
    *,
    route: Event | Http,
    peer: bytes,
    keyed: bool,
    extra: bytes,
) -> bytes:
    """The request as the guest gets it. `extra` are whole lines: the `x-fc-*` fields.

    `keyed`: what proves the caller's identity was meant for this server, and stays here.
    """
    of = (route, peer, keyed)
    written = head.written
    if written is None or written.of != of:
        written = head.written = Written(of, _guest_head(head, route, peer, keyed))
    return b"%b%b\r\n" % (written.text, extra)


def _guest_head(head: RequestHead, route: Event | Http, peer: bytes, keyed: bool) -> bytes:
    """What is the same for all who ask the same."""
    method = head.method.encode("ascii")
    out = [method, b" ", b"/invoke" if isinstance(route, Event) else route.target, b" HTTP/1.1\r\n"]
    options = head.options
    for lower, name, value in head.fields:
        if _for_guest(lower, keyed) and lower not in options:
            out += (name, b": ", value, EOL)
    frame(head, method, out)
    forwarded(head, peer, out)
    if isinstance(route, Event):
        out.append(b"x-fc-control-path: /invoke\r\n")
    else:
        out += (b"x-forwarded-prefix: ", route.prefix.encode("latin-1"), EOL, b"x-fc-control-path: /http-invoke\r\n")
    return b"".join(out)


def control_head(head: RequestHead, *, peer: bytes, request_id: str, extra: bytes) -> bytes:
    """The request as the control plane gets it: signed fields stay as they are. `extra` are whole lines."""
    method = head.method.encode("ascii")
    out = [method, b" ", head.target, b" HTTP/1.1\r\n"]
    options = head.options
    for lower, name, value in head.fields:
        if _for_control(lower) and lower not in options:
            out += (name, b": ", value, EOL)
    frame(head, method, out)
    forwarded(head, peer, out)
    out += (extra, b"x-fc-request-id: ", request_id.encode("ascii"), b"\r\n\r\n")
    return b"".join(out)


class FunctionFields:
    """Function Compute's request fields for custom runtimes; credentials are empty, as no role is attached.

    All but the request's id are the same for every request to a function's version, and remembered.
    """

    def __init__(self, region: str) -> None:
        self._region = region
        self._known: dict[tuple[int, str], tuple[FunctionSpec, bytes]] = {}

    def lines(self, spec: FunctionSpec, *, qualifier: str, request_id: str) -> bytes:
        """Whole field lines."""
        known = self._known.get((id(spec), qualifier))
        if known is None:  # an id is its spec's own for as long as that is kept here
            if len(self._known) >= _SPECS:
                self._known.clear()
            known = self._known[id(spec), qualifier] = (spec, self._describe(spec, qualifier))
        return b"x-fc-request-id: %b\r\n%b" % (request_id.encode("ascii"), known[1])

    def _describe(self, spec: FunctionSpec, qualifier: str) -> bytes:
        text = (
            f"x-fc-function-name: {spec.name}\r\nx-fc-function-handler: {spec.handler}\r\n"
            f"x-fc-function-memory: {spec.limits.memory_mb}\r\nx-fc-function-timeout: {spec.timeout_s:g}\r\n"
            f"x-fc-region: {self._region}\r\nx-fc-account-id: {spec.account}\r\nx-fc-qualifier: {qualifier}\r\n"
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
    of = (length, chunked, close, keep_alive_10, strip_ours)
    written = head.written
    if written is None or written.of != of:
        written = head.written = Written(of, _response_head(head, of))
    return b"%b%b\r\n" % (written.text, extra)


def _response_head(head: ResponseHead, of: tuple[int | None, bool, bool, bool, bool]) -> bytes:
    """What is the same for all who are answered the same."""
    length, chunked, close, keep_alive_10, strip_ours = of
    out = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    options = head.options
    for lower, name, value in head.fields:
        goes = _for_client(lower, strip_ours)
        if goes is None:
            goes = not _plants_ours(value)
        if goes and lower not in options:
            out += (name, b": ", value, EOL)
    if length is not None:
        out.append(b"content-length: %d\r\n" % length)
    elif chunked:
        out.append(b"transfer-encoding: chunked\r\n")
    if close:
        out.append(b"connection: close\r\n")
    elif keep_alive_10:
        out.append(b"connection: keep-alive\r\n")
    return b"".join(out)


def switching_head(head: ResponseHead, *, extra: bytes) -> bytes:
    """`101 Switching Protocols` as the client gets it."""
    out = [b"HTTP/1.1 101 %b\r\nconnection: Upgrade\r\n" % (head.reason or b"Switching Protocols")]
    for lower, name, value in head.fields:
        goes = lower == b"upgrade" or _for_client(lower, True)
        if goes is None:
            goes = not _plants_ours(value)
        if goes:
            out += (name, b": ", value, EOL)
    out += (extra, EOL)
    return b"".join(out)
