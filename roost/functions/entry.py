"""One function in memory: its latest state, its versions and all that hangs on them, and the specs made of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.functions.definition import FunctionConfig
from roost.functions.mapping import to_spec
from roost.functions.packages import merged_digest
from roost.functions.parse import parse
from roost.functions.triggers.http import HTTP
from roost.model.errors import NotFound
from roost.model.function import LATEST, FunctionSpec, Scaling
from roost.store.aliases import AliasRecord
from roost.store.functions import FunctionRecord
from roost.store.provision import QualifierKind, QualifierRecord
from roost.store.triggers import TriggerRecord
from roost.store.versions import VersionRecord

DEFAULT_MAX_INSTANCES = 100


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a version is: definition, package and layers. LATEST's is the function's present state."""

    config: FunctionConfig
    code_digest: str
    code_size: int
    code_checksum: str
    layers: tuple[Mapping[str, Any], ...]  # `arn`, `size`, `digest`
    created: float
    modified: float

    def to_json(self) -> dict[str, Any]:
        """For the store's `versions.snapshot`."""
        return {
            "config": self.config.to_json(),
            "code_digest": self.code_digest,
            "code_size": self.code_size,
            "code_checksum": self.code_checksum,
            "layers": [dict(layer) for layer in self.layers],
        }

    @property
    def layers_digest(self) -> str:
        return merged_digest([layer["digest"] for layer in self.layers])

    @property
    def digests(self) -> frozenset[str]:
        """All packages it needs."""
        found = {self.code_digest, self.layers_digest, *(layer["digest"] for layer in self.layers)}
        return frozenset(found - {""})


@dataclass
class FunctionEntry:
    """Mutable; changed only by the catalog's parts, on the event loop, after the store has the change."""

    record: FunctionRecord
    versions: dict[int, VersionRecord] = field(default_factory=dict)
    aliases: dict[str, AliasRecord] = field(default_factory=dict)
    triggers: dict[str, TriggerRecord] = field(default_factory=dict)
    reserved: int | None = None
    settings: dict[tuple[str, QualifierKind], QualifierRecord] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    specs: dict[str, FunctionSpec] = field(default_factory=dict)
    http: tuple[TriggerRecord, ...] = ()  # those of its triggers that say who may call it

    def rebuild(self) -> None:
        """Make what is made of the records anew: snapshots, specs, `http`."""
        self.http = tuple(one for one in self.triggers.values() if one.type == HTTP)
        self.snapshots = {LATEST: latest_snapshot(self.record)}
        for number, version in self.versions.items():
            self.snapshots[str(number)] = _version_snapshot(version)
        self.specs = {name: self._spec(name, snapshot) for name, snapshot in self.snapshots.items()}

    def _spec(self, version: str, snapshot: Snapshot) -> FunctionSpec:
        return to_spec(
            account=self.record.account,
            name=self.record.name,
            version=version,
            config=snapshot.config,
            code=snapshot.code_digest,
            layers=snapshot.layers_digest,
            scaling=self._scaling(version, snapshot.config),
        )

    def _scaling(self, version: str, config: FunctionConfig) -> Scaling:
        most = DEFAULT_MAX_INSTANCES
        if config.roost is not None and config.roost.max_instances is not None:
            most = config.roost.max_instances
        if self.reserved is not None:
            most = self.reserved
        least, on_demand = 0, not config.disable_ondemand
        for (qualifier, kind), setting in self.settings.items():
            if kind is QualifierKind.ASYNC or self._points_to(qualifier) != version:
                continue
            if kind is QualifierKind.PROVISION:
                least = max(least, setting.config.get("defaultTarget", 0))
            else:
                least = max(least, setting.config.get("minInstances", 0))
                on_demand = on_demand and setting.config.get("enableOnDemandScaling", True)
        return Scaling(min_instances=min(least, most), max_instances=most, on_demand=on_demand)

    def _points_to(self, qualifier: str) -> str:
        alias = self.aliases.get(qualifier)
        return alias.version if alias else qualifier

    def version_of(self, qualifier: str | None, choose: random.Random | None = None, begun: str = "") -> str:
        """The version a qualifier stands for; an alias with weights picks by `choose`, or its main one without. If
        it may pick `begun`, it does.

        Raises NotFound.
        """
        if not qualifier or qualifier == LATEST:
            return LATEST
        if qualifier in self.snapshots:
            return qualifier
        alias = self.aliases.get(qualifier)
        if alias is None:
            kind, code = ("version", "VersionNotFound") if qualifier.isdigit() else ("alias", "AliasNotFound")
            raise NotFound(f"Function {self.record.name} has no {kind} {qualifier[:80]!r}.", code=code)
        if choose is not None and alias.weights:
            of_main = 1.0 - sum(alias.weights.values())
            if (of_main if begun == alias.version else alias.weights.get(begun, 0.0)) > 0:
                return begun
            mark = choose.random()
            for version, weight in alias.weights.items():
                mark -= weight
                if mark < 0:
                    return version
        return alias.version


def latest_snapshot(record: FunctionRecord) -> Snapshot:
    return Snapshot(
        config=parse(FunctionConfig, record.config),
        code_digest=record.code_digest,
        code_size=record.code_size,
        code_checksum=record.code_checksum,
        layers=record.layers,
        created=record.created,
        modified=record.modified,
    )


def _version_snapshot(record: VersionRecord) -> Snapshot:
    kept = record.snapshot
    return Snapshot(
        config=parse(FunctionConfig, kept["config"]),
        code_digest=kept["code_digest"],
        code_size=kept["code_size"],
        code_checksum=kept["code_checksum"],
        layers=tuple(kept["layers"]),
        created=record.created,
        modified=record.created,
    )
