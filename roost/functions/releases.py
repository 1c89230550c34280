"""Published versions, and the aliases that point to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from roost.functions.entry import FunctionEntry
from roost.functions.names import check_alias_name
from roost.functions.state import CatalogState
from roost.model.errors import Conflict, InvalidArgument, NotFound
from roost.model.function import LATEST
from roost.store.aliases import AliasRecord
from roost.store.versions import VersionRecord


class Versions:
    """Immutable and numbered from 1; a number is never given out twice."""

    def __init__(self, state: CatalogState) -> None:
        self._state = state

    async def publish(self, account: str, function: str, description: str = "") -> VersionRecord:
        """Keep the function's present state under the next number. Raises NotFound."""
        async with self._state.lock:
            entry = self._state.entry(account, function)
            record = VersionRecord(
                account=account,
                function=function,
                version=entry.record.last_version + 1,
                description=description,
                snapshot=entry.snapshots[LATEST].to_json(),
                created=self._state.clock(),
            )
            await self._state.store.versions.publish(record)
            entry.record = replace(entry.record, last_version=record.version)
            entry.versions[record.version] = record
            self._state.changed(account, function)
            return record

    def list(self, account: str, function: str) -> list[VersionRecord]:
        """Oldest first. Raises NotFound."""
        return sorted(self._state.entry(account, function).versions.values(), key=lambda record: record.version)

    async def delete(self, account: str, function: str, version: str) -> None:
        """Raises NotFound, Conflict while an alias points to it."""
        async with self._state.lock:
            entry = self._state.entry(account, function)
            if version == LATEST or version not in entry.snapshots:
                raise NotFound(f"Function {function} has no version {version[:80]!r}.", code="VersionNotFound")
            for alias in entry.aliases.values():
                if version == alias.version or version in alias.weights:
                    raise Conflict(f"Alias {alias.name} points to version {version}.", code="VersionInUse")
            await self._state.store.versions.delete(account, function, int(version))
            del entry.versions[int(version)]
            for key in [key for key in entry.settings if key[0] == version]:
                del entry.settings[key]
            self._state.changed(account, function)


class Aliases:
    """Names for versions. With weights, part of the traffic goes to further versions and the rest to the main one."""

    def __init__(self, state: CatalogState) -> None:
        self._state = state

    async def create(
        self, account: str, function: str, name: str, *, version: str, weights: Mapping[str, float], description: str
    ) -> AliasRecord:
        """Raises NotFound (the function, a version), Conflict, InvalidArgument."""
        check_alias_name(name)
        async with self._state.lock:
            entry = self._state.entry(account, function)
            if name in entry.aliases:
                raise Conflict(f"Function {function} has an alias {name} already.", code="AliasAlreadyExists")
            now = self._state.clock()
            record = AliasRecord(
                account=account,
                function=function,
                name=name,
                version=version,
                weights=dict(weights),
                description=description,
                created=now,
                modified=now,
            )
            return await self._put(entry, record)

    async def update(
        self,
        account: str,
        function: str,
        name: str,
        *,
        version: str | None = None,
        weights: Mapping[str, float] | None = None,
        description: str | None = None,
    ) -> AliasRecord:
        """Change what is not None. Raises NotFound, InvalidArgument."""
        async with self._state.lock:
            entry = self._state.entry(account, function)
            present = self.get(account, function, name)
            record = replace(
                present,
                version=present.version if version is None else version,
                weights=present.weights if weights is None else dict(weights),
                description=present.description if description is None else description,
                modified=self._state.clock(),
            )
            return await self._put(entry, record)

    def get(self, account: str, function: str, name: str) -> AliasRecord:
        """Raises NotFound."""
        found = self._state.entry(account, function).aliases.get(name)
        if found is None:
            raise NotFound(f"Function {function} has no alias {name[:80]!r}.", code="AliasNotFound")
        return found

    def list(self, account: str, function: str) -> list[AliasRecord]:
        """By name. Raises NotFound."""
        return sorted(self._state.entry(account, function).aliases.values(), key=lambda record: record.name)

    async def delete(self, account: str, function: str, name: str) -> None:
        """Raises NotFound."""
        async with self._state.lock:
            self.get(account, function, name)
            entry = self._state.entry(account, function)
            await self._state.store.aliases.delete(account, function, name)
            del entry.aliases[name]
            for key in [key for key in entry.settings if key[0] == name]:
                del entry.settings[key]
            self._state.changed(account, function)

    async def _put(self, entry: FunctionEntry, record: AliasRecord) -> AliasRecord:
        _check(entry, record)
        await self._state.store.aliases.put(record)
        entry.aliases[record.name] = record
        self._state.changed(record.account, record.function)
        return record


def _check(entry: FunctionEntry, record: AliasRecord) -> None:
    for version in (record.version, *record.weights):
        if version not in entry.snapshots:
            raise NotFound(f"Function {record.function} has no version {version[:80]!r}.", code="VersionNotFound")
    if record.version in record.weights:
        raise InvalidArgument("additionalVersionWeight: names the main version again; it has what is left over.")
    if any(not 0 <= weight <= 1 for weight in record.weights.values()):
        raise InvalidArgument("additionalVersionWeight: each weight is between 0 and 1.")
    if sum(record.weights.values()) > 1 + 1e-9:
        raise InvalidArgument("additionalVersionWeight: the weights together are more than 1.")
