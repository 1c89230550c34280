"""Pages of a list that is sorted by a key. The token is the key of the next page's first item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from roost.model.errors import InvalidArgument

T = TypeVar("T")

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


def limit_of(query: Mapping[str, str], *, default: int = DEFAULT_LIMIT, most: int = MAX_LIMIT) -> int:
    """`limit`, 1 to `most`. Raises InvalidArgument."""
    text = query.get("limit") or query.get("Limit") or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise InvalidArgument(f"limit: a number from 1 to {most} is expected, not {text[:40]!r}.")
    return int(text)


def page(
    items: Iterable[T], key: Callable[[T], str], *, limit: int, token: str = "", prefix: str = ""
) -> tuple[list[T], str]:
    """Up to `limit` items whose key starts with `prefix`, from `token` on; and the next token, "" at the end.

    An item that was removed between two pages does not end the listing: the token is a place, not an item.
    """
    chosen = sorted((item for item in items if key(item).startswith(prefix) and key(item) >= token), key=key)
    rest = chosen[limit:]
    return chosen[:limit], key(rest[0]) if rest else ""


def page_numbers(
    items: Iterable[T], key: Callable[[T], int], *, limit: int, token: str = "", descending: bool = False
) -> tuple[list[T], str]:
    """The same by number, in either direction. Raises InvalidArgument for a token that is none."""
    if token and not (token.isascii() and token.isdigit() and len(token) < 12):
        raise InvalidArgument(f"nextToken: {token[:40]!r} is not from an earlier answer.")
    chosen = sorted(items, key=key, reverse=descending)
    if token:
        start = int(token)
        chosen = [item for item in chosen if (key(item) <= start if descending else key(item) >= start)]
    rest = chosen[limit:]
    return chosen[:limit], str(key(rest[0])) if rest else ""


def with_token(body: dict[str, object], token: str, name: str = "nextToken") -> dict[str, object]:
    """The answer with its token, which is absent on the last page."""
    return {**body, name: token} if token else body
