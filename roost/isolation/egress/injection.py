"""What the proxy adds to a room's requests: headers by the host, and secrets in place of what stands for them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from roost.isolation.egress.addresses import canonical
from roost.isolation.egress.placeholders import names
from roost.model.errors import InvalidArgument

_HTTP, _HTTPS = 80, 443
MOST_HOSTS = 100
_MOST_HEADERS = 50
_LEAST_PLACEHOLDER, _MOST_PLACEHOLDER = 4, 256
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
#: Of a header's value (RFC 9110, 5.5).
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]{0,8192}")
#: They are of the connection, or say where a message goes and where it ends: the proxy's own.
_OWN = frozenset(
    (
        "accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where requests go."""

    name: str  # or "*.name", for all below it
    port: int
    tls: bool

    def fits(self, name: str, port: int, *, tls: bool) -> bool:
        if (port, tls) != (self.port, self.tls):
            return False
        return name.endswith(self.name[1:]) if self.name.startswith("*.") else name == self.name


@dataclass(frozen=True, kw_only=True)
class Headers:
    """What each request to a place is given; it replaces what the room says itself."""

    place: Place
    fields: tuple[tuple[str, str], ...]  # lower-case names; values may have placeholders
    replacements: tuple[tuple[str, str], ...] = ()  # of texts within values of the room's own headers
    secrets: bool = True  # whether they may be sent there

    def of(self, name: str, port: int, *, tls: bool) -> tuple[tuple[str, str], ...]:
        """Raises InvalidArgument when they are not for such a request."""
        if not self.place.fits(name, port, tls=tls):
            return ()
        if not self.secrets and names(value for _, value in self.fields):
            raise InvalidArgument(f"A secret goes to {name} by https alone, unless a rule for http://{name} says so.")
        return self.fields


@dataclass(frozen=True, kw_only=True)
class Injection:
    """All of one room. `granted` are the secrets that it may name by itself."""

    headers: tuple[Headers, ...] = ()
    granted: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.headers or self.granted)

    def replacements(self, name: str, port: int, *, tls: bool) -> dict[str, str]:
        """What stands for something in headers of a request to there, and what it stands for."""
        found: dict[str, str] = {}
        for one in self.headers:
            if one.secrets and one.place.fits(name, port, tls=tls):
                found.update(one.replacements)
        return found

    def fields(self, name: str, port: int, *, tls: bool) -> dict[str, str]:
        """The headers of a request to there; what is said later wins. Raises InvalidArgument."""
        found: dict[str, str] = {}
        for one in self.headers:
            found.update(one.of(name, port, tls=tls))
        return found


def parse_place(text: str) -> Place:
    """A name or `*.name`, and `:port` if it is not the usual one; by TLS, unless `http://` is before it.
    Raises InvalidArgument."""
    tls = not text.startswith("http://")
    host, colon, port = text.removeprefix("http://").removeprefix("https://").partition(":")
    wild = host.startswith("*.")
    try:
        name = canonical(host.removeprefix("*."))
    except InvalidArgument:
        name = ""
    if not isinstance(name, str) or not name or (colon and not _PORT.fullmatch(port)):
        raise InvalidArgument(f"{text[:100]!r} is no host: a name, *.name, or name:port is expected.")
    return Place(name=f"*.{name}" if wild else name, port=int(port or (_HTTPS if tls else _HTTP)), tls=tls)


def bound_places(metadata: Mapping[str, str]) -> tuple[Place, ...]:
    """Where a secret may go: the places, parted by commas or spaces, of its entry `hosts`. Raises InvalidArgument."""
    texts = metadata.get("hosts", "").replace(",", " ").split()
    if len(texts) > MOST_HOSTS:
        raise InvalidArgument(f"A secret is for at most {MOST_HOSTS} hosts.")
    return tuple(parse_place(text) for text in texts)


def is_bound(places: Iterable[Place], name: str, port: int, *, tls: bool) -> bool:
    return any(place.fits(name, port, tls=tls) for place in places)


def parse_headers(rules: Mapping[str, Iterable[Mapping[str, Any]]]) -> tuple[Headers, ...]:
    """E2B's `network.rules`, and Function Compute's: for each host a list of `{"transform": {"headers": {name: value},
    "headerValueReplacements": [{"placeholder", "value"}]}}`.

    Raises InvalidArgument that names the first bad one.
    """
    if len(rules) > MOST_HOSTS:
        raise InvalidArgument(f"At most {MOST_HOSTS} hosts have rules of their own.")
    found = []
    for host, listed in rules.items():
        fields: dict[str, str] = {}
        replacements: dict[str, str] = {}
        for rule in listed:
            transform = rule.get("transform") or {}
            for name, value in (transform.get("headers") or {}).items():
                _check_field(host, name, value)
                fields[name.lower()] = value
            for one in transform.get("headerValueReplacements") or ():
                _check_replacement(host, one["placeholder"], one["value"])
                replacements[one["placeholder"]] = one["value"]
        if max(len(fields), len(replacements)) > _MOST_HEADERS:
            raise InvalidArgument(f"{host[:100]!r}: at most {_MOST_HEADERS} headers of a request are changed.")
        place, kept = parse_place(host), tuple(fields.items())
        found.append(Headers(place=place, fields=kept, replacements=tuple(replacements.items())))
        if "://" not in host and ":" not in host:  # as E2B has it: both
            found.append(Headers(place=replace(place, port=_HTTP, tls=False), fields=kept, secrets=False))
    return tuple(found)


def _check_field(host: str, name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name) or name.lower() in _OWN:
        raise InvalidArgument(f"{host[:100]!r}: {name[:100]!r} is no header that can be set.")
    if not _VALUE.fullmatch(value):
        raise InvalidArgument(f"{host[:100]!r}: the value of {name[:100]} can't be that of a header.")


def _check_replacement(host: str, placeholder: str, value: str) -> None:
    if not _LEAST_PLACEHOLDER <= len(placeholder) <= _MOST_PLACEHOLDER:
        raise InvalidArgument(
            f"{host[:100]!r}: a placeholder has {_LEAST_PLACEHOLDER} to {_MOST_PLACEHOLDER} characters, so that it is "
            "not found by chance."
        )
    if not _VALUE.fullmatch(value):
        raise InvalidArgument(f"{host[:100]!r}: the value behind {placeholder[:100]!r} can't be part of a header.")


def injection_of(rules: Mapping[str, Iterable[Mapping[str, Any]]], variables: Iterable[str]) -> Injection:
    """`variables` are the values of the room's environment: a secret that one of them names is granted to the room.
    Raises InvalidArgument."""
    return Injection(headers=parse_headers(rules), granted=names(variables))
