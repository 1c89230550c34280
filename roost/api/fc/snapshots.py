"""Snapshots of sessions: what CreateSession's `snapshotId` names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.paging import limit_of, page, with_token
from roost.api.fc.ports import Sessions as SessionManager
from roost.api.fc.ports import Snapshot
from roost.api.fc.ports import Snapshots as SnapshotManager
from roost.api.fc.render import iso
from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import Shape
from roost.model.errors import InvalidArgument
from roost.model.function import LATEST
from roost.model.session import check_session_id


class _CreateSnapshot(Shape):
    session_id: str | None = None
    description: Annotated[str, Field(max_length=256)] | None = None


class Snapshots:
    def __init__(self, catalog: FunctionCatalog, sessions: SessionManager, snapshots: SnapshotManager) -> None:
        self._catalog = catalog
        self._sessions = sessions
        self._snapshots = snapshots

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/functions/{name}/snapshots"
        return [
            endpoints.route("POST", path, self._create),
            endpoints.route("GET", path + "/{snapshot}", self._get),
            endpoints.route("DELETE", path + "/{snapshot}", self._delete),
            endpoints.route("GET", "/snapshots", self._list),
        ]

    async def _create(self, call: Call) -> Answer:
        given = call.parse(_CreateSnapshot)
        self._catalog.get(call.account, call.params["name"])
        if not given.session_id:
            raise InvalidArgument("sessionId: the session that the snapshot is to be of is missing.")
        session = await self._sessions.get(call.account, call.params["name"], check_session_id(given.session_id))
        if (call.qualifier or session.qualifier) != session.qualifier:
            raise InvalidArgument(f"qualifier: session {session.id} was created for {session.qualifier}.")
        spec = self._catalog.resolve(call.account, session.function, session.qualifier)
        return snapshot_json(await self._snapshots.create(spec, session, given.description or ""))

    async def _get(self, call: Call) -> Answer:
        return snapshot_json(self._snapshots.get(*self._key(call)))

    async def _delete(self, call: Call) -> Answer:
        await self._snapshots.delete(*self._key(call))
        return None

    async def _list(self, call: Call) -> Answer:
        function, session = call.query.get("functionName", ""), call.query.get("sessionId", "")
        qualifier = call.query.get("qualifier", "")
        if session and not function:
            raise InvalidArgument("sessionId: functionName has to be given too.")
        chosen = [
            one
            for one in self._snapshots.list(call.account)
            if function in ("", one.source.function)
            and session in ("", one.source.id)
            and qualifier in ("", one.source.qualifier)
        ]
        found, token = page(
            chosen, lambda one: one.id, limit=limit_of(call.query), token=call.query.get("nextToken", "")
        )
        return with_token({"snapshots": [snapshot_json(one) for one in found]}, token)

    def _key(self, call: Call) -> tuple[str, str, str]:
        self._catalog.get(call.account, call.params["name"])
        return call.account, call.params["name"], call.params["snapshot"]


def snapshot_json(one: Snapshot) -> dict[str, Any]:
    """As Function Compute shows it; `roost` says whether there is memory, and what is missing."""
    spec = one.spec
    return {
        "snapshotId": one.id,
        "functionName": spec.name,
        "qualifier": one.source.qualifier,
        "resolvedVersion": "" if spec.version == LATEST else spec.version,
        "sourceSessionId": one.source.id,
        "description": one.description,
        "status": "Available",
        "createdTime": iso(one.created),
        "expiredTime": iso(one.expires),
        "cpu": spec.limits.cpu,
        "memoryMB": spec.limits.memory_mb,
        "diskSizeMB": spec.limits.disk_mb,
        "artifactDiskUsedSizeInB": one.disk_bytes,
        "artifactMemUsedSizeInB": one.memory_bytes,
        "envs": dict(spec.environment),
        "imageRepository": "",
        "imageDigest": "",
        "osType": "linux",
        "startCommand": "",
        "readyCommand": "",
        "roost": {"memory": one.has_memory, "lost": list(one.lost)},
    }
