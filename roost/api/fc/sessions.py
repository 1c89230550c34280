"""The Session API. What a session may be is checked here; what becomes of it is the session manager's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.paging import limit_of, with_token
from roost.api.fc.ports import Sessions as SessionManager
from roost.api.fc.ports import Snapshots as SnapshotManager
from roost.api.fc.render import iso
from roost.functions.affinity import IdleTimeout, Ttl
from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import NasConfig, OssMountConfig, Shape
from roost.functions.session_network import Network, NetworkUpdate, network_config, shown_network
from roost.functions.tasks.service import TaskService
from roost.functions.volumes import check_apart, volume_mounts
from roost.model.errors import AccessDenied, InvalidArgument
from roost.model.function import LATEST, Affinity, FunctionSpec
from roost.model.role import Role
from roost.model.session import Session, SessionState, check_session_id

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_ECHOED = ("nasConfig", "ossMountConfig")
_UNSUPPORTED = {
    "polar_fs_config": "polarFsConfig: Roost does not mount PolarFS; use nasConfig with a volume.",
    "juice_fs_config": "juiceFsConfig: Roost does not mount JuiceFS; use nasConfig with a volume.",
}


class _RoostSession(Shape):
    """`user`: whose files the session works on; volumes are laid out as user/session/task."""

    user: str | None = None


class _UpdateSession(Shape):
    ttl: Annotated[Ttl | None, Field(alias="sessionTTLInSeconds")] = None
    idle_timeout: Annotated[IdleTimeout | None, Field(alias="sessionIdleTimeoutInSeconds")] = None
    disable_session_id_reuse: bool | None = None
    enable_auto_pause: bool | None = None
    enable_auto_resume: bool | None = None
    allow_internet_access: bool | None = None
    network: NetworkUpdate | None = None
    polar_fs_config: dict[str, Any] | None = None
    juice_fs_config: dict[str, Any] | None = None
    nas_config: NasConfig | None = None
    oss_mount_config: OssMountConfig | None = None


class _CreateSession(_UpdateSession):
    session_id: str | None = None
    snapshot_id: str | None = None
    network: Network | None = None
    roost: _RoostSession | None = None


class Sessions:
    def __init__(
        self, catalog: FunctionCatalog, sessions: SessionManager, snapshots: SnapshotManager, tasks: TaskService
    ) -> None:
        self._catalog = catalog
        self._sessions = sessions
        self._snapshots = snapshots
        self._tasks = tasks

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/functions/{name}/sessions"
        return [
            endpoints.route("POST", path, self._create),
            endpoints.route("GET", path, self._list),
            endpoints.route("GET", path + "/{session}", self._get),
            endpoints.route("PUT", path + "/{session}", self._update),
            endpoints.route("DELETE", path + "/{session}", self._delete),
            endpoints.route("PUT", path + "/{session}/pause", self._pause),
            endpoints.route("PUT", path + "/{session}/resume", self._resume),
        ]

    async def _create(self, call: Call) -> Answer:
        given = call.parse(_CreateSession)
        spec = self._catalog.resolve(call.account, call.params["name"], call.qualifier)
        _refuse_unsupported(given)
        session_id = _session_id(given.session_id, spec)
        ttl, idle = _lifetime(given, spec)
        policy = spec.sessions
        user, config = _user(given), {**_config(call, given, spec), **_network(call, given, spec, {})}
        if given.snapshot_id:
            if not spec.exclusive:
                raise InvalidArgument("snapshotId: only with instanceIsolationMode SESSION_EXCLUSIVE.")
            snapshot = self._snapshots.get(call.account, spec.name, given.snapshot_id)
            if given.roost and given.roost.user and given.roost.user != snapshot.source.user:
                raise InvalidArgument(f"roost.user: the snapshot's files are those of {snapshot.source.user}.")
            user, config = snapshot.source.user, dict(snapshot.begun(config))
        session = await self._sessions.create(
            spec,
            qualifier=call.qualifier or LATEST,
            session_id=session_id,
            user=user,
            ttl_s=ttl,
            idle_timeout_s=idle,
            disable_id_reuse=policy.disable_id_reuse
            if given.disable_session_id_reuse is None
            else given.disable_session_id_reuse,
            auto_pause=bool(given.enable_auto_pause),
            auto_resume=bool(given.enable_auto_resume),
            config=config,
        )
        if not given.snapshot_id:
            return session_json(session)
        session, memory, lost = await self._snapshots.restore(given.snapshot_id, spec, session)
        body = session_json(session)
        about = {**body.get("roost", {}), "memory": memory, "lost": list(lost)}
        return JSONResponse({**body, "roost": about}, headers={"x-roost-restored": "memory" if memory else "files"})

    async def _get(self, call: Call) -> Answer:
        session = await self._sessions.get(*self._key(call))
        return (await self._with_work(call, [session]))[0]

    async def _list(self, call: Call) -> Answer:
        self._catalog.get(call.account, call.params["name"])
        sessions, token = await self._sessions.list(
            call.account,
            call.params["name"],
            qualifier=call.qualifier,
            session_id=call.query.get("sessionId") or None,
            state=_state(call.query.get("sessionStatus", "")),
            limit=limit_of(call.query),
            next_token=call.query.get("nextToken", ""),
        )
        return with_token({"sessions": await self._with_work(call, sessions)}, token)

    async def _with_work(self, call: Call, sessions: Sequence[Session]) -> list[dict[str, Any]]:
        """As JSON, with what they are busy with now."""
        ids = [session.id for session in sessions]
        works = await self._tasks.work_of(call.account, call.params["name"], ids)
        bodies = []
        for session, work in zip(sessions, works, strict=True):
            body = session_json(session)
            about: dict[str, Any] = {"busy": work.busy, "tasks": work.tasks, "requests": work.requests}
            if labels := self._sessions.labels(session):
                about["labels"] = sorted(labels)
            bodies.append({**body, "roost": {**body.get("roost", {}), **about}})
        return bodies

    async def _update(self, call: Call) -> Answer:
        given = call.parse(_UpdateSession)
        _refuse_unsupported(given)
        if given.nas_config or given.oss_mount_config:
            raise InvalidArgument("nasConfig, ossMountConfig: the mounts of a session are set when it is created.")
        present = await self._sessions.get(*self._key(call))
        ttl = present.ttl_s if given.ttl is None else given.ttl
        idle = present.idle_timeout_s if given.idle_timeout is None else given.idle_timeout
        _check_lifetime(ttl, idle)
        spec = self._catalog.resolve(call.account, call.params["name"], present.qualifier)
        session = await self._sessions.update(
            *self._key(call),
            ttl_s=given.ttl,
            idle_timeout_s=given.idle_timeout,
            disable_id_reuse=given.disable_session_id_reuse,
            auto_pause=given.enable_auto_pause,
            auto_resume=given.enable_auto_resume,
            network=_network(call, given, spec, present.config),
        )
        return session_json(session)

    async def _delete(self, call: Call) -> Answer:
        await self._sessions.delete(*self._key(call))
        return None

    async def _pause(self, call: Call) -> Answer:
        files_only = bool(call.query_bool("fileSystemOnly"))
        session, memory_kept = await self._sessions.pause(*self._key(call), files_only=files_only)
        return _with_rung(session, "x-roost-paused", memory_kept)

    async def _resume(self, call: Call) -> Answer:
        session, memory_kept = await self._sessions.resume(*self._key(call))
        return _with_rung(session, "x-roost-resumed", memory_kept)

    def _key(self, call: Call) -> tuple[str, str, str]:
        self._catalog.get(call.account, call.params["name"])
        return call.account, call.params["name"], check_session_id(call.params["session"])


def _with_rung(session: Session, header: str, memory_kept: bool) -> JSONResponse:
    """The API has no field for what was kept, and the caller has to know."""
    return JSONResponse(session_json(session), headers={header: "memory" if memory_kept else "files"})


def session_json(session: Session) -> dict[str, Any]:
    return {
        "functionName": session.function,
        "qualifier": session.qualifier,
        "sessionId": session.id,
        "sessionAffinityType": session.affinity.value,
        "sessionStatus": session.state.value,
        "sessionTTLInSeconds": session.ttl_s,
        "sessionIdleTimeoutInSeconds": session.idle_timeout_s,
        "disableSessionIdReuse": session.disable_id_reuse,
        "enableAutoPause": session.auto_pause,
        "enableAutoResume": session.auto_resume,
        "containerId": session.instance_id,
        "createdTime": iso(session.created),
        "lastModifiedTime": iso(session.modified),
        **{key: session.config[key] for key in _ECHOED if key in session.config},
        **shown_network(session.config),
        **({} if session.user == "default" else {"roost": {"user": session.user}}),
    }


def _refuse_unsupported(given: _UpdateSession) -> None:
    for field, reason in _UNSUPPORTED.items():
        if getattr(given, field, None):
            raise InvalidArgument(reason)


def _session_id(given: str | None, spec: FunctionSpec) -> str | None:
    kind = spec.sessions.affinity
    if kind in {Affinity.NONE, Affinity.MCP_SSE}:
        raise InvalidArgument(f"Function {spec.name} has session affinity {kind.value}; the Session API needs another.")
    if not given:
        return None
    if kind is not Affinity.HEADER_FIELD:
        raise InvalidArgument(f"sessionId: with session affinity {kind.value} the server chooses the ID.")
    return check_session_id(given)


def _lifetime(given: _UpdateSession, spec: FunctionSpec) -> tuple[int, int]:
    ttl = spec.sessions.ttl_s if given.ttl is None else given.ttl
    if given.idle_timeout is None:
        return ttl, min(ttl, spec.sessions.idle_timeout_s)
    _check_lifetime(ttl, given.idle_timeout)
    return ttl, given.idle_timeout


def _check_lifetime(ttl: int, idle: int) -> None:
    if idle > ttl:
        raise InvalidArgument("sessionIdleTimeoutInSeconds: can't be longer than sessionTTLInSeconds.")


def _user(given: _CreateSession) -> str:
    user = (given.roost and given.roost.user) or "default"
    if not _USER.fullmatch(user):
        raise InvalidArgument("roost.user: 1 to 64 letters, digits, '_', '.' or '-', the first no '.' or '-'.")
    return user


def _config(call: Call, given: _CreateSession, spec: FunctionSpec) -> Mapping[str, Any]:
    """Raises InvalidArgument, AccessDenied: a volume is that of other functions too."""
    mounts = volume_mounts(given.nas_config, given.oss_mount_config)
    if mounts and call.role < Role.DEVELOPER:
        raise AccessDenied("nasConfig, ossMountConfig: the role developer is needed to say what a session mounts.")
    check_apart([*spec.mounts, *mounts])
    config: dict[str, Any] = {}
    if given.nas_config is not None:
        config["nasConfig"] = given.nas_config.to_json()
    if given.oss_mount_config is not None:
        config["ossMountConfig"] = given.oss_mount_config.to_json()
    if mounts:
        config["mounts"] = [asdict(mount) for mount in mounts]
    return config


def _network(call: Call, given: _UpdateSession, spec: FunctionSpec, before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises InvalidArgument, AccessDenied: what code may reach is for those to say who may change it."""
    if (given.network is not None or given.allow_internet_access is not None) and call.role < Role.DEVELOPER:
        raise AccessDenied("network, allowInternetAccess: the role developer is needed to say what a session reaches.")
    return network_config(given.network, given.allow_internet_access, spec, before)


def _state(text: str) -> SessionState | None:
    if not text:
        return None
    try:
        return SessionState(text)
    except ValueError:
        known = ", ".join(state.value for state in SessionState)
        raise InvalidArgument(f"sessionStatus: {text[:40]!r} is not one of {known}.") from None
