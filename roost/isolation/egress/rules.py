"""What a room may reach: rules over names, networks, ports, and for plain HTTP methods and paths. Pure.

    example.com                    that name alone, at ports 80 and 443
    *.example.com                  every name below it
    *                              every name and address, at every port
    example.com:5432               at this port; but for 80 and 443, what is said there is not looked into
    192.0.2.0/24                   addresses, at every port
    GET,HEAD example.com/v1/*      requests of this kind alone

An address of this machine's networks is never reached by these: who runs the server opens those (`Reach`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote

from roost.isolation.egress.addresses import Address, Network, canonical, is_public, plain
from roost.model.errors import InvalidArgument

WEB = frozenset({80, 443})
MOST_RULES = 1000
_MOST_TEXT = 300
_METHODS = re.compile(r"[A-Z]{1,20}(,[A-Z]{1,20})*")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`network` for addresses, else `name`, which may be "*" or begin with "*."; no `ports` are all of them."""

    name: str = ""
    network: Network | None = None
    ports: frozenset[int] = frozenset()
    methods: frozenset[str] = frozenset()  # of requests, which nobody sees in a tunnel that is not looked into
    path: str = ""  # the same; "*" stands for anything

    @property
    def of_http(self) -> bool:
        return bool(self.methods or self.path)

    def fits(self, target: Target) -> bool:
        if self.ports and target.port not in self.ports:
            return False
        return self._fits_host(target) and (not self.of_http or self._fits_request(target))

    def may_fit(self, name: str, port: int | None) -> bool:
        """Whether it can be about a name that is not resolved yet; None is any port."""
        if self.ports and port is not None and port not in self.ports:
            return False
        return self.network is not None or self._fits_name(name)

    def _fits_host(self, target: Target) -> bool:
        if self.network is not None:
            return target.address is not None and target.address in self.network
        return self.name == "*" or (target.name != "" and self._fits_name(target.name))

    def _fits_name(self, name: str) -> bool:
        if self.name.startswith("*."):
            return name.endswith(self.name[1:])
        return self.name in ("*", name)

    def _fits_request(self, target: Target) -> bool:
        if target.method == "":
            return False
        if self.methods and target.method not in self.methods:
            return False
        return not self.path or (_is_plain(target.path) and fnmatchcase(target.path, self.path))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a room asks for. `name` is "" where it gave an address; `address` is None until the name is resolved;
    `method` is "" in a tunnel."""

    name: str = ""
    address: Address | None = None
    port: int
    method: str = ""
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`allow` wins over `deny`, as E2B has it; `otherwise` is allowed where neither says anything. `most_bytes` go
    either way in a room's life, over `most_connections` at once; 0 leaves it at what every room may."""

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    otherwise: tuple[Rule, ...] = ()
    most_bytes: int = 0
    most_connections: int = 0

    @property
    def opens(self) -> bool:
        """Whether anything may be reached at all."""
        return bool(self.allow or self.otherwise)

    @property
    def has_requests(self) -> bool:
        """Whether any rule is about methods or paths."""
        return any(rule.of_http for rule in (*self.allow, *self.otherwise))

    def may_resolve(self, name: str, port: int | None) -> bool:
        """Whether the name is worth a look, at that port or (None) at any; no other is ever told to a resolver."""
        return any(rule.may_fit(name, port) for rule in (*self.allow, *self.otherwise))

    def is_of_requests(self, name: str, port: int) -> bool:
        """Whether it depends on methods and paths what may be reached there."""
        about = [rule.of_http for rule in (*self.allow, *self.otherwise) if rule.may_fit(name, port)]
        return bool(about) and all(about)

    def allows(self, target: Target) -> bool:
        """Of a target whose address is known."""
        if any(rule.fits(target) for rule in self.allow):
            return True
        if any(rule.fits(target) for rule in self.deny):
            return False
        return any(rule.fits(target) for rule in self.otherwise)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Addresses that may be dialled at all: the public ones, and those of networks that the operator opened."""

    private: tuple[Network, ...] = ()

    def has(self, address: Address) -> bool:
        address = plain(address)
        return is_public(address) or any(address in network for network in self.private)


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Raises InvalidArgument that names the first bad one."""
    rules = tuple(parse_rule(text) for text in texts)
    if len(rules) > MOST_RULES:
        raise InvalidArgument(f"At most {MOST_RULES} rules are taken.")
    return rules


def parse_rule(text: str) -> Rule:
    """Raises InvalidArgument."""
    if len(text) > _MOST_TEXT:
        raise InvalidArgument(f"A rule of egress has at most {_MOST_TEXT} characters.")
    methods, space, rest = text.rpartition(" ")
    if space and not _METHODS.fullmatch(methods):
        raise _bad(text)
    network = None if space else _network(rest)
    if network is not None:
        return Rule(network=network)
    place, slash, path = rest.partition("/")
    host, colon, port = place.partition(":")
    if colon and not (port.isascii() and port.isdigit() and len(port) < 6 and 1 <= int(port) <= 65535):
        raise _bad(text)
    return Rule(
        name=_name(host, text),
        ports=frozenset({int(port)}) if colon else frozenset() if host == "*" else WEB,
        methods=frozenset(methods.split(",")) if space else frozenset(),
        path=slash + path,
    )


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Raises InvalidArgument."""
    networks = []
    for text in texts:
        network = _network(text)
        if network is None:
            raise InvalidArgument(f"{text[:100]!r} is no address and no network.")
        networks.append(network)
    return tuple(networks)


def _name(host: str, text: str) -> str:
    if host == "*":
        return host
    wild = host.startswith("*.")
    try:
        name = canonical(host.removeprefix("*."))
    except InvalidArgument:
        raise _bad(text) from None
    if not isinstance(name, str):
        raise _bad(text)
    return f"*.{name}" if wild else name


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_plain(path: str) -> bool:
    """Whether every server takes it for the same: without "..", not even one that is disguised."""
    parts = path.split("/")
    plainly = [unquote(part) for part in parts]
    return not any(part in (".", "..") or "/" in part or "\\" in part or "%" in part for part in plainly)


def _bad(text: str) -> InvalidArgument:
    return InvalidArgument(
        f"{text[:100]!r} is no rule of egress: a name, *.name, name:port, an address, a network, or METHOD name/path."
    )
