"""From JSON that a caller sent to a checked shape, with errors that name the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from roost.functions.definition import Shape
from roost.model.errors import InvalidArgument

S = TypeVar("S", bound=Shape)

_MESSAGES = {
    "extra_forbidden": "unknown field",
    "missing": "this field is required",
}


def parse(shape: type[S], value: Any, where: str = "") -> S:
    """`value` as a `shape`. A null is the same as a field that is not there, as the SDKs have it.

    Raises InvalidArgument that names the first wrong field, below `where`.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{where or 'The body'} must be a JSON object.")
    try:
        return shape.model_validate(_without_nulls(value))
    except ValidationError as error:
        raise InvalidArgument(_describe(error, where)) from error
    except RecursionError as error:
        raise InvalidArgument(f"{where or 'The body'} is nested too deeply.") from error


def parse_json_text(shape: type[S], text: str, where: str) -> S:
    """A field that carries JSON inside a string."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where}: a string with a JSON object in it is expected ({error}).") from error
    return parse(shape, value, where)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _describe(error: ValidationError, where: str) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    path = where
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    message = _MESSAGES.get(first["type"], first["msg"])
    given = first.get("input")
    shown = "" if first["type"] in _MESSAGES or isinstance(given, dict | list) else f" (got {str(given)[:80]!r})"
    return f"{path}: {message}{shown}."
