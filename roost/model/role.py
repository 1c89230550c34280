"""Who calls, and how much they may: four roles, each with all that the ones before it may."""

from __future__ import annotations

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
#: Who calls where no keys are asked for.
ANONYMOUS = "anonymous"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Somebody whose key was right. `key` is its id; `operator`: the account is the server's own."""

    account: str
    key: str
    role: Role
    operator: bool
