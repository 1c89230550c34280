"""Results as E2B's clients know them, from the MIME bundles of IPython. Pure."""

from __future__ import annotations

import base64
import json
import math
import numbers
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

#: Name in a result: MIME type. Everything else is `extra`.
_NAMES = {
    "text": "text/plain",
    "html": "text/html",
    "markdown": "text/markdown",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "pdf": "application/pdf",
    "latex": "text/latex",
    "json": "application/json",
    "javascript": "application/javascript",
    "data": "e2b/data",
    "chart": "e2b/chart",
}
_MAX_DEPTH = 100


def to_result(bundle: Mapping[str, Any], *, is_main: bool) -> dict[str, Any]:
    """The text of a string comes without its quotes, as E2B has it."""
    rest = {str(kind): value for kind, value in bundle.items() if value is not None}
    result: dict[str, Any] = {"type": "result"}
    for name, kind in _NAMES.items():
        if kind in rest:
            result[name] = rest.pop(kind)
    text = result.get("text")
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        result["text"] = text[1:-1]
    return {**result, "extra": rest, "is_main_result": is_main}


def encode(item: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(item, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return json.dumps(clean(item)).encode()


def encode_within(result: Mapping[str, Any], limit: int) -> tuple[bytes, list[str]]:
    """A result without its largest representations as far as it would have more than `limit` bytes; their names."""
    encoded = encode(result)
    if len(encoded) <= limit:
        return encoded, []
    total = len(encoded)
    sizes = {name: len(encode({name: value})) for name, value in result.items()}
    kept = dict(result)
    left_out = []
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if total <= limit:
            break
        total -= sizes[name]
        kept[name] = {} if name == "extra" else None
        left_out.append(name)
    return encode({name: value for name, value in kept.items() if value is not None}), left_out


def clean(value: Any, depth: int = 0) -> Any:
    """Something that JSON can carry. Bytes become base64; what is no number becomes its name, as Jupyter has it."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else repr(number)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {str(key): clean(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [clean(item, depth + 1) for item in value]
    return str(value)
