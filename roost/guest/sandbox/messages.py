"""Protobuf messages in their JSON form, as clients send them: hostile until each field was asked for. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any


class BadField(ValueError):
    """A field has the wrong type; the text names it."""


def parse(data: bytes) -> Message:
    """Raises BadField for what is no JSON object. An empty body is an empty message."""
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError) as error:
        raise BadField(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadField("not a JSON object")
    return Message(value)


class Message:
    """Fields by their camelCase names; those of the .proto file are understood too. null counts as absent."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def _get(self, name: str) -> Any:
        value = self._values.get(name)
        return self._values.get(_snake(name)) if value is None else value

    def has(self, name: str) -> bool:
        return self._get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        value = self._get(name)
        return default if value is None else _text(name, value)

    def texts(self, name: str) -> list[str]:
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise BadField(f"{name}: not a list")
        return [_text(name, item) for item in value]

    def text_map(self, name: str) -> dict[str, str]:
        value = self._get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise BadField(f"{name}: not an object")
        return {_text(name, key): _text(name, item) for key, item in value.items()}

    def unsigned(self, name: str, default: int = 0) -> int:
        """A uint32: a number, or one in a string."""
        value = self._get(name)
        if value is None:
            return default
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise BadField(f"{name}: not a uint32")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadField(f"{name}: not a boolean")
        return value

    def data(self, name: str) -> bytes:
        """Bytes, which travel as base64 of either alphabet, padded or not."""
        text = self.text(name).replace("-", "+").replace("_", "/").rstrip("=")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise BadField(f"{name}: not base64") from None

    def enum(self, name: str) -> str | int:
        """The name of a value, or its number; 0 when absent."""
        value = self._get(name)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadField(f"{name}: not an enum value")
        return value

    def message(self, name: str) -> Message:
        """An empty one when absent."""
        value = self._get(name)
        if value is None:
            return Message({})
        if not isinstance(value, dict):
            raise BadField(f"{name}: not an object")
        return Message(value)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadField(f"{name}: not a string")
    if "\0" in value:
        raise BadField(f"{name}: contains a NUL")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise BadField(f"{name}: invalid UTF-8") from None
    return value
