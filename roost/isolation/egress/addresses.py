"""Names and addresses that a room asks for: in one form each, and which of them are the public internet's. Pure."""

from __future__ import annotations

import ipaddress
import re

from roost.model.errors import InvalidArgument

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
#: What a resolver takes for an address of version 4 in another form: 2130706433, 0x7f.1, 0177.0.0.1.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
#: Shared by carriers, where clouds have services of their own; translated by routers. Pythons differ in these.
_OTHERS = tuple(
    ipaddress.ip_network(text) for text in ("100.64.0.0/10", "192.88.99.0/24", "64:ff9b::/96", "64:ff9b:1::/48")
)


def canonical(host: str) -> str | Address:
    """A name in lower case, or an address. Raises InvalidArgument for what is neither, or could be taken for another:
    names with a dot at the end, of other letters than ASCII's, addresses in short, octal or hexadecimal form."""
    text = host.lower()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if ":" not in text:
            raise InvalidArgument(_strange(host))
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if len(text) > 253 or not _NAME.fullmatch(text) or _NUMBER.fullmatch(text):
            raise InvalidArgument(_strange(host)) from None
        return text
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise InvalidArgument(_strange(host))
    return plain(address)


def plain(address: Address) -> Address:
    """An address of version 4 that is written as one of version 6 is that of version 4."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_public(address: Address) -> bool:
    """Whether it belongs to the internet at large: not to this machine, its networks, or a service beside it, also not
    by a translation."""
    address = plain(address)
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if any(address in network for network in _OTHERS):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    inner = [address.sixtofour, *(address.teredo or ())]
    return not address.is_site_local and all(is_public(one) for one in inner if one is not None)


def _strange(host: str) -> str:
    return f"{host[:100]!r} is no name and no address of a host."
