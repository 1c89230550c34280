"""What stands for a secret in a room: `${e2b.secrets.NAME}`, as E2B's SDKs write it. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote

_NAME = r"[a-z0-9][a-z0-9._-]{0,127}"
_PLAIN = re.compile(rf"\$\{{e2b\.secrets\.({_NAME})\}}", re.IGNORECASE)
#: As a URL has it.
_QUOTED = re.compile(rf"(?:\$|%24)(?:\{{|%7b)e2b\.secrets\.({_NAME})(?:\}}|%7d)", re.IGNORECASE)
_BASIC = re.compile(rb"(\s*basic\s+)([A-Za-z0-9+/]+={0,2})\s*", re.IGNORECASE)


#: The value of a secret, or None where its placeholder stays as it is.
Lookup = Callable[[str], str | None]


def placeholder(name: str) -> str:
    return f"${{e2b.secrets.{name}}}"


def names(texts: Iterable[str]) -> frozenset[str]:
    """The secrets that are asked for."""
    return frozenset(found.lower() for text in texts for found in _PLAIN.findall(text))


def fill(text: str, lookup: Lookup) -> str:
    """With values in place of placeholders."""
    return _PLAIN.sub(_value(lookup, lambda value: value), text)


def fill_target(target: str, lookup: Lookup) -> str:
    """The same for a path and a query, where a value is percent-encoded."""
    return _QUOTED.sub(_value(lookup, lambda value: quote(value, safe="")), target)


def fill_header(value: bytes, lookup: Lookup) -> bytes:
    """The same for a header's value, also within the user and password of `Basic`."""
    if basic := _BASIC.fullmatch(value):
        try:
            inside = base64.b64decode(basic[2], validate=True)
        except binascii.Error:
            return value
        filled = _filled(inside, lookup)
        return value if filled == inside else basic[1] + base64.b64encode(filled)
    return _filled(value, lookup)


def _filled(data: bytes, lookup: Lookup) -> bytes:
    """Bytes that are not of a placeholder stay what they are, whatever their encoding."""
    return fill(data.decode("utf-8", "surrogateescape"), lookup).encode("utf-8", "surrogateescape")


def _value(lookup: Lookup, form: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
    def replacement(match: re.Match[str]) -> str:
        value = lookup(match[1].lower())
        return match[0] if value is None else form(value)

    return replacement
