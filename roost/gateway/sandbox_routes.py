"""Which requests are for a sandbox, and for which port of it. Pure.

<port>-<sandbox>.<domain>                       by the name of the host
E2b-Sandbox-Id and E2b-Sandbox-Port             by fields, where the host's name can't say it: localhost, an
                                                address, sandbox.<domain>
/files?path=...&signature=v1_...                a signed link without either: the signature tells
OPTIONS, about to send E2b-Sandbox-Id           a browser's question before; it can't say which sandbox yet
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from roost.gateway.head import RequestHead
from roost.model.errors import InvalidArgument

#: Served by the sandbox's own daemon.
ENVD_PORT = 49983
INTERPRETER_PORT = 49999
DAEMON_PORTS = frozenset({ENVD_PORT, INTERPRETER_PORT})

_ID = b"e2b-sandbox-id"
_PORT = b"e2b-sandbox-port"
_NAMED = re.compile(rb"([0-9]{1,5})-(i[a-z0-9]{19})\.(.+)")
_WILL_SEND = b"access-control-request-headers"
_LINK = b"/files?"
#: A name has 253 bytes at most; what is longer is not even remembered.
_MOST_HOST = 270


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxTarget:
    """`id` is "" when the signature of a link has to tell it, or nobody needs it. `domain` is what the host's name has
    behind the id."""

    id: str
    port: int
    domain: bytes = b""


def target_of(head: RequestHead) -> SandboxTarget | None:
    """Where a request goes, None if to no sandbox. Raises InvalidArgument for fields that name none."""
    values = head.values
    named, shared = _of_host(values.get(b"host", b""))
    if named is not None:
        return named
    if shared and (_ID in values or _PORT in values):
        return _by_fields(values.get(_ID, b""), values.get(_PORT, b""))
    if shared and head.method == "OPTIONS" and _ID in values.get(_WILL_SEND, b"").lower():
        return SandboxTarget(id="", port=ENVD_PORT)
    if head.target.startswith(_LINK) and b"signature=v1_" in head.target:
        return SandboxTarget(id="", port=ENVD_PORT)
    return None


def is_sandbox_host(host: bytes) -> bool:
    """Whether `host[:port]` is the name of a sandbox's port."""
    return _of_host(host)[0] is not None


def _by_fields(id: bytes, port: bytes) -> SandboxTarget:
    if not id or not port:
        raise InvalidArgument("E2b-Sandbox-Id and E2b-Sandbox-Port go together.")
    if not re.fullmatch(rb"[a-zA-Z0-9-]{1,64}", id):
        raise InvalidArgument("E2b-Sandbox-Id is no id of a sandbox.")
    return SandboxTarget(id=id.decode("ascii"), port=_port(port))


def _port(text: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise InvalidArgument("A port is a number from 1 to 65535.")
    return int(text)


def _of_host(host: bytes) -> tuple[SandboxTarget | None, bool]:
    """The sandbox that a host's name tells, and whether fields may tell another."""
    return _judge(host) if len(host) <= _MOST_HOST else (None, False)


@lru_cache(1024)
def _judge(host: bytes) -> tuple[SandboxTarget | None, bool]:
    name = host.lower()
    name = name[1:].partition(b"]")[0] if name.startswith(b"[") else name.partition(b":")[0]
    match = _NAMED.fullmatch(name)
    if match is not None and 1 <= int(match[1]) <= 65535:
        return SandboxTarget(id=match[2].decode("ascii"), port=int(match[1]), domain=match[3]), False
    return None, name == b"localhost" or name.startswith(b"sandbox.") or _is_address(name)


def _is_address(name: bytes) -> bool:
    try:
        ipaddress.ip_address(name.decode("latin-1"))
    except ValueError:
        return False
    return True
