"""From a function's configuration to a room's: code, layers, volumes, the session's layer, the host's proxies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from roost.instances.surroundings import Prepared
from roost.instances.volumes import Volumes, descend
from roost.isolation.driver import Branch, Mount, Room, RoomSpec, Template
from roost.isolation.egress.names import RESOLVER
from roost.model.errors import Conflict, StorageFull, Unavailable
from roost.model.function import (
    SESSION_TARGET,
    SHARED_SESSIONS_TARGET,
    Affinity,
    EgressRules,
    FunctionSpec,
    Hook,
    IsolationMode,
    VolumeMount,
)
from roost.model.session import Session
from roost.model.taint import LABELS, NONE, Holder, Holdings, Labels, holder_name, start_labels

SESSION_VOLUME = "sessions"
#: All sessions that share instances may keep this many times what one instance may write.
SHARED_QUOTA = 8


class TemplateSource(Protocol):
    """Root file systems by name. `get` raises NotFound."""

    def get(self, name: str) -> Template: ...


class Egress(Protocol):
    """The host's proxies for one room: what it may reach, as a folder of sockets and the environment that uses them."""

    async def attach(
        self, spec: FunctionSpec, run_dir: Path, holdings: Holdings
    ) -> tuple[Path | None, Mapping[str, str]]: ...

    async def furnish(self, spec: FunctionSpec, run_dir: Path, room: Room) -> None: ...

    async def change(self, spec: FunctionSpec, run_dir: Path) -> bool: ...

    def detach(self, run_dir: Path) -> None: ...

    def labels_of(self, holders: Collection[Holder]) -> Labels: ...

    async def forget_labels(self, name: str) -> None: ...


class LayerImages(Protocol):
    """Writable layers that outlive their rooms."""

    async def create(self, path: Path, size_mb: int) -> None: ...

    async def mount(self, path: Path) -> int: ...

    def discard(self, path: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Places:
    """Directories of one server."""

    code: Path
    sessions: Path
    run: Path


class Assembly:
    """Implements `instance.Preparer`."""

    def __init__(
        self,
        *,
        places: Places,
        templates: TemplateSource,
        volumes: Volumes,
        images: LayerImages,
        egress: Egress,
        region: str,
        time_zone: str,
    ) -> None:
        self._places = places
        self._templates = templates
        self._volumes = volumes
        self._images = images
        self._egress = egress
        self._region = region
        self._time_zone = time_zone
        self._branches: dict[tuple[str, str, str], Branch] = {}
        places.sessions.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def prepare(self, spec: FunctionSpec, instance_id: str, session: Session | None) -> Prepared:
        """All that one start needs. Raises RoostError; nothing is held then."""
        branch = None if session is None else self._branches.get(session.key)
        template = self._templates.get(spec.template)
        run_dir = self._places.run / instance_id
        with contextlib.ExitStack() as stack:
            mounts = self._packages(spec)
            for number, volume in enumerate(_volumes(spec, session)):
                pending = f"{instance_id}.{number}" if volume.per_task and spec.ends_with_request else ""
                mounts.append(await self._volume(volume, spec, session, stack, pending))
            layer = None if session is None else self._layer_path(session)
            run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.callback(self._egress.detach, run_dir)
            held = holdings_of(spec, session, instance_id)
            egress_dir, environment = await self._egress.attach(_with_network(spec, session), run_dir, held)
            room = RoomSpec(
                id=instance_id,
                template=template,
                limits=spec.limits,
                run_dir=run_dir,
                layer=layer,
                mounts=tuple(mounts),
                egress_dir=egress_dir,
                isolation=spec.isolation,
                live=spec.live,
                branch=branch,
            )
            start = self._start(spec, instance_id, template, environment, egress=egress_dir is not None)
            return Prepared(
                room=room,
                start=start,
                release=stack.pop_all().close,
                furnish=partial(self._egress.furnish, spec, run_dir),
            )

    def begin_with(self, session: Session, branch: Branch | None) -> None:
        """From now on each room of the session begins with this memory; None: no more."""
        if branch is None:
            self._branches.pop(session.key, None)
        else:
            self._branches[session.key] = branch

    def disks_of(self, spec: FunctionSpec, session: Session) -> tuple[Path, Path]:
        """Images of what the session writes: its room's layer, and its folder."""
        path = _session_path(spec.name, session)
        return self._layer_path(session), self._volumes.image(spec.account, SESSION_VOLUME, path)

    async def network_changed(self, spec: FunctionSpec, instance_id: str, session: Session) -> None:
        """What the session says of its network holds for its room from now on. Raises InvalidArgument, Conflict."""
        if not await self._egress.change(_with_network(spec, session), self._places.run / instance_id):
            raise Conflict(f"Session {session.id} was made with no way out: that can't change while it runs.")

    @staticmethod
    def session_dir(spec: FunctionSpec, session: Session) -> str:
        """Where in the room the session's files are."""
        if spec.isolation_mode is not IsolationMode.SHARE:
            return SESSION_TARGET
        return f"{SHARED_SESSIONS_TARGET}/{session.user}/{session.id}"

    async def make_session_dir(self, spec: FunctionSpec, session: Session) -> None:
        """Have the session's folder there before its first request to a shared instance."""
        if spec.isolation_mode is not IsolationMode.SHARE or spec.sessions.affinity is Affinity.NONE:
            return
        [mount] = _session_volume(spec, None)
        disk = await self._images.mount(await self._image(mount, spec, f"/{spec.name}"))
        try:
            os.close(descend(disk, (session.user, session.id), make=True))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFull(f"The folder that sessions of {spec.name} share is full.") from error
            raise Unavailable(f"The session's folder can't be made: {error.strerror}.") from error

    async def make_task_dir(self, spec: FunctionSpec, session: Session | None, instance_id: str, task: str) -> str:
        """Have the task's folders there before its request goes to that instance; the first, as the room sees it.

        Raises RoostError; a room can make its own folders unusable.
        """
        found = ""
        for number, mount in enumerate(spec.mounts):
            if not mount.per_task:
                continue
            path = f"{_fill(mount.base, session).rstrip('/')}/{task}"
            if spec.ends_with_request:
                name = f"{instance_id}.{number}"
                await asyncio.to_thread(self._volumes.settle, name, spec.account, mount.volume, path)
                found = found or mount.target
                continue
            if mount.quota_mb is None:
                os.close(self._volumes.open(spec.account, mount.volume, path))
            else:
                await self._make_in_image(mount, spec, session, task)
            found = found or f"{mount.target}/{task}"
        return found

    async def _make_in_image(self, mount: VolumeMount, spec: FunctionSpec, session: Session | None, task: str) -> None:
        disk = await self._images.mount(await self._image(mount, spec, _fill(mount.base, session)))
        try:
            os.close(descend(disk, (task,), make=True))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFull(f"The volume '{mount.volume}' is full: no room for the task's folder.") from error
            raise Unavailable(f"The task's folder can't be made: {error.strerror}.") from error

    async def forget(self, session: Session, *, deleted: bool) -> None:
        """The session has ended and its room is gone: so is its writable layer, and if it was deleted its volume.

        The volume of a session that merely expired stays: who comes back with the same id finds the files.
        """
        self._images.discard(self._layer_path(session))
        if deleted:
            path = _session_path(session.function, session)
            await self._volumes.remove(session.account, SESSION_VOLUME, path)
            await self._forget_shared(session)
            await self._egress.forget_labels(holder_name(session.account, "volume", SESSION_VOLUME, path))

    async def _forget_shared(self, session: Session) -> None:
        """The folder that it had beside those of others, if its function's sessions share instances."""
        image = self._volumes.image(session.account, SESSION_VOLUME, f"/{session.function}", make=False)
        if not image.exists():
            return
        try:
            users = descend(await self._images.mount(image), (session.user,), make=False)
        except OSError:
            return
        try:
            await self._volumes.remove_tree(f"/proc/self/fd/{users}/{session.id}", keep_open=users)
        finally:
            os.close(users)

    async def forget_function(self, account: str, name: str) -> None:
        """The function is gone: so is what its sessions kept."""
        await self._volumes.remove(account, SESSION_VOLUME, f"/{name}")
        await self._egress.forget_labels(holder_name(account, "volume", SESSION_VOLUME, name))

    def labels_of(self, spec: FunctionSpec | None, session: Session) -> Labels:
        """What is known of the data that a session has; `spec`: with all that its room has, while there is one."""
        path = _session_path(session.function, session)
        own = Holder(name=holder_name(session.account, "volume", SESSION_VOLUME, path))
        if spec is None:
            return self._egress.labels_of([own])
        held = holdings_of(spec, session if spec.exclusive else None, session.instance_id)
        return held.start | self._egress.labels_of([own, *held.holders])

    def _packages(self, spec: FunctionSpec) -> list[Mount]:
        targets = ((spec.code, "/code"), (spec.layers, "/opt"))
        return [
            Mount(source=self._places.code / digest, target=target, read_only=True)
            for digest, target in targets
            if digest
        ]

    async def _volume(
        self,
        mount: VolumeMount,
        spec: FunctionSpec,
        session: Session | None,
        stack: contextlib.ExitStack,
        pending: str,
    ) -> Mount:
        """`pending`: the folder belongs to the request that will come, and has this name until then."""
        path = _fill(mount.base if mount.per_task else mount.path, session)
        if mount.quota_mb is not None:
            image = await self._image(mount, spec, path)
            return Mount(source=image, target=mount.target, read_only=mount.read_only)
        fd = self._volumes.open_pending(pending) if pending else self._volumes.open(spec.account, mount.volume, path)
        stack.callback(os.close, fd)
        return Mount(source=Path(f"/proc/self/fd/{fd}"), target=mount.target, read_only=mount.read_only)

    async def _image(self, mount: VolumeMount, spec: FunctionSpec, path: str) -> Path:
        image = self._volumes.image(spec.account, mount.volume, path)
        if not image.exists():
            with contextlib.suppress(FileExistsError):  # another instance made it in the same moment
                await self._images.create(image, mount.quota_mb or spec.limits.disk_mb)
        return image

    def _layer_path(self, session: Session) -> Path:
        # The time of creation is part of the name: an id that is used again starts with files of its own.
        name = "\0".join((*session.key, repr(session.created)))
        return self._places.sessions / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.img"

    def _start(
        self,
        spec: FunctionSpec,
        instance_id: str,
        template: Template,
        environment: Mapping[str, str],
        *,
        egress: bool,
    ) -> dict[str, Any]:
        return {
            "instance": instance_id,
            "runtime": spec.runtime.value,
            "handler": spec.handler,
            "code": "/code",
            "concurrency": spec.concurrency,
            "timeout": spec.timeout_s,
            "env": {**dict(template.environment), **spec.environment, **environment},
            "initializer": _hook(spec.initializer),
            "pre_stop": _hook(spec.pre_stop),
            "command": list(spec.command or template.command),
            "port": spec.port,
            "function": {
                "name": spec.name,
                "version": spec.version,
                "qualifier": spec.version,
                "memory": spec.limits.memory_mb,
                "handler": spec.handler,
            },
            "region": self._region,
            "account": spec.account,
            "output_bytes_per_s": spec.limits.output_bytes_per_s,
            "entropy": secrets.token_hex(64),
            "time_zone": self._time_zone,
            "egress": egress,
            "live": spec.live,
            "resolver": RESOLVER if spec.egress.transparent else "",
        }


def _hook(hook: Hook | None) -> dict[str, Any] | None:
    if hook is None:
        return None
    return {"handler": hook.handler, "command": list(hook.command), "timeout": hook.timeout_s}


def _volumes(spec: FunctionSpec, session: Session | None) -> tuple[VolumeMount, ...]:
    """The function's volumes, those that the session asked for, and the one that every function with sessions has."""
    asked = tuple(VolumeMount(**fields) for fields in session.config.get("mounts", ())) if session else ()
    return (*spec.mounts, *asked, *_session_volume(spec, session))


def _session_volume(spec: FunctionSpec, session: Session | None) -> tuple[VolumeMount, ...]:
    """Always with a quota: nobody asked for it by name, so it must not be able to fill the host's disk."""
    if session is not None:
        path, target, quota = _session_path(spec.name, session), SESSION_TARGET, spec.limits.disk_mb
    elif spec.sessions.affinity is not Affinity.NONE and spec.isolation_mode is IsolationMode.SHARE:
        path, target = f"/{spec.name}", SHARED_SESSIONS_TARGET
        quota = spec.limits.disk_mb * SHARED_QUOTA
    else:
        return ()
    return (VolumeMount(volume=SESSION_VOLUME, path=path, target=target, quota_mb=quota),)


def holdings_of(spec: FunctionSpec, session: Session | None, instance_id: str) -> Holdings:
    """The data that a room begins with: its volumes, and what it writes elsewhere. That of a session is as lasting as
    the session's volume is."""
    volumes = _volumes(spec, session)
    own: tuple[Holder, ...] = ()
    if session is None:
        life = holder_name(spec.account, "instance", instance_id)
        own = (Holder(name=life, lasting=False),)
    else:
        life = holder_name(spec.account, "volume", SESSION_VOLUME, _session_path(spec.name, session))
    kept = (
        Holder(
            name=holder_name(
                spec.account, "volume", one.volume, _fill(one.base if one.per_task else one.path, session)
            ),
            writable=not one.read_only,
        )
        for one in volumes
    )
    start = start_labels(spec.egress.taint, (one.volume for one in volumes))
    brought = NONE if session is None else LABELS.intersection(session.config.get("labels", ()))
    return Holdings(life=life, holders=(*own, *kept), start=start, brought=brought)


def _with_network(spec: FunctionSpec, session: Session | None) -> FunctionSpec:
    """What a session says of its network replaces, field by field, what its function says."""
    config = {} if session is None else session.config
    if "network" not in config and "allowInternetAccess" not in config:
        return spec
    network, internet = config.get("network", {}), config.get("allowInternetAccess")
    if internet is False:
        return replace(
            spec, packages=(), egress=EgressRules(may_change=True, way=spec.egress.way, taint=spec.egress.taint)
        )
    rules = EgressRules(
        allow=tuple(network.get("allowOut", spec.egress.allow)),
        deny=tuple(network.get("denyOut", spec.egress.deny)),
        usual=spec.egress.usual or internet is True,
        added=network.get("rules") or {},
        may_change=True,
        way=spec.egress.way,
        taint=spec.egress.taint,
        megabytes=network.get("egressMB", spec.egress.megabytes),
        connections=network.get("egressConnections", spec.egress.connections),
    )
    return replace(spec, egress=rules)


def _session_path(function: str, session: Session) -> str:
    return f"/{function}/{session.user}/{session.id}"


def _fill(path: str, session: Session | None) -> str:
    """`{user}` and `{session}` in a volume's path."""
    user, id = (session.user, session.id) if session else ("default", "none")
    return path.replace("{user}", user).replace("{session}", id)
