"""The catalog: all functions of this server, in memory, written through to the store.

Reads (`resolve` above all) touch memory only. A change is checked, written to the store, and only then visible.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from roost.functions.access import HttpAccess
from roost.functions.definition import FunctionConfig, InputCode
from roost.functions.entry import FunctionEntry, Snapshot, latest_snapshot
from roost.functions.layers import Layers
from roost.functions.mapping import to_spec
from roost.functions.names import check_function_name
from roost.functions.packages import Package, PackageStore
from roost.functions.parse import parse
from roost.functions.releases import Aliases, Versions
from roost.functions.rules import CONTAINER_RUNTIME
from roost.functions.settings import Concurrency, QualifierSettings
from roost.functions.state import CatalogState, Listener
from roost.functions.tags import Tags
from roost.functions.triggers.book import Triggers
from roost.model.errors import AccessDenied, Conflict, InvalidArgument, RoostError, Unavailable
from roost.model.function import LATEST, FunctionSpec, Scaling
from roost.model.signature import Keys
from roost.store.functions import FunctionRecord
from roost.store.provision import QualifierKind
from roost.store.store import Store


def _admit_all(_spec: FunctionSpec) -> None:
    return None


class FunctionCatalog:
    """`await load()` before use. `admit` may refuse a spec (RoostError) that this machine can't run."""

    def __init__(
        self,
        store: Store,
        packages: PackageStore,
        *,
        keys: Keys | None = None,
        region: str = "local",
        clock: Callable[[], float] = time.time,
        choose: random.Random | None = None,
        admit: Callable[[FunctionSpec], None] = _admit_all,
    ) -> None:
        self._state = CatalogState(
            store=store,
            packages=packages,
            region=region,
            clock=clock,
            choose=choose or random.Random(),  # noqa: S311 - it shares out traffic, it keeps no secret
            admit=admit,
        )
        self.region = region
        self.packages = packages
        self.versions = Versions(self._state)
        self.aliases = Aliases(self._state)
        self.layers = Layers(self._state)
        self.concurrency = Concurrency(self._state)
        self.provision = QualifierSettings(self._state, QualifierKind.PROVISION)
        self.scaling = QualifierSettings(self._state, QualifierKind.SCALING)
        self.async_invoke = QualifierSettings(self._state, QualifierKind.ASYNC)
        self.triggers = Triggers(self._state, keys or Keys())
        self.tags = Tags(self._state)

    async def load(self) -> None:
        """Read everything from the store. Raises Unavailable, naming the function that can't be read."""
        store, state = self._state.store, self._state
        for function in await store.functions.list_all():
            state.entries[function.account, function.name] = FunctionEntry(record=function)
        for version in await store.versions.list_all():
            state.entries[version.account, version.function].versions[version.version] = version
        for alias in await store.aliases.list_all():
            state.entries[alias.account, alias.function].aliases[alias.name] = alias
        for trigger in await store.triggers.list_all():
            state.entries[trigger.account, trigger.function].triggers[trigger.name] = trigger
        for key, reserved in (await store.concurrency.list_all()).items():
            state.entries[key].reserved = reserved
        for setting in await store.provision.list_all():
            entry = state.entries[setting.account, setting.function]
            entry.settings[setting.qualifier, setting.kind] = setting
        for known in await store.layers.list_names():
            state.layer_names[known.account, known.name] = known
        for layer in await store.layers.list_all():
            state.layers.setdefault((layer.account, layer.name), {})[layer.version] = layer
        state.tags.update(await store.tags.list_all())
        for (account, name), entry in state.entries.items():
            try:
                entry.rebuild()
            except RoostError as error:
                raise Unavailable(f"The stored function {account}/{name} can't be read: {error.message}") from error

    def resolve(self, account: str, name: str, qualifier: str | None = None, *, begun: str = "") -> FunctionSpec:
        """The spec that serves a request for `name[:qualifier]`. An alias with weights picks one each time, but stays
        with the version `begun` while that is one of its own.

        Raises NotFound (FunctionNotFound, VersionNotFound, AliasNotFound), AccessDenied while invocations are off.
        """
        entry = self._state.entry(account, name)
        if entry.record.restriction is not None:
            reason = entry.record.restriction.get("reason") or "no reason was given"
            raise AccessDenied(f"Invocations of function {name} are disabled: {reason}.", code="InvocationDisabled")
        return entry.specs[entry.version_of(qualifier, self._state.choose, begun)]

    def specs(self, account: str, name: str) -> list[FunctionSpec]:
        """LATEST and every version as they are now; empty when the function is gone, or its invocations are off."""
        entry = self._state.entries.get((account, name))
        if entry is None or entry.record.restriction is not None:
            return []
        return list(entry.specs.values())

    def names(self) -> list[tuple[str, str]]:
        """(account, function name) of every function."""
        return sorted(self._state.entries)

    def http_access(self, account: str, name: str, qualifier: str | None = None) -> HttpAccess:
        """See `Triggers.http_access`."""
        return self.triggers.http_access(account, name, qualifier)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(account, name)` after every change or deletion of a function; returns how to stop it."""
        self._state.listeners.append(listener)
        return lambda: self._state.listeners.remove(listener)

    def get(self, account: str, name: str) -> FunctionEntry:
        """Raises NotFound. Read only."""
        return self._state.entry(account, name)

    def snapshot(self, account: str, name: str, qualifier: str | None = None) -> Snapshot:
        """What a qualifier stands for (an alias: its main version). Raises NotFound."""
        entry = self._state.entry(account, name)
        return entry.snapshots[entry.version_of(qualifier)]

    def list(self, account: str) -> list[FunctionEntry]:
        """All functions of an account, by name."""
        return [entry for (owner, _), entry in sorted(self._state.entries.items()) if owner == account]

    async def create(
        self,
        account: str,
        name: str,
        config: FunctionConfig,
        code: InputCode | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> FunctionEntry:
        """Raises InvalidArgument, Conflict, NotFound (a layer), PayloadTooLarge, StorageFull."""
        check_function_name(name)
        self._check_new(account, name)
        if code is None and config.runtime != CONTAINER_RUNTIME:
            raise InvalidArgument("code: this field is required.")
        now = self._state.clock()
        draft = _empty(account, name, config, now)
        async with self._content(account, config, code, draft) as record, self._state.lock:
            self._check_new(account, name)
            await self._state.store.functions.put(record)
            entry = FunctionEntry(record=record)
            self._state.entries[account, name] = entry
            self._state.changed(account, name)
        if tags:
            await self.tags.put(account, "function", [name], tags)
        return entry

    async def update(
        self, account: str, name: str, changes: Mapping[str, Any], code: InputCode | None = None
    ) -> FunctionEntry:
        """Replace the top-level fields in `changes` (API names); null removes one. Versions stay as they are.

        Raises NotFound, InvalidArgument, PayloadTooLarge, StorageFull, Conflict (changed by another meanwhile).
        """
        entry = self._state.entry(account, name)
        before = entry.record
        kept = {key: value for key, value in before.config.items() if key not in changes}
        config = parse(FunctionConfig, {**kept, **changes})
        async with self._content(account, config, code, before) as draft, self._state.lock:
            entry = self._state.entry(account, name)
            if entry.record.modified != before.modified or entry.record.id != before.id:
                raise Conflict(f"Function {name} was changed by another request meanwhile; try again.")
            record = replace(
                draft,
                last_version=entry.record.last_version,
                restriction=entry.record.restriction,
                # Strictly later, so that two changes in one tick of the clock are told apart.
                modified=max(self._state.clock(), before.modified + 1e-6),
            )
            await self._state.store.functions.put(record)
            entry.record = record
            self._state.changed(account, name)
        return entry

    async def delete(self, account: str, name: str) -> None:
        """With its versions, aliases, triggers and settings. Raises NotFound."""
        async with self._state.lock:
            self._state.entry(account, name)
            await self._state.store.functions.delete(account, name)
            del self._state.entries[account, name]
            self._state.tags.pop((account, "function", name), None)
            self._state.changed(account, name)

    async def restrict(self, account: str, name: str, reason: str | None) -> None:
        """Refuse invocations from now on with `reason`, or allow them again for None. Raises NotFound."""
        async with self._state.lock:
            entry = self._state.entry(account, name)
            restriction = None if reason is None else {"reason": reason, "modified": self._state.clock()}
            record = replace(entry.record, restriction=restriction)
            await self._state.store.functions.put(record)
            entry.record = record
            self._state.changed(account, name)

    async def collect_garbage(self, in_use: frozenset[str] = frozenset(), *, limit: int = 100) -> int:
        """Remove up to `limit` packages that nothing refers to; `in_use`: digests that live instances have mounted."""
        async with self._state.lock:
            keep = set(in_use)
            for entry in self._state.entries.values():
                for snapshot in entry.snapshots.values():
                    keep |= snapshot.digests
            for versions in self._state.layers.values():
                keep |= {record.code_digest for record in versions.values()}
            return await self.packages.collect(frozenset(keep), limit=limit)

    def _check_new(self, account: str, name: str) -> None:
        if (account, name) in self._state.entries:
            raise Conflict(f"There is a function {name} already.", code="FunctionAlreadyExists")

    @asynccontextmanager
    async def _content(
        self, account: str, config: FunctionConfig, code: InputCode | None, before: FunctionRecord
    ) -> AsyncIterator[FunctionRecord]:
        """`before` with the new definition, package and layers, which are held in the package store meanwhile."""
        # The cheap checks come first: nothing is unpacked for a definition that can't be.
        old = before.config.get("layers")
        layers = before.layers if config.layers == old and before.layers else self._layers(account, config)
        draft = replace(before, config=config.to_json(), layers=layers)
        self._admit(draft)
        async with AsyncExitStack() as held:
            if code is not None:
                package = await held.enter_async_context(self._package(code))
                draft = replace(
                    draft, code_digest=package.digest, code_size=package.size, code_checksum=package.checksum
                )
            await held.enter_async_context(self.packages.merging([layer["digest"] for layer in layers]))
            yield draft

    def _layers(self, account: str, config: FunctionConfig) -> tuple[Mapping[str, Any], ...]:
        return self.layers.resolve(config.layers or (), account)

    def _admit(self, record: FunctionRecord) -> None:
        snapshot = latest_snapshot(record)
        spec = to_spec(
            account=record.account,
            name=record.name,
            version=LATEST,
            config=snapshot.config,
            code=record.code_digest,
            layers=snapshot.layers_digest,
            scaling=Scaling(),
        )
        self._state.admit(spec)

    @asynccontextmanager
    async def _package(self, code: InputCode) -> AsyncIterator[Package]:
        if code.oss_bucket_name or code.oss_object_name:
            raise InvalidArgument("code.ossBucketName: Roost has no object store to read from; send code.zipFile.")
        if not code.zip_file:
            raise InvalidArgument("code.zipFile: a zip archive in base64 is required.")
        async with self.packages.adding_base64(code.zip_file, code.checksum) as package:
            yield package


def _empty(account: str, name: str, config: FunctionConfig, now: float) -> FunctionRecord:
    return FunctionRecord(
        account=account, name=name, id=str(uuid.uuid4()), config=config.to_json(), created=now, modified=now
    )
