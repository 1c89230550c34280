"""Triggers of functions: created, shown, changed and removed, durably."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import replace

from roost.functions.access import OPEN, HttpAccess, HttpAuth, hash_key
from roost.functions.names import check_trigger_name
from roost.functions.state import CatalogState
from roost.functions.triggers.http import HTTP, access_of
from roost.functions.triggers.kinds import check_config, check_record, is_enabled
from roost.model.errors import AccessDenied, Conflict, NotFound
from roost.model.function import LATEST
from roost.model.role import FUNCTION, Role
from roost.model.signature import AccessKey, Keys
from roost.store.triggers import TriggerRecord

#: The access to functions that no key is for alone.
_ANY = ""
#: Of one function.
MAX_TRIGGERS = 100


class Triggers:
    """At most one http trigger for each qualifier of a function; of the others as many as one likes."""

    def __init__(self, state: CatalogState, keys: Keys) -> None:
        self._state = state
        self._keys = keys
        self._defaults: dict[str, dict[str, HttpAccess]] = {}  # by account and function, until a key changes
        keys.subscribe(self._defaults.clear)

    async def create(
        self,
        account: str,
        function: str,
        name: str,
        *,
        type: str,
        qualifier: str | None,
        config: str,
        description: str,
        source_arn: str = "",
        invocation_role: str = "",
    ) -> TriggerRecord:
        """Raises NotFound, Conflict, InvalidArgument."""
        check_trigger_name(name)
        parsed = check_config(type, config)
        async with self._state.lock:
            entry = self._state.entry(account, function)
            if name in entry.triggers:
                raise Conflict(f"Function {function} has a trigger {name} already.", code="TriggerAlreadyExists")
            if len(entry.triggers) >= MAX_TRIGGERS:
                raise Conflict(f"Function {function} has {MAX_TRIGGERS} triggers, the most that one can have.")
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
                source_arn=source_arn,
                invocation_role=invocation_role,
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
        invocation_role: str | None = None,
    ) -> TriggerRecord:
        """Change what is not None. Raises NotFound, Conflict, InvalidArgument."""
        async with self._state.lock:
            present = self.get(account, function, name)
            record = replace(
                present,
                qualifier=qualifier or present.qualifier,
                config=present.config if config is None else check_config(present.type, config, present.config),
                description=present.description if description is None else description,
                invocation_role=present.invocation_role if invocation_role is None else invocation_role,
            )
            # What changes nothing disturbs nothing: a source at work is not started anew.
            return present if record == present else await self._put(replace(record, modified=self._state.clock()))

    async def _put(self, record: TriggerRecord) -> TriggerRecord:
        check_record(record)
        entry = self._state.entry(record.account, record.function)
        entry.version_of(record.qualifier)
        for other in entry.triggers.values():
            if other.name != record.name and record.type == other.type == HTTP and other.qualifier == record.qualifier:
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

        Raises NotFound (no such function), AccessDenied (no trigger for this qualifier, or it is paused).
        """
        triggers = self._state.entry(account, name).http
        if not triggers:
            return self._default(account, name)
        wanted = qualifier or LATEST
        for trigger in triggers:
            if trigger.qualifier == wanted:
                if not is_enabled(trigger):
                    raise AccessDenied(f"Trigger {trigger.name} of function {name} is paused.")
                return access_of(trigger.config, self._default(account, name))
        raise AccessDenied(f"Function {name} has no http trigger for {wanted[:80]}.")

    def _default(self, account: str, name: str) -> HttpAccess:
        if not self._keys.asked:
            return OPEN
        known = self._defaults.get(account)
        if known is None:
            known = self._defaults[account] = _by_function(self._keys.of_account(account, Role.INVOKER))
        return known.get(name) or known[_ANY]


def _by_function(keys: Iterable[AccessKey]) -> dict[str, HttpAccess]:
    """Who may call functions that say nothing of it; those of `_ANY`, where a function has no entry."""
    hashes: dict[str, set[str]] = {_ANY: set()}
    for key in keys:
        named = [one.removeprefix(FUNCTION) for one in key.grants if one.startswith(FUNCTION)]
        for name in named if key.grants else [_ANY]:
            hashes.setdefault(name, set()).add(hash_key(key.secret))
    every = hashes[_ANY]
    return {name: HttpAccess(auth=HttpAuth.BEARER, key_hashes=frozenset(own | every)) for name, own in hashes.items()}
