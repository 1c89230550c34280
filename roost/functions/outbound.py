"""Where the server itself connects to for an account: brokers of its triggers, destinations of its tasks, its models.

The server's own account is its operator's, and may name any address. Another one's settings must not make the server
knock at doors of its own networks: their names are resolved here, once, and what was looked at is what is dialled;
where TLS proves the name, that does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from roost.functions.triggers.endpoints import SCHEMES
from roost.functions.triggers.kinds import SOURCES
from roost.isolation.egress.addresses import Address, canonical
from roost.isolation.egress.rules import Reach
from roost.model.errors import InvalidArgument, Unavailable
from roost.store.triggers import TriggerRecord

_POSTGRESQL = ("postgresql", "postgres")
#: Options of a PostgreSQL address that name no place, no file and no program of the server's machine.
_POSTGRESQL_OPTIONS = frozenset({"sslmode", "channel_binding", "application_name", "target_session_attrs"})

Resolve = Callable[[str, int], Awaitable[list[Address]]]


class Outbound:
    """`own` is the server's own account."""

    def __init__(self, own: str, reach: Reach, resolve: Resolve) -> None:
        self._own = own
        self._reach = reach
        self._resolve = resolve

    async def trigger(self, record: TriggerRecord) -> TriggerRecord:
        """The trigger with addresses that may be connected to. Raises InvalidArgument, Unavailable."""
        shape = SOURCES.get(record.type)
        if record.account == self._own or shape is None:
            return record
        admitted = {
            field: await self.address(record.account, str(record.config[field]))
            for field in shape.URLS
            if record.config.get(field)
        }
        return replace(record, config={**record.config, **admitted}) if admitted else record

    async def address(self, account: str, url: str) -> str:
        """The same place, in a form that leads nowhere else. Raises InvalidArgument for one that it may not be,
        Unavailable for a name without an address."""
        if account == self._own:
            return url
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname or ""
        if scheme == "http":
            raise InvalidArgument("For an account other than its own the server connects by https, not http.")
        if scheme in _POSTGRESQL:
            _check_postgresql(parts.query)
        found = await self._checked(host, parts.port or 0)
        if scheme == "https" or (scheme in SCHEMES and SCHEMES[scheme].secure):
            return url
        if scheme in _POSTGRESQL:
            query = urlencode([*parse_qsl(parts.query), ("hostaddr", str(found))])
            return urlunsplit(parts._replace(query=query))
        user, at, _ = parts.netloc.rpartition("@")
        port = f":{parts.port}" if parts.port else ""
        shown = f"[{found}]" if isinstance(found, ipaddress.IPv6Address) else str(found)
        return urlunsplit(parts._replace(netloc=f"{user}{at}{shown}{port}"))

    async def _checked(self, host: str, port: int) -> Address:
        name = canonical(host)
        try:
            found = [name] if not isinstance(name, str) else await self._resolve(name, port)
        except OSError:
            found = []
        if not found:
            raise Unavailable(f"{host} has no address.")
        if not all(self._reach.has(address) for address in found):
            raise InvalidArgument(f"{host} is, or leads to, an address of this server's own networks.")
        return found[0]


def _check_postgresql(query: str) -> None:
    """Raises InvalidArgument."""
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name not in _POSTGRESQL_OPTIONS:
            raise InvalidArgument(f"The option {name[:40]!r} of a PostgreSQL address is for the server's own account.")
