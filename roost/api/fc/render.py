"""From the catalog's records to the JSON of the API. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from roost.functions.entry import FunctionEntry, Snapshot
from roost.functions.names import function_arn
from roost.functions.rules import CONTAINER_RUNTIME
from roost.model.function import LATEST, FunctionSpec
from roost.store.aliases import AliasRecord
from roost.store.layers import LayerRecord
from roost.store.versions import VersionRecord


def iso(seconds: float) -> str:
    """`2026-01-31T23:59:59Z`"""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def function_json(
    entry: FunctionEntry, snapshot: Snapshot, spec: FunctionSpec, tags: dict[str, str], region: str
) -> dict[str, Any]:
    """A function at one version: what was given, and the values that hold where nothing was."""
    record = entry.record
    body = _effective(spec) | snapshot.config.to_json()
    body |= {
        "functionName": record.name,
        "functionId": record.id,
        "functionArn": function_arn(
            region, record.account, record.name, "" if spec.version == LATEST else spec.version
        ),
        "codeSize": snapshot.code_size,
        "codeChecksum": snapshot.code_checksum,
        "layers": [{"arn": layer["arn"], "size": layer["size"]} for layer in snapshot.layers],
        "createdTime": iso(record.created),
        "lastModifiedTime": iso(snapshot.modified),
        "state": "Active",
        "lastUpdateStatus": "Successful",
        "tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    if record.restriction is not None:
        body["invocationRestriction"] = {
            "disable": True,
            "reason": record.restriction["reason"],
            "lastModifiedTime": iso(record.restriction["modified"]),
        }
    return body


def _effective(spec: FunctionSpec) -> dict[str, Any]:
    return {
        "description": "",
        "cpu": spec.limits.cpu,
        "memorySize": spec.limits.memory_mb,
        "diskSize": spec.limits.disk_mb,
        "timeout": int(spec.timeout_s),
        "instanceConcurrency": spec.concurrency,
        "instanceIsolationMode": spec.isolation_mode.value,
        "sessionAffinity": spec.sessions.affinity.value,
        "environmentVariables": dict(spec.environment),
        "idleTimeout": int(spec.idle.stop_after_s),
        "disableOndemand": not spec.scaling.on_demand,
        "internetAccess": False,
    }


def version_json(record: VersionRecord) -> dict[str, Any]:
    return {
        "versionId": str(record.version),
        "description": record.description,
        "createdTime": iso(record.created),
        "lastModifiedTime": iso(record.created),
    }


def alias_json(record: AliasRecord) -> dict[str, Any]:
    return {
        "aliasName": record.name,
        "versionId": record.version,
        "additionalVersionWeight": dict(record.weights),
        "description": record.description,
        "createdTime": iso(record.created),
        "lastModifiedTime": iso(record.modified),
    }


def layer_json(record: LayerRecord, arn: str, *, public: bool, location: str = "") -> dict[str, Any]:
    """`location`: where the package can be fetched; left out of lists."""
    body: dict[str, Any] = {
        "layerName": record.name,
        "version": record.version,
        "layerVersionArn": arn,
        "description": record.description,
        "license": record.license,
        "compatibleRuntime": list(record.runtimes),
        "codeSize": record.code_size,
        "codeChecksum": record.code_checksum,
        "createTime": iso(record.created),
        "acl": "1" if public else "0",
    }
    if location:
        body["code"] = {"location": location, "repositoryType": "URL"}
    return body


def has_package(snapshot: Snapshot) -> bool:
    """False for a container function that was made of an image alone."""
    return bool(snapshot.code_digest) or snapshot.config.runtime != CONTAINER_RUNTIME
