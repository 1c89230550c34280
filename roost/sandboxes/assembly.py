"""From a sandbox's record to its room: the layer that outlives it, volumes, the host's doors, what the guest runs."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from roost.instances.surroundings import Prepared
from roost.isolation.driver import MOST_LOWER, ROOT_CAPABILITIES, Branch, Mount, Room, RoomSpec, Template
from roost.isolation.egress.names import RESOLVER
from roost.model.errors import Unavailable
from roost.model.function import NAMESPACES, PROXY, EgressRules, FunctionSpec, Idle, Runtime
from roost.model.sandbox import SANDBOX_PLACE, Foundation, Sandbox
from roost.model.session import Session
from roost.model.taint import (
    LABELS,
    NONE,
    Holder,
    Holdings,
    Labels,
    TaintRules,
    holder_name,
    parse_taint,
    start_labels,
    stricter,
)
from roost.sandboxes.image_shelf import ImageShelf, below
from roost.sandboxes.templates import ENVD_VERSION
from roost.sandboxes.volumes import VolumeShelf

log = logging.getLogger(__name__)

#: Requests that one sandbox takes at once: streams of processes and watches hold theirs for long.
SLOTS = 1000
_NEVER = float("inf")


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


class Layers(Protocol):
    """Disk images."""

    async def layer_over(self, snapshots: Sequence[Path], layer: Path, size_mb: int) -> tuple[Path, ...]: ...

    async def snapshot(self, layer: Path, target: Path) -> None: ...

    def discard(self, path: Path) -> None: ...


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
    return EgressRules(
        allow=tuple(named[0]),
        deny=tuple(named[1]),
        usual=sandbox.internet is not False,
        added=sandbox.network.get("rules") or {},
        may_change=True,
        megabytes=sandbox.network.get("egressMB") or 0,
        connections=sandbox.network.get("egressConnections") or 0,
    )


def name_of(template: str) -> str:
    """What sandboxes of a template are together, where functions are counted."""
    return f"sandbox:{template}"


def taint_of(sandbox: Sandbox, usual: TaintRules) -> TaintRules:
    """As its creator says, else as the sandbox had it whose files it stands on, else as is usual; never with a looser
    mode than that of those files."""
    below = sandbox.foundation.taint
    if "taint" in sandbox.network:
        rules = parse_taint(sandbox.network["taint"])
        return replace(rules, mode=stricter(rules.mode, below.mode))
    return replace(below if below.on else usual, mode=stricter(below.mode, usual.mode))


def spec_of(sandbox: Sandbox) -> FunctionSpec:
    """The sandbox as an instance knows it. It is never frozen or stopped for being idle: its processes go on."""
    return FunctionSpec(
        account=sandbox.account,
        name=name_of(sandbox.template),
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
        way_out: str = PROXY,
        taint: TaintRules | None = None,
        live: bool = True,
    ) -> None:
        """`live`: code contexts are made so that their memory can be copied."""
        self._places = places
        self._roots = roots
        self._layers = layers
        self.images = images
        self.isolation = isolation  # of every sandbox's room here
        self._volumes = volumes
        self._egress = egress
        self.way_out = way_out
        self.taint = taint or TaintRules()  # of sandboxes that say nothing of it
        self.live = live
        self._region = region
        self._time_zone = time_zone
        places.layers.mkdir(parents=True, exist_ok=True, mode=0o700)

    def spec(self, sandbox: Sandbox) -> FunctionSpec:
        """The sandbox as an instance knows it, on this server."""
        spec = spec_of(sandbox)
        way = sandbox.network.get("egress") or self.way_out
        egress = replace(spec.egress, way=way, taint=taint_of(sandbox, self.taint))
        return replace(spec, isolation=self.isolation, egress=egress)

    def holdings(self, sandbox: Sandbox, *, first: bool = False) -> Holdings:
        """The data that its room begins with; `first`: it has no files of its own yet. Raises NotFound for a volume
        that is gone."""
        volumes = [self._volumes.named(sandbox.account, volume.name) for volume in sandbox.volumes]
        held = [holder_name(sandbox.account, "sandbox-volume", volume.id) for volume in volumes]
        names = (holder_name(sandbox.account, "sandbox", sandbox.id), *held)
        return Holdings(
            life=names[0],
            holders=tuple(Holder(name=name) for name in names),
            start=start_labels(taint_of(sandbox, self.taint), (volume.name for volume in sandbox.volumes)),
            brought=LABELS.intersection(sandbox.foundation.labels) if first else NONE,
        )

    def labels(self, sandbox: Sandbox) -> Labels:
        """What is known of the data that it has; where none are kept, of what it was made from."""
        held = self.holdings(sandbox, first=not taint_of(sandbox, self.taint).on)
        return held.start | held.brought | self._egress.labels_of(held.holders)

    def gone_back(self, sandbox: Sandbox, foundation: Foundation) -> Foundation:
        """What it stands on when it goes back to a checkpoint's foundation. What it has read since is forgotten by its
        memory, and not by whom it may have told."""
        return replace(foundation, labels=tuple(sorted({*foundation.labels, *self.labels(sandbox)})))

    async def forget_labels(self, sandbox: Sandbox) -> None:
        """Its files are gone."""
        await self._egress.forget_labels(holder_name(sandbox.account, "sandbox", sandbox.id))

    def of(self, sandbox: Sandbox, now: Callable[[], Sandbox], branch: Branch | None = None) -> SandboxPreparer:
        """Its `instance.Preparer`. `now` tells its record as that is by then; `branch`: what its first room's contexts
        are copies of."""
        return SandboxPreparer(self, sandbox, now, branch)

    def layer(self, place: str) -> Path:
        """The image with a sandbox's files."""
        return self._places.layers / f"{place}.img"

    def run_dir(self, place: str) -> Path:
        return self._places.run / place

    def used_bytes(self, place: str) -> int:
        """What its files take of the host's disk."""
        try:
            return self.layer(place).stat().st_blocks * 512
        except OSError:
            return 0

    def has_files(self, place: str) -> bool:
        return self.layer(place).exists()

    def discard(self, place: str) -> None:
        """Its files are wanted no more; nothing uses them. What can't be removed is tried again by the next server."""
        try:
            self._layers.discard(self.layer(place))
        except OSError as error:
            log.warning("the files of sandbox %s can't be removed: %s", place, error)

    def strays(self, known: frozenset[str]) -> list[str]:
        """Places with files that are none of `known`: a server was killed before it had made, left or ended it."""
        found = [path.stem for path in self._places.layers.glob("*.img") if SANDBOX_PLACE.fullmatch(path.stem)]
        return [place for place in found if place not in known]

    async def network_changed(self, sandbox: Sandbox, place: str) -> None:
        """What is said of its network holds for its room at that place from now on. Raises RoostError."""
        await self._egress.change(self.spec(sandbox), self.run_dir(place))

    async def copy(self, place: str, target: Path) -> None:
        """Copy the files of a sandbox that has no room, to an image that others can stand on."""
        await self._layers.snapshot(self.layer(place), target)

    async def prepare(self, spec: FunctionSpec, sandbox: Sandbox, branch: Branch | None = None) -> Prepared:
        """All that one start needs. Raises RoostError; nothing is held then."""
        foundation, layer = sandbox.foundation, self.layer(sandbox.place)
        holdings = self.holdings(sandbox, first=not layer.exists())
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
            run_dir=self.run_dir(sandbox.place),
            layer=layer,
            lower=self.images.paths(below(foundation.layers)),
            mounts=tuple(mounts),
            capabilities=ROOT_CAPABILITIES,
            isolation=self.isolation,
            live=self.live and foundation.interpreter,
            branch=branch,
        )
        start = self.start_message(spec, sandbox.id, sandbox.template, foundation)
        return await self.furnish(spec, room, start, holdings)

    async def furnish(
        self, spec: FunctionSpec, room: RoomSpec, start: Mapping[str, Any], holdings: Holdings
    ) -> Prepared:
        """What a room with the sandboxes' daemon needs beside its files: a place for its sockets, the host's doors."""
        try:
            room.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise Unavailable(f"{room.run_dir} can't be made: {error.strerror}.") from error
        with contextlib.ExitStack() as stack:
            stack.callback(self._egress.detach, room.run_dir)
            egress_dir, doors = await self._egress.attach(spec, room.run_dir, holdings)
            environment = {**dict(room.template.environment), **start["env"], **doors}
            return Prepared(
                room=replace(room, egress_dir=egress_dir),
                start={
                    **start,
                    "env": environment,
                    "egress": egress_dir is not None,
                    "resolver": RESOLVER if spec.egress.transparent else "",
                },
                release=stack.pop_all().close,
                furnish=partial(self._egress.furnish, spec, room.run_dir),
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

    def __init__(
        self, assembly: SandboxAssembly, sandbox: Sandbox, now: Callable[[], Sandbox], branch: Branch | None
    ) -> None:
        self._assembly = assembly
        self._sandbox = sandbox
        self._now = now
        self._branch = branch

    async def prepare(self, spec: FunctionSpec, instance_id: str, session: Session | None) -> Prepared:
        made_as, (branch, self._branch) = self._sandbox, (self._branch, None)
        prepared = await self._assembly.prepare(spec, made_as, branch)
        now = self._now()
        if (now.network, now.internet) != (made_as.network, made_as.internet):
            # Who changed it found no proxies here; who changes it from now on does.
            try:
                await self._assembly.network_changed(now, made_as.place)
            except BaseException:
                prepared.release()
                raise
        return prepared
