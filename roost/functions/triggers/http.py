"""The settings of http triggers: who may call a function's address, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from roost.functions.access import ALL_METHODS, HttpAccess, HttpAuth, hash_key
from roost.functions.definition import Shape
from roost.functions.parse import parse, parse_json_text
from roost.model.errors import InvalidArgument

HTTP = "http"
Method = Literal["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"]


class _HttpTrigger(Shape):
    enable: bool | None = None
    auth_type: str = HttpAuth.ANONYMOUS.value
    methods: Annotated[list[Method], Field(min_length=1, max_length=7)]
    auth_config: str | dict[str, Any] | None = None
    disable_url_internet: Annotated[bool | None, Field(alias="disableURLInternet")] = None


class _BearerKeys(Shape):
    """`keys` come in once, in clear; `keyHashes` (SHA-256, hex) is what is kept, shown, and may come back."""

    keys: Annotated[list[Annotated[str, Field(min_length=16, max_length=512)]], Field(max_length=100)] | None = None
    key_hashes: Annotated[list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]], Field(max_length=100)] | None = None


def http_config(text: str) -> dict[str, Any]:
    """A trigger's `triggerConfig`, checked, with every key replaced by its hash. Raises InvalidArgument."""
    parsed = parse_json_text(_HttpTrigger, text, "triggerConfig")
    if parsed.auth_type not in set(HttpAuth):
        raise InvalidArgument(
            f"triggerConfig.authType: {parsed.auth_type[:40]!r} is not supported; use 'anonymous' or 'bearer'."
        )
    result: dict[str, Any] = {"authType": parsed.auth_type, "methods": list(dict.fromkeys(parsed.methods))}
    if parsed.disable_url_internet is not None:
        result["disableURLInternet"] = parsed.disable_url_internet
    if parsed.enable is not None:
        result["enable"] = parsed.enable
    hashes = _key_hashes(parsed.auth_config)
    if hashes and parsed.auth_type == HttpAuth.ANONYMOUS:
        raise InvalidArgument("triggerConfig.authConfig: keys have no use with authType 'anonymous'.")
    if hashes:
        result["authConfig"] = {"keyHashes": hashes}
    return result


def _key_hashes(config: str | dict[str, Any] | None) -> list[str]:
    where = "triggerConfig.authConfig"
    if not config:
        return []
    bearer = (
        parse_json_text(_BearerKeys, config, where) if isinstance(config, str) else parse(_BearerKeys, config, where)
    )
    return list(dict.fromkeys([*(bearer.key_hashes or ()), *(hash_key(key) for key in bearer.keys or ())]))


def access_of(config: Mapping[str, Any], default: HttpAccess) -> HttpAccess:
    """What a stored `triggerConfig` grants. Bearer without keys of its own takes those of the account."""
    methods = frozenset(config.get("methods", ALL_METHODS))
    if config["authType"] == HttpAuth.ANONYMOUS:
        return HttpAccess(auth=HttpAuth.ANONYMOUS, methods=methods)
    hashes = frozenset(config.get("authConfig", {}).get("keyHashes", ())) or default.key_hashes
    return HttpAccess(auth=HttpAuth.BEARER, key_hashes=hashes, methods=methods)
