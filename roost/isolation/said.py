"""What rooms say of why something is not: hostile, and nested as deeply as may be. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_MOST, _LENGTH = 32, 200


def reasons(said: Sequence[object]) -> list[str]:
    """Those that are text."""
    return [reason(one) for one in said[:_MOST] if isinstance(one, str)]


def reason(said: object, most: int = _LENGTH) -> str:
    """One that can be encoded: JSON may hold halves of surrogate pairs. "" for what is no text."""
    return said[:most].encode("utf-8", "replace").decode() if isinstance(said, str) else ""
