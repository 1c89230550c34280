"""Limits and settings beside a function's definition: concurrency per function; the rest per qualifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.functions.state import CatalogState
from roost.model.errors import InvalidArgument, NotFound
from roost.model.function import LATEST
from roost.store.provision import QualifierKind, QualifierRecord

_NOT_FOUND = {
    QualifierKind.PROVISION: ("provision config", "ProvisionConfigNotFound"),
    QualifierKind.SCALING: ("scaling config", "ScalingConfigNotFound"),
    QualifierKind.ASYNC: ("async invoke config", "AsyncConfigNotFound"),
}


class Concurrency:
    """`reservedConcurrency`: how many instances a function has at most."""

    def __init__(self, state: CatalogState) -> None:
        self._state = state

    async def put(self, account: str, function: str, reserved: int) -> None:
        """Raises NotFound."""
        async with self._state.lock:
            entry = self._state.entry(account, function)
            await self._state.store.concurrency.put(account, function, reserved)
            entry.reserved = reserved
            self._state.changed(account, function)

    def get(self, account: str, function: str) -> int:
        """Raises NotFound."""
        reserved = self._state.entry(account, function).reserved
        if reserved is None:
            raise NotFound(f"Function {function} has no concurrency config.", code="ConcurrencyConfigNotFound")
        return reserved

    def list(self, account: str, function: str | None = None) -> dict[str, int]:
        """Function name -> limit, of one function or all, by name."""
        return {
            name: entry.reserved
            for (owner, name), entry in sorted(self._state.entries.items())
            if owner == account and entry.reserved is not None and function in {None, name}
        }

    async def delete(self, account: str, function: str) -> None:
        """No effect when there is none. Raises NotFound for the function."""
        async with self._state.lock:
            entry = self._state.entry(account, function)
            await self._state.store.concurrency.delete(account, function)
            entry.reserved = None
            self._state.changed(account, function)


class QualifierSettings:
    """Settings of one kind, of a version, an alias or LATEST."""

    def __init__(self, state: CatalogState, kind: QualifierKind) -> None:
        self._state = state
        self._kind = kind

    async def put(
        self, account: str, function: str, qualifier: str | None, config: Mapping[str, Any]
    ) -> QualifierRecord:
        """Create or replace. Raises NotFound, also for the qualifier."""
        async with self._state.lock:
            entry = self._state.entry(account, function)
            entry.version_of(qualifier)
            key = (qualifier or LATEST, self._kind)
            now = self._state.clock()
            present = entry.settings.get(key)
            record = QualifierRecord(
                account=account,
                function=function,
                qualifier=qualifier or LATEST,
                kind=self._kind,
                config=dict(config),
                created=present.created if present else now,
                modified=now,
            )
            _check_least(entry.reserved, config)
            await self._state.store.provision.put(record)
            entry.settings[key] = record
            self._state.changed(account, function)
            return record

    def get(self, account: str, function: str, qualifier: str | None) -> QualifierRecord:
        """Raises NotFound."""
        found = self._state.entry(account, function).settings.get((qualifier or LATEST, self._kind))
        if found is None:
            what, code = _NOT_FOUND[self._kind]
            raise NotFound(f"{function} ({qualifier or LATEST}) has no {what}.", code=code)
        return found

    def list(self, account: str, function: str | None = None) -> list[QualifierRecord]:
        """By function and qualifier."""
        found = [
            record
            for (owner, name), entry in self._state.entries.items()
            if owner == account and function in {None, name}
            for (_, kind), record in entry.settings.items()
            if kind is self._kind
        ]
        return sorted(found, key=lambda record: (record.function, record.qualifier))

    async def delete(self, account: str, function: str, qualifier: str | None) -> None:
        """No effect when there is none. Raises NotFound for the function."""
        async with self._state.lock:
            entry = self._state.entry(account, function)
            await self._state.store.provision.delete(account, function, qualifier or LATEST, self._kind)
            entry.settings.pop((qualifier or LATEST, self._kind), None)
            self._state.changed(account, function)


def _check_least(reserved: int | None, config: Mapping[str, Any]) -> None:
    least = config.get("defaultTarget", config.get("minInstances", 0))
    if reserved is not None and least > reserved:
        raise InvalidArgument(f"{least} provisioned instances are more than the {reserved} of the concurrency config.")
