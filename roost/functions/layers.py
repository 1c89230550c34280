"""Layers: packages that functions share, in immutable versions, mounted at /opt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from roost.functions.names import check_name, layer_arn, parse_layer_arn
from roost.functions.packages import Package
from roost.functions.state import CatalogState
from roost.model.errors import NotFound
from roost.store.layers import LayerName, LayerRecord


class Layers:
    """A layer belongs to an account; a public one may be used by all."""

    def __init__(self, state: CatalogState) -> None:
        self._state = state

    async def publish(
        self, account: str, name: str, package: Package, *, description: str, license: str, runtimes: Sequence[str]
    ) -> LayerRecord:
        """The next version. The caller holds `package` (`PackageStore.adding`) meanwhile. Raises InvalidArgument."""
        check_name("layerName", name)
        async with self._state.lock:
            known = self._state.layer_names.get((account, name), LayerName(account=account, name=name))
            record = LayerRecord(
                account=account,
                name=name,
                version=known.last_version + 1,
                description=description,
                license=license,
                runtimes=tuple(runtimes),
                code_digest=package.digest,
                code_size=package.size,
                code_checksum=package.checksum,
                created=self._state.clock(),
            )
            await self._state.store.layers.publish(record)
            self._state.layer_names[account, name] = replace(known, last_version=record.version)
            self._state.layers.setdefault((account, name), {})[record.version] = record
            return record

    def get(self, account: str, name: str, version: int) -> LayerRecord:
        """Raises NotFound."""
        found = self._state.layers.get((account, name), {}).get(version)
        if found is None:
            raise NotFound(f"There is no version {version} of a layer {name[:80]!r}.", code="LayerVersionNotFound")
        return found

    def find(self, arn: str, reader: str) -> LayerRecord:
        """The layer version an ARN names, if account `reader` may use it. Raises InvalidArgument, NotFound."""
        owner, name, version = parse_layer_arn(arn)
        record = self.get(owner, name, version)
        if owner != reader and not self.is_public(owner, name):
            # Same answer as for one that does not exist: another account's layers are no one's business.
            raise NotFound(f"There is no version {version} of a layer {name[:80]!r}.", code="LayerVersionNotFound")
        return record

    def resolve(self, arns: Sequence[str], reader: str) -> tuple[Mapping[str, Any], ...]:
        """What a function keeps of its layers: `arn`, `size`, `digest` of each."""
        records = [self.find(arn, reader) for arn in arns]
        return tuple(
            {"arn": self.arn(record), "size": record.code_size, "digest": record.code_digest} for record in records
        )

    def list_versions(self, account: str, name: str) -> list[LayerRecord]:
        """Oldest first; empty for an unknown layer."""
        return [record for _, record in sorted(self._state.layers.get((account, name), {}).items())]

    def list(self, account: str, *, public: bool | None = None) -> list[LayerRecord]:
        """The newest version of each layer, by name: the account's own, or with `public` all public ones."""
        found = []
        for (owner, name), versions in sorted(self._state.layers.items(), key=lambda item: (item[0][1], item[0][0])):
            is_public = self.is_public(owner, name)
            wanted = is_public if public else owner == account and (public is None or not is_public)
            if versions and wanted:
                found.append(versions[max(versions)])
        return found

    def is_public(self, account: str, name: str) -> bool:
        known = self._state.layer_names.get((account, name))
        return known is not None and known.public

    async def set_public(self, account: str, name: str, public: bool) -> None:
        """Raises NotFound."""
        async with self._state.lock:
            known = self._state.layer_names.get((account, name))
            if known is None:
                raise NotFound(f"There is no layer {name[:80]!r}.", code="LayerNotFound")
            await self._state.store.layers.set_public(account, name, public)
            self._state.layer_names[account, name] = replace(known, public=public)

    async def delete(self, account: str, name: str, version: int) -> None:
        """Functions that use it keep their copy. Raises NotFound."""
        async with self._state.lock:
            self.get(account, name, version)
            await self._state.store.layers.delete(account, name, version)
            del self._state.layers[account, name][version]

    def arn(self, record: LayerRecord) -> str:
        return layer_arn(self._state.region, record.account, record.name, record.version)
