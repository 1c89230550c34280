"""From a request target to what it means. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qs, unquote

from roost.model.errors import InvalidArgument, NotFound
from roost.model.function import LATEST

#: First segments that belong to the control plane; no function can take one of these names.
RESERVED = frozenset(
    {
        "2023-03-30", "healthz", "metrics", "roost",
        "sandboxes", "v2", "v3", "templates", "snapshots", "volumes", "volumecontent", "secrets", "teams",
        "webhooks", "default-templates",
    }
)  # fmt: skip

#: Longer targets are looked at anew each time.
_SHORT = 512
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_ACCOUNT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_QUALIFIER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}")
_EVENT = re.compile(rb"/2023-03-30/functions/([^/?]+)/invocations(?:\?(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Control:
    """For the control plane, target as it is."""


@dataclass(slots=True)
class Event:
    """InvokeFunction: the body is an event."""

    name: str
    qualifier: str


@dataclass(slots=True)
class Http:
    """An HTTP request for a function. Not frozen: that would cost a microsecond a request."""

    name: str
    qualifier: str
    prefix: str  # "/name" or "/name:qualifier", as the client wrote it; behind "/~account" if that is named
    target: bytes  # what is behind the prefix; always begins with "/"
    account: str = ""  # whose function; "" for the server's own account


Route = Control | Event | Http


def route(method: str, target: bytes) -> Route:
    """What `method target` means. Raises NotFound for a path that can't name a function, InvalidArgument for a bad
    name or qualifier. `target` is in origin form. The answer is shared by those who ask the same."""
    return _known(method, target) if len(target) <= _SHORT else _route(method, target)


def _route(method: str, target: bytes) -> Route:
    if target.startswith(b"/~"):
        return _of_account(target)
    end = _segment_end(target)
    named = _named(target[:end])
    if named is None:
        match = _EVENT.fullmatch(target) if method == "POST" else None
        return _event(match[1], match[2] or b"") if match else Control()
    name, qualifier, prefix = named
    rest = target[end:]
    return Http(name, qualifier, prefix, rest if rest.startswith(b"/") else b"/" + rest)


def _of_account(target: bytes) -> Http:
    """`/~<account>/<function>...`: any account's function."""
    own = _segment_end(target)
    account = target[2:own].decode("latin-1")
    rest = target[own:]
    end = _segment_end(rest) if rest.startswith(b"/") else 0
    named = _named(rest[:end]) if end and _ACCOUNT.fullmatch(account) else None
    if named is None:
        raise NotFound("No function here: a path begins with /~<account>/<function>.", code="FunctionNotFound")
    name, qualifier, prefix = named
    behind = rest[end:]
    return Http(name, qualifier, f"/~{account}{prefix}", behind if behind.startswith(b"/") else b"/" + behind, account)


_known = lru_cache(1024)(_route)


@lru_cache(1024)
def _named(segment: bytes) -> tuple[str, str, str] | None:
    """(name, qualifier, prefix) of the function that a first segment with its slash names; None for a reserved one."""
    prefix = segment.decode("latin-1")
    first = unquote(prefix[1:]) if "%" in prefix else prefix[1:]
    if first in RESERVED:
        return None
    name, colon, qualifier = first.partition(":")
    if not _NAME.fullmatch(name):
        raise NotFound(
            "No function here: a path begins with /<function> or /<function>:<qualifier>.", code="FunctionNotFound"
        )
    return name, _check_qualifier(qualifier) if colon else LATEST, prefix


def _segment_end(target: bytes) -> int:
    query = target.find(b"?")
    end = len(target) if query < 0 else query
    slash = target.find(b"/", 1, end)
    return end if slash < 0 else slash


def _event(segment: bytes, query: bytes) -> Event:
    name = unquote(segment.decode("latin-1"))
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            "A function name has 1 to 64 letters, digits, '_' or '-' and begins with a letter or '_'."
        )
    given = parse_qs(query.decode("latin-1")).get("qualifier") if query else None
    return Event(name, _check_qualifier(given[0]) if given else LATEST)


def _check_qualifier(value: str) -> str:
    if not _QUALIFIER.fullmatch(value):
        raise InvalidArgument("A qualifier is LATEST, a version number or an alias.")
    return value
