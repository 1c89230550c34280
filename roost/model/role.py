"""Who calls, and how much they may: four roles, each with all that the ones before it may."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """In rising order."""

    VIEWER = 1  # reads
    INVOKER = 2  # calls functions, uses sandboxes and sessions
    DEVELOPER = 3  # changes functions, sandboxes, templates, volumes, secrets, objects
    ADMIN = 4  # keys and quotas


#: By the names that people use.
ROLES = {role.name.lower(): role for role in Role}
#: What a key may be for: a tool of MCP, a function that is invoked.
TOOL, FUNCTION = "tool:", "function:"
MOST_GRANTS = 100
_GRANT = re.compile(r"tool:[a-z_]{1,64}|function:[A-Za-z_][A-Za-z0-9_-]{0,63}")
#: Who calls where no keys are asked for.
ANONYMOUS = "anonymous"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Somebody whose key was right. `key` is its id; `operator`: the account is the server's own."""

    account: str
    key: str
    role: Role
    operator: bool
    grants: frozenset[str] = frozenset()


def is_grant(text: str) -> bool:
    return _GRANT.fullmatch(text) is not None


def covers(grants: Collection[str], thing: str) -> bool:
    """Whether a key with these is for `thing`, a grant; a bare TOOL is any of them. Without grants it is for
    everything that its role may, with some for these alone."""
    return not grants or thing in grants or (thing == TOOL and any(one.startswith(TOOL) for one in grants))
