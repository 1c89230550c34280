"""From a sandbox's record to its room: the layer that outlives it, volumes, the host's doors, what the guest runs."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from roost.instances.instance import Prepared
from roost.isolation.driver import MOST_LOWER, ROOT_CAPABILITIES, Mount, RoomSpec, Template
from roost.model.errors import Unavailable
from roost.model.function import NAMESPACES, STRICT, EgressRules, FunctionSpec, Idle, Runtime
from roost.model.sandbox import SANDBOX_ID, Foundation, Sandbox
from roost.model.session import Session
from roost.sandboxes.image_shelf import ImageShelf, below
from roost.sandboxes.templates import ENVD_VERSION
from roost.sandboxes.volumes import VolumeShelf

log = logging.getLogger(__name__)

#: Requests that one sandbox takes at once: streams of processes and watches hold theirs for long.
SLOTS = 1000
_NEVER = float("inf")


class Egress(Protocol):
    """The host's proxies for one room: what it may reach, as a folder of sockets and the environment that uses them."""

    async def attach(self, spec: FunctionSpec, run_dir: Path) -> tuple[Path | None, Mapping[str, str]]: ...

    async def change(self, spec: FunctionSpec, run_dir: Path) -> None: ...

    def detach(self, run_dir: Path) -> None: ...


class Layers(Protocol):
    """Disk images."""

    async def layer_over(self, snapshots: Sequence[Path], layer: Path, size_mb: int) -> tuple[Path, ...]: ...

    async def snapshot(self, layer: Path, target: Path) -> None: ...


class RootSource(Protocol):
    """The root file system that a sandbox stands on. Raises NotFound."""

    async def root(self, foundation: Foundation) -> Template: ...


@dataclass(frozen=True, kw_only=True)
class Places:
    """Directories of one server: writable layers by sandbox, and sockets of what runs."""

    layers: Path
    run: Path


def egress_of(sandbox: Sandbox) -> EgressRules:
    """As E2B has it, but that nothing is open which the server's operator does not open to all."""
    named = (sandbox.network.get("allowOut") or (), sandbox.network.get("denyOut") or ())
    return EgressRules(allow=tuple(named[0]), deny=tuple(named[1]), usual=sandbox.internet is not False)


def spec_of(sandbox: Sandbox) -> FunctionSpec:
    """The sandbox as an instance knows it. It is never frozen or stopped for being idle: its processes go on."""
    return FunctionSpec(
        account=sandbox.account,
        name=f"sandbox:{sandbox.template}",
        version="LATEST",
        revision=sandbox.template,
        runtime=Runtime.SANDBOX,
        environment=sandbox.variables,
        limits=sandbox.limits,
        timeout_s=_NEVER,
        concurrency=SLOTS,
        template=sandbox.template,
        packages=("pypi", "npm") if sandbox.internet else (),
        egress=egress_of(sandbox),
        idle=Idle(freeze_after_s=_NEVER, stop_after_s=_NEVER),
    )


class SandboxAssembly:
    """Makes what each start of a sandbox's room needs."""

    def __init__(
        self,
        *,
        places: Places,
        roots: RootSource,
        layers: Layers,
        images: ImageShelf,
        volumes: VolumeShelf,
        egress: Egress,
        region: str,
        time_zone: str,
        isolation: str = NAMESPACES,
    ) -> None:
        self._places = places
        self._roots = roots
        self._layers = layers
        self.images = images
        self._volumes = volumes
        self._egress = egress
        self._isolation = isolation
        self._region = region
        self._time_zone = time_zone
        places.layers.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def strict(self) -> bool:
        """Whether rooms here are strict."""
        return self._isolation == STRICT

    def spec(self, sandbox: Sandbox) -> FunctionSpec:
        """The sandbox as an instance knows it, on this server."""
        return replace(spec_of(sandbox), isolation=self._isolation)

    def of(self, sandbox: Sandbox) -> SandboxPreparer:
        """Its `instance.Preparer`."""
        return SandboxPreparer(self, sandbox)

    def layer(self, id: str) -> Path:
        """The image with a sandbox's files."""
        return self._places.layers / f"{id}.img"

    def run_dir(self, id: str) -> Path:
        return self._places.run / id

    def used_bytes(self, id: str) -> int:
        """What its files take of the host's disk."""
        try:
            return self.layer(id).stat().st_blocks * 512
        except OSError:
            return 0

    def has_files(self, id: str) -> bool:
        return self.layer(id).exists()

    def discard(self, id: str) -> None:
        """Its files are wanted no more; nothing uses them. What can't be removed is tried again by the next server."""
        try:
            self.layer(id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("the files of sandbox %s can't be removed: %s", id, error)

    def strays(self, known: frozenset[str]) -> list[str]:
        """Ids of files whose sandbox is none of `known`: a server was killed before it had made or ended it."""
        found = [path.stem for path in self._places.layers.glob("*.img") if SANDBOX_ID.fullmatch(path.stem)]
        return [id for id in found if id not in known]

    async def network_changed(self, sandbox: Sandbox) -> None:
        """What is said of its network holds for its room from now on. Raises RoostError."""
        await self._egress.change(self.spec(sandbox), self.run_dir(sandbox.id))

    async def copy(self, id: str, target: Path) -> None:
        """Copy the files of a sandbox that has no room, to an image that others can stand on."""
        await self._layers.snapshot(self.layer(id), target)

    async def prepare(self, spec: FunctionSpec, sandbox: Sandbox) -> Prepared:
        """All that one start needs. Raises RoostError; nothing is held then."""
        foundation, layer = sandbox.foundation, self.layer(sandbox.id)
        root = await self._roots.root(foundation)
        mounts = [
            Mount(source=self._volumes.image(self._volumes.named(sandbox.account, volume.name)), target=volume.path)
            for volume in sandbox.volumes
        ]
        if len(foundation.layers) > MOST_LOWER and not layer.exists():  # else the driver makes it
            await self._layers.layer_over(self.images.paths(foundation.layers), layer, sandbox.limits.disk_mb)
        room = RoomSpec(
            id=sandbox.id,
            template=root,
            limits=sandbox.limits,
            run_dir=self.run_dir(sandbox.id),
            layer=layer,
            lower=self.images.paths(below(foundation.layers)),
            mounts=tuple(mounts),
            capabilities=ROOT_CAPABILITIES,
            strict=self.strict,
        )
        start = self.start_message(spec, sandbox.id, sandbox.template, foundation)
        return await self.furnish(spec, room, start)

    async def furnish(self, spec: FunctionSpec, room: RoomSpec, start: Mapping[str, Any]) -> Prepared:
        """What a room with the sandboxes' daemon needs beside its files: a place for its sockets, the host's doors."""
        try:
            room.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise Unavailable(f"{room.run_dir} can't be made: {error.strerror}.") from error
        with contextlib.ExitStack() as stack:
            stack.callback(self._egress.detach, room.run_dir)
            egress_dir, doors = await self._egress.attach(spec, room.run_dir)
            environment = {**dict(room.template.environment), **start["env"], **doors}
            return Prepared(
                room=replace(room, egress_dir=egress_dir),
                start={**start, "env": environment, "egress": egress_dir is not None},
                release=stack.pop_all().close,
            )

    def start_message(self, spec: FunctionSpec, id: str, template: str, foundation: Foundation) -> dict[str, Any]:
        """What the daemon is told, but for what the room's surroundings add."""
        of_itself = {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": id, "E2B_TEMPLATE_ID": template}
        return {
            "instance": id,
            "runtime": Runtime.SANDBOX.value,
            "concurrency": SLOTS,
            "timeout": 0,
            "env": {**of_itself, **spec.environment},
            "function": {"name": template, "memory": spec.limits.memory_mb},
            "region": self._region,
            "account": spec.account,
            "output_bytes_per_s": spec.limits.output_bytes_per_s,
            "entropy": secrets.token_hex(64),
            "time_zone": self._time_zone,
            "sandbox": {
                "user": foundation.user,
                "workdir": foundation.workdir,
                "interpreter": foundation.interpreter,
                "version": ENVD_VERSION,
                "start_command": foundation.start_command,
                "ready_command": foundation.ready_command,
            },
        }


class SandboxPreparer:
    """One sandbox's `instance.Preparer`."""

    def __init__(self, assembly: SandboxAssembly, sandbox: Sandbox) -> None:
        self._assembly = assembly
        self._sandbox = sandbox

    async def prepare(self, spec: FunctionSpec, instance_id: str, session: Session | None) -> Prepared:
        return await self._assembly.prepare(spec, self._sandbox)
