"""A room's way to the world for programs that know no proxy: what leaves its network comes here (`driver.Door`).

Names are answered, and never asked for: one that a rule is about gets an address that stands for it in this room alone,
any other is unknown. A connection to such an address is one to the name, and is looked at by the room's proxy as if it
had been asked for there; a connection to another address is one to that address.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable

from roost.isolation.driver import Door
from roost.isolation.egress import dns
from roost.isolation.egress.addresses import Address, canonical, plain
from roost.isolation.egress.ends import BUFFER, break_off
from roost.isolation.egress.names import NETWORK, Names
from roost.isolation.egress.outward import RoomProxy
from roost.model.errors import InvalidArgument

log = logging.getLogger(__name__)

_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST and its twin of IPv6, from linux/netfilter_ipv4.h
_BACKLOG = 128
_AT_ONCE = 16  # questions that are answered in one turn of the loop
_NAME_SERVICE = 53


class Transparent:
    """One room's. It owns the door; `on_refused` is told each name that was not found, as `name:53`."""

    def __init__(self, door: Door, proxy: RoomProxy, *, on_refused: Callable[[str], None] = lambda name: None) -> None:
        self._door = door
        self._proxy = proxy
        self._on_refused = on_refused
        self._names = Names()
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Raises OSError."""
        for listener in self._door.connections:
            server = await asyncio.start_server(
                self._accept, sock=listener, limit=BUFFER, backlog=_BACKLOG, start_serving=False
            )
            self._servers.append(server)  # before anything can come in between
            await server.start_serving()
        self._door.names.setblocking(False)
        asyncio.get_running_loop().add_reader(self._door.names, self._answer)

    async def close(self) -> None:
        """Take nothing more; what is under way is the proxy's. Idempotent."""
        if self._door.names.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._door.names)
        for server in self._servers:
            server.close()
        self._door.close()

    # --- connections ---------------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meant = _destination(writer.get_extra_info("socket"))
        host = None if meant is None else self._host(meant[0])
        if meant is None or host is None:
            break_off(writer)
        else:
            self._proxy.take(reader, writer, host, meant[1])

    def _host(self, address: Address) -> str | None:
        """None for an address that stands for nothing (any more)."""
        if isinstance(address, ipaddress.IPv4Address) and address in NETWORK:
            return self._names.name(address)
        return str(address)

    # --- names ---------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, asker = self._door.names.recvfrom(dns.MOST + 1)
            except OSError:
                return
            if reply := self._reply(data):
                with contextlib.suppress(OSError):  # who asked has gone, or takes no more: it may ask again
                    self._door.names.sendto(reply, asker)

    def _reply(self, data: bytes) -> bytes:
        try:
            question = dns.parse(data)
        except dns.Unanswerable as error:
            return error.reply
        name = _host_name(question.name)
        if name is not None and self._proxy.may_name(name):
            return dns.found(question, self._names.address(name))
        self._on_refused(f"{(question.name or '')[:255]}:{_NAME_SERVICE}")
        return dns.unknown(question)


def _host_name(name: str | None) -> str | None:
    """The name in its one form; None for what is no name of a host."""
    if not name:
        return None
    try:
        host = canonical(name)
    except InvalidArgument:
        return None
    return host if isinstance(host, str) else None


def _destination(sock: socket.socket) -> tuple[Address, int] | None:
    """Where a connection was meant to go; None for one that was not turned here: the room found the port."""
    is_v4 = sock.family is socket.AF_INET
    try:
        if is_v4:
            raw = sock.getsockopt(socket.SOL_IP, _ORIGINAL_DESTINATION, 16)
            address: Address = ipaddress.IPv4Address(raw[4:8])
        else:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DESTINATION, 28)
            address = plain(ipaddress.IPv6Address(raw[8:24]))
    except OSError:
        return None
    return None if address.is_loopback else (address, int.from_bytes(raw[2:4], "big"))
