"""Which sandboxes a listing shows, in which order, a page at a time. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from roost.model.errors import InvalidArgument
from roost.model.sandbox import Sandbox, SandboxState


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What is asked for. None and empty: everything."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    states: frozenset[SandboxState] = frozenset(SandboxState)
    started_after: float = float("-inf")
    template: str = ""
    newest_first: bool = True
    limit: int = 100
    token: str = ""


def page(sandboxes: Iterable[Sandbox], listing: Listing) -> tuple[list[Sandbox], str]:
    """One page, and the token of the next one, "" at the end.

    The token is a place in the order: a sandbox that is gone meanwhile does not end the listing. Raises
    InvalidArgument for a token that is none.
    """
    found = sorted((s for s in sandboxes if _shown(s, listing)), key=_place, reverse=listing.newest_first)
    if listing.token:
        after = parse_place(listing.token)
        found = [s for s in found if (_place(s) < after if listing.newest_first else _place(s) > after)]
    shown = found[: listing.limit]
    return shown, place_token(*_place(shown[-1])) if len(found) > len(shown) else ""


def _shown(sandbox: Sandbox, listing: Listing) -> bool:
    return (
        sandbox.state in listing.states
        and sandbox.created >= listing.started_after
        and listing.template in ("", sandbox.template, sandbox.alias)
        and all(sandbox.metadata.get(key) == value for key, value in listing.metadata.items())
    )


def _place(sandbox: Sandbox) -> tuple[float, str]:
    return (sandbox.created, sandbox.id)


def place_token(created: float, id: str) -> str:
    """Names a place in a list."""
    return base64.urlsafe_b64encode(f"{created!r} {id}".encode()).decode()


def parse_place(token: str) -> tuple[float, str]:
    """Raises InvalidArgument for a token that is none."""
    try:
        created, _, id = base64.urlsafe_b64decode(token.encode("ascii")).decode("ascii").partition(" ")
        return float(created), id
    except (ValueError, binascii.Error):
        raise InvalidArgument(f"nextToken: {token[:40]!r} is not from an earlier answer.") from None
