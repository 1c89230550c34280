"""Triggers of functions. This release has the `http` type: who may call a function's address, and how."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from roost.functions.access import ALL_METHODS, OPEN, HttpAccess, HttpAuth, hash_key
from roost.functions.definition import Shape
from roost.functions.names import check_trigger_name
from roost.functions.parse import parse, parse_json_text
from roost.functions.state import CatalogState
from roost.model.errors import AccessDenied, Conflict, InvalidArgument, NotFound
from roost.model.function import LATEST
from roost.model.signature import Keys
from roost.store.triggers import TriggerRecord

HTTP = "http"
Method = Literal["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"]


class _HttpTrigger(Shape):
    auth_type: str = HttpAuth.ANONYMOUS.value
    methods: Annotated[list[Method], Field(min_length=1, max_length=7)]
    auth_config: str | dict[str, Any] | None = None
    disable_url_internet: Annotated[bool | None, Field(alias="disableURLInternet")] = None


class _BearerKeys(Shape):
    """`keys` come in once, in clear; `keyHashes` (SHA-256, hex) is what is kept, shown, and may come back."""

    keys: Annotated[list[Annotated[str, Field(min_length=16, max_length=512)]], Field(max_length=100)] | None = None
    key_hashes: Annotated[list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]], Field(max_length=100)] | None = None


class Triggers:
    """At most one http trigger for each qualifier of a function."""

    def __init__(self, state: CatalogState, keys: Keys) -> None:
        self._state = state
        self._keys = keys
        self._defaults: dict[str, HttpAccess] = {}  # by account; keys stay as they are while the server runs

    async def create(
        self, account: str, function: str, name: str, *, type: str, qualifier: str | None, config: str, description: str
    ) -> TriggerRecord:
        """Raises NotFound, Conflict, InvalidArgument."""
        check_trigger_name(name)
        if type != HTTP:
            raise InvalidArgument(f"triggerType: {type[:40]!r} is not supported; this release has 'http'.")
        parsed = http_config(config)
        async with self._state.lock:
            entry = self._state.entry(account, function)
            if name in entry.triggers:
                raise Conflict(f"Function {function} has a trigger {name} already.", code="TriggerAlreadyExists")
            now = self._state.clock()
            record = TriggerRecord(
                account=account,
                function=function,
                name=name,
                id=str(uuid.uuid4()),
                type=type,
                qualifier=qualifier or LATEST,
                description=description,
                config=parsed,
                created=now,
                modified=now,
            )
            return await self._put(record)

    async def update(
        self,
        account: str,
        function: str,
        name: str,
        *,
        qualifier: str | None = None,
        config: str | None = None,
        description: str | None = None,
    ) -> TriggerRecord:
        """Change what is not None. Raises NotFound, Conflict, InvalidArgument."""
        parsed = None if config is None else http_config(config)
        async with self._state.lock:
            present = self.get(account, function, name)
            record = replace(
                present,
                qualifier=qualifier or present.qualifier,
                config=present.config if parsed is None else parsed,
                description=present.description if description is None else description,
                modified=self._state.clock(),
            )
            return await self._put(record)

    async def _put(self, record: TriggerRecord) -> TriggerRecord:
        entry = self._state.entry(record.account, record.function)
        entry.version_of(record.qualifier)
        for other in entry.triggers.values():
            if other.name != record.name and other.qualifier == record.qualifier:
                raise Conflict(
                    f"Trigger {other.name} is the http trigger of {record.qualifier} already.",
                    code="TriggerAlreadyExists",
                )
        await self._state.store.triggers.put(record)
        entry.triggers[record.name] = record
        self._state.changed(record.account, record.function)
        return record

    def get(self, account: str, function: str, name: str) -> TriggerRecord:
        """Raises NotFound."""
        found = self._state.entry(account, function).triggers.get(name)
        if found is None:
            raise NotFound(f"Function {function} has no trigger {name[:80]!r}.", code="TriggerNotFound")
        return found

    def list(self, account: str, function: str) -> list[TriggerRecord]:
        """By name. Raises NotFound."""
        return sorted(self._state.entry(account, function).triggers.values(), key=lambda record: record.name)

    async def delete(self, account: str, function: str, name: str) -> None:
        """Raises NotFound."""
        async with self._state.lock:
            self.get(account, function, name)
            await self._state.store.triggers.delete(account, function, name)
            del self._state.entry(account, function).triggers[name]
            self._state.changed(account, function)

    def http_access(self, account: str, name: str, qualifier: str | None) -> HttpAccess:
        """Who may call `name[:qualifier]` over HTTP.

        A function without http triggers is open where the server has no keys, and takes its account's secrets as
        bearer keys where it has. Once it has one, only the qualifiers that have one can be called.

        Raises NotFound (no such function), AccessDenied (no trigger for this qualifier).
        """
        triggers = self._state.entry(account, name).triggers
        if not triggers:
            return self._default(account)
        wanted = qualifier or LATEST
        for trigger in triggers.values():
            if trigger.qualifier == wanted:
                return access_of(trigger.config, self._default(account))
        raise AccessDenied(f"Function {name} has no http trigger for {wanted[:80]}.")

    def _default(self, account: str) -> HttpAccess:
        if not self._keys:
            return OPEN
        known = self._defaults.get(account)
        if known is None:
            hashes = frozenset(hash_key(key.secret) for key in self._keys.of_account(account))
            known = self._defaults[account] = HttpAccess(auth=HttpAuth.BEARER, key_hashes=hashes)
        return known


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
