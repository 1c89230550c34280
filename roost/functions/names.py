"""Names, qualifiers and resource names (ARNs)."""

from __future__ import annotations

import re
from typing import Literal

from roost.model.errors import InvalidArgument
from roost.model.function import LATEST

#: The first path segments that the control plane answers itself.
RESERVED = frozenset(
    {
        "2023-03-30", "healthz", "metrics", "roost",
        "sandboxes", "v2", "v3", "templates", "snapshots", "volumes", "volumecontent", "secrets", "teams",
        "webhooks",
    }
)  # fmt: skip

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_LONG_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
_LAYER_ARN = re.compile(r"acs:fc:[^:]*:([^:]*):layers/([^/]+)/versions/([0-9]{1,9})")
_OWNER_ARN = re.compile(r"acs:fc:[^:]*:([^:]*):(functions?|layers?)/([^/]+)")

OwnerKind = Literal["function", "layer"]


def check_function_name(name: str) -> str:
    """Return a legal, unreserved function name, else raise InvalidArgument."""
    if name in RESERVED:
        raise InvalidArgument(f"functionName: {name!r} is reserved for the server's own addresses.")
    return check_name("functionName", name)


def check_name(field: str, name: str) -> str:
    """1-64 letters, digits, '_' and '-'; the first is a letter or '_'."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{field}: {name[:80]!r} is not 1 to 64 letters, digits, '_' or '-' that start with a letter or '_'."
        )
    return name


def check_trigger_name(name: str) -> str:
    """Like a function's, but up to 128 long."""
    if not _LONG_NAME.fullmatch(name):
        raise InvalidArgument(
            f"triggerName: {name[:80]!r} is not 1 to 128 letters, digits, '_' or '-' that start with a letter or '_'."
        )
    return name


def check_alias_name(name: str) -> str:
    if name.upper() == LATEST:
        raise InvalidArgument(f"aliasName: {LATEST} names the unpublished state of a function.")
    return check_name("aliasName", name)


def function_arn(region: str, account: str, name: str, qualifier: str = "") -> str:
    arn = f"acs:fc:{region}:{account}:functions/{name}"
    return f"{arn}/{qualifier}" if qualifier else arn


def layer_arn(region: str, account: str, name: str, version: int) -> str:
    return f"acs:fc:{region}:{account}:layers/{name}/versions/{version}"


def parse_layer_arn(arn: str) -> tuple[str, str, int]:
    """(account, layer, version). The region is not looked at: there is one. Raises InvalidArgument."""
    match = _LAYER_ARN.fullmatch(arn)
    if match is None:
        raise InvalidArgument(
            f"layers: {arn[:200]!r} is not of the form acs:fc:<region>:<account>:layers/<name>/versions/<version>."
        )
    return match[1], match[2], int(match[3])


def parse_owner_arn(arn: str) -> tuple[str, OwnerKind, str]:
    """(account, kind, name) of a resource that can carry tags. Raises InvalidArgument."""
    match = _OWNER_ARN.fullmatch(arn)
    if match is None:
        raise InvalidArgument(
            f"ResourceId: {arn[:200]!r} is not of the form acs:fc:<region>:<account>:functions/<name>."
        )
    return match[1], "function" if match[2].startswith("function") else "layer", match[3]
