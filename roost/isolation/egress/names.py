"""Addresses that stand for names, in a room whose programs have to connect to an address."""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict

#: For benchmarks of routers (RFC 2544), and nobody's.
NETWORK = ipaddress.IPv4Network("198.18.0.0/15")
#: The first of them are kept for what the room itself is told of.
RESOLVER = "198.18.0.1"
_KEPT = 256
_PLACES = 8  # that a name may have


class Names:
    """One room's: at most `most` names, and the one that was asked for least recently gives way. Where an address is
    free, a name has it again in another table: a program may remember it for longer than the server lives."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._addresses: OrderedDict[str, ipaddress.IPv4Address] = OrderedDict()
        self._names: dict[ipaddress.IPv4Address, str] = {}

    def address(self, name: str) -> ipaddress.IPv4Address:
        """The one that stands for it from now on."""
        if (known := self._addresses.get(name)) is not None:
            self._addresses.move_to_end(name)
            return known
        places = _places(name)
        address = next((place for place in places if place not in self._names), places[0])
        if (other := self._names.get(address)) is not None:  # a room can choose names for which all are taken
            del self._addresses[other]
        elif len(self._addresses) >= self._most:
            _, oldest = self._addresses.popitem(last=False)
            del self._names[oldest]
        self._addresses[name] = address
        self._names[address] = name
        return address

    def name(self, address: ipaddress.IPv4Address) -> str | None:
        """Whom it stands for."""
        return self._names.get(address)


def _places(name: str) -> list[ipaddress.IPv4Address]:
    digest = hashlib.sha256(name.encode()).digest()
    numbers = (int.from_bytes(digest[at : at + 4], "big") for at in range(0, 4 * _PLACES, 4))
    return [NETWORK[_KEPT + number % (NETWORK.num_addresses - _KEPT)] for number in numbers]
