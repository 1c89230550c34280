"""Addresses of message brokers, as URLs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What a URL's scheme stands for."""

    kind: str  # the type of the trigger
    port: int
    secure: bool = False


SCHEMES: Mapping[str, Scheme] = {
    "redis": Scheme(kind="redis", port=6379),
    "rediss": Scheme(kind="redis", port=6379, secure=True),
    "amqp": Scheme(kind="rabbitmq", port=5672),
    "amqps": Scheme(kind="rabbitmq", port=5671, secure=True),
    "nats": Scheme(kind="nats", port=4222),
    "tls": Scheme(kind="nats", port=4222, secure=True),
    "mqtt": Scheme(kind="mqtt", port=1883),
    "mqtts": Scheme(kind="mqtt", port=8883, secure=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a broker is and who asks. `path` is decoded and without its first slash; `options` are the query's."""

    kind: str
    host: str
    port: int
    secure: bool
    user: str
    password: str
    path: str
    options: Mapping[str, str]

    @property
    def place(self) -> str:
        """For messages: no secret is in it."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def endpoint_of(url: str) -> Endpoint:
    """Raises ValueError with half a sentence that says what is wrong, and does not repeat what may be secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), max_num_fields=10)
    except ValueError as error:
        raise ValueError(
            "this is no URL (a character of a user or password that means something is written %XX)"
        ) from error
    scheme = SCHEMES.get(parts.scheme)
    if scheme is None:
        raise ValueError(f"a URL is expected that begins with {', '.join(f'{name}://' for name in SCHEMES)}")
    if not parts.hostname:
        raise ValueError("the URL names no host")
    if parts.fragment:
        raise ValueError("the URL has a '#', which means nothing here (in a password it is written %23)")
    if len(dict(options)) != len(options):
        raise ValueError("an option is in the URL twice")
    return Endpoint(
        kind=scheme.kind,
        host=parts.hostname,
        port=port or scheme.port,
        secure=scheme.secure,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        path=unquote(parts.path[1:]),
        options=dict(options),
    )
