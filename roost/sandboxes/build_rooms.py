"""Rooms in which templates are built: a sandbox's, but for its files, which are the build's, and for its life, which is
one step's. No record tells of them: what a killed server leaves of one is swept by the next."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from roost.instances.background import Background
from roost.instances.instance import Instance
from roost.instances.surroundings import Prepared, Surroundings
from roost.isolation.driver import ROOT_CAPABILITIES, RoomSpec
from roost.model.function import EgressRules, FunctionSpec, Idle, Runtime
from roost.model.instance import StopReason
from roost.model.sandbox import Foundation
from roost.model.session import Session
from roost.model.taint import Holdings
from roost.sandboxes.assembly import SLOTS, RootSource, SandboxAssembly
from roost.sandboxes.builder import RoomNeeds

_NEVER = float("inf")


class BuildRooms:
    """Implements `builder.Rooms`; a room is given as the path of its app.sock."""

    def __init__(self, *, around: Surroundings, assembly: SandboxAssembly, roots: RootSource) -> None:
        self._around = around
        self._assembly = assembly
        self._roots = roots
        self._background = Background()

    @asynccontextmanager
    async def open(self, needs: RoomNeeds) -> AsyncIterator[str]:
        run_dir = self._assembly.run_dir(needs.id)
        app_socket = str(run_dir / "app.sock")
        instance = Instance(
            id=needs.id,
            spec=_spec_of(needs, self._assembly.way_out),
            session=None,
            around=replace(self._around, preparer=_BuildPreparer(self._assembly, self._roots, needs)),
            on_change=lambda _: None,
            slots=SLOTS,
            app_socket=app_socket,
            metered_as=needs.id,
        )
        self._background.spawn(instance.run())
        try:
            await instance.up()
            yield app_socket
        finally:
            instance.stop(StopReason.KILLED, grace=0)
            # Its layer is about to be copied or removed: not before the room has gone, whoever is in a hurry.
            await asyncio.shield(self._background.spawn(_gone(instance)))
            shutil.rmtree(run_dir, ignore_errors=True)

    async def close(self) -> None:
        """After the builds were ended."""
        await self._background.close()


async def _gone(instance: Instance) -> None:
    await instance.stopped.wait()


class _BuildPreparer:
    """One room's `instance.Preparer`."""

    def __init__(self, assembly: SandboxAssembly, roots: RootSource, needs: RoomNeeds) -> None:
        self._assembly = assembly
        self._roots = roots
        self._needs = needs

    async def prepare(self, spec: FunctionSpec, instance_id: str, session: Session | None) -> Prepared:
        needs = self._needs
        foundation = Foundation(root=needs.root, interpreter=needs.interpreter)
        room = RoomSpec(
            id=needs.id,
            template=await self._roots.root(foundation),
            limits=needs.limits,
            run_dir=self._assembly.run_dir(needs.id),
            layer=needs.layer,
            lower=needs.lower,
            mounts=needs.mounts,
            capabilities=ROOT_CAPABILITIES,
            isolation=self._assembly.isolation,
        )
        start = self._assembly.start_message(spec, needs.id, spec.name, foundation)
        return await self._assembly.furnish(spec, room, start, Holdings())


def _spec_of(needs: RoomNeeds, way_out: str) -> FunctionSpec:
    """Builds may install packages from the server's indexes, and reach what the server opens to all sandboxes."""
    return FunctionSpec(
        account=needs.account,
        name="build",
        version="LATEST",
        revision="build",
        runtime=Runtime.SANDBOX,
        limits=needs.limits,
        timeout_s=_NEVER,
        concurrency=SLOTS,
        template=needs.root,
        packages=("pypi", "npm"),
        egress=EgressRules(usual=True, way=way_out),
        idle=Idle(freeze_after_s=_NEVER, stop_after_s=_NEVER),
    )
