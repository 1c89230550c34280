"""What the headers of a call say of the caller. Pure."""

from __future__ import annotations

import base64
import binascii

from roost.guest.http1 import Head
from roost.guest.sandbox.connect import Code, ConnectError
from roost.guest.sandbox.identities import Identities, UnknownUser, User

DEFAULT_KEEPALIVE_S = 90.0
MAX_KEEPALIVE_S = 3600.0


def user_of(head: Head, identities: Identities) -> User:
    """Who acts: the user name of Basic authorization (there is no password), else the default user.

    Raises ConnectError.
    """
    name = _basic_user(head.get("authorization"))
    try:
        return identities.lookup(identities.default if name is None else name)
    except UnknownUser:
        which = "username" if name is not None else "default user"
        shown = identities.default if name is None else name[:100]
        raise ConnectError(Code.UNAUTHENTICATED, f"invalid {which}: '{shown}'") from None


def keepalive_of(head: Head) -> float:
    """Seconds without an event after which a stream gets a keepalive."""
    text = head.get("keepalive-ping-interval")
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) == 0:
        return DEFAULT_KEEPALIVE_S
    return min(float(text), MAX_KEEPALIVE_S)


def _basic_user(header: str) -> str | None:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    name, colon, _ = text.partition(":")
    return name if colon else None
