"""Carries out one plan: each stage in a room of its own, over what the stages before it left.

One layer is written by all stages in turn; after each it is copied to the cache. So a template is one layer over its
base, however many steps it had, and a stage's processes end with its room.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from roost.instances.egress import MODEL_VARIABLES
from roost.isolation.driver import Mount
from roost.isolation.images import storage
from roost.model.errors import InvalidArgument, RoostError
from roost.model.function import Limits
from roost.sandboxes.build_cache import BuildCache
from roost.sandboxes.build_log import BuildLog
from roost.sandboxes.builds import ARCHIVE_FOLDER, Command, Context, Plan, Stage
from roost.sandboxes.image_shelf import below

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

_STAGE_TIMEOUT_S = 3600.0
_READY_TIMEOUT_S = 120.0
_READY_PAUSE_S = 0.2
FINALIZE = "finalize"


class BuildFailed(RoostError):
    """`step` names where: a step's number from 1, or FINALIZE."""

    code = "BuildFailed"
    status = 400

    def __init__(self, message: str, step: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True, kw_only=True)
class RoomNeeds:
    """What a build's room is made from. `root` is the root file system's name; `lower` lies under `layer`."""

    id: str
    root: str
    interpreter: bool
    account: str
    limits: Limits
    layer: Path
    lower: tuple[Path, ...]
    mounts: tuple[Mount, ...] = ()


class Rooms(Protocol[R_co]):
    def open(self, needs: RoomNeeds) -> AbstractAsyncContextManager[R_co]:
        """A room whose root may do all that ROOT_CAPABILITIES say. At the end it has gone and its layer is free, also
        when the block is cancelled."""
        ...


class Runner(Protocol[R_contra]):
    async def run(
        self,
        room: R_contra,
        command: str,
        *,
        user: str,
        cwd: str,
        env: Mapping[str, str],
        on_line: Callable[[str, str], None],
    ) -> int:
        """Run a command in a login shell of `user` and wait for its end. Its exit code, 128 + n after signal n.

        `on_line(stream, text)` gets its output, "stdout" or "stderr". A cancelled call ends the command.
        """
        ...


class Images(Protocol):
    async def layer_over(self, snapshots: Sequence[Path], layer: Path, size_mb: int) -> tuple[Path, ...]: ...

    async def snapshot(self, layer: Path, target: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Built:
    """A template's files are those of `root`, with `layers` over it, newest first."""

    root: str
    layers: tuple[Path, ...]
    context: Context
    start_command: str
    ready_command: str


@dataclass(frozen=True, kw_only=True)
class Order:
    """One build. `target`: where its layer is kept; nothing is there, nor is it made if no step changes a file."""

    id: str  # names its rooms; [a-z0-9-]{1,30}
    scope: str  # the account: whose uploads are used
    plan: Plan
    limits: Limits
    target: Path


class Builder(Generic[R]):
    """`clock` gives Unix seconds."""

    def __init__(
        self, *, rooms: Rooms[R], runner: Runner[R], images: Images, cache: BuildCache, clock: Callable[[], float]
    ) -> None:
        self._rooms = rooms
        self._runner = runner
        self._images = images
        self._cache = cache
        self._clock = clock

    async def build(self, order: Order, log: BuildLog) -> Built:
        """Raises BuildFailed, or another RoostError for what is no step's fault; nothing is at `target` then."""
        plan = order.plan
        self._check_uploads(order)
        try:
            with self._cache.work_file() as layer:
                await self._stages(order, layer, log)
            layers = (order.target, *below(plan.base.layers)) if plan.stages else plan.base.layers
            await self._finalize(order, layers, log)
        except BaseException:
            order.target.unlink(missing_ok=True)
            raise
        return Built(
            root=plan.base.root,
            layers=layers,
            context=plan.context,
            start_command=plan.start_command,
            ready_command=plan.ready_command,
        )

    def _check_uploads(self, order: Order) -> None:
        for stage in order.plan.stages:
            if stage.files_hash and not self._cache.has_files(order.scope, stage.files_hash):
                raise BuildFailed(f"{stage.title}: its files were not uploaded.", str(stage.number))

    async def _stages(self, order: Order, layer: Path, log: BuildLog) -> None:
        stages = order.plan.stages
        done, cached = self._cached(stages)
        for stage in stages[:done]:
            self._say(log, stage, f"CACHED {stage.title}")
        if cached is not None and done == len(stages):
            with storage(order.target):
                os.link(cached, order.target)
            return
        if cached is not None:
            await self._images.snapshot(cached, layer)
        elif stages:
            await self._images.layer_over(order.plan.base.layers, layer, order.limits.disk_mb)
        for stage in stages[done:]:
            self._say(log, stage, stage.title)
            await self._in_room(order, layer, stage, log)
            with self._cache.work_file() as made:
                await self._images.snapshot(layer, made)
                if stage is stages[-1]:
                    with storage(order.target):
                        os.link(made, order.target)
                self._cache.keep(stage.key, made)

    def _cached(self, stages: Sequence[Stage]) -> tuple[int, Path | None]:
        """How many stages need not be done, and the layer after them."""
        for number in range(len(stages), 0, -1):
            stage = stages[number - 1]
            if not stage.fresh and (layer := self._cache.layer(stage.key)) is not None:
                return number, layer
        return 0, None

    async def _in_room(self, order: Order, layer: Path, stage: Stage, log: BuildLog) -> None:
        step = str(stage.number)
        mounts = []
        if stage.files_hash:
            files = self._cache.files(order.scope, stage.files_hash)
            mounts.append(Mount(source=files, target=ARCHIVE_FOLDER, read_only=True))
        needs = RoomNeeds(
            id=f"{order.id}-{step}",
            root=order.plan.base.root,
            interpreter=order.plan.base.interpreter,
            account=order.scope,
            limits=order.limits,
            layer=layer,
            lower=below(order.plan.base.layers),
            mounts=tuple(mounts),
        )
        try:
            async with asyncio.timeout(_STAGE_TIMEOUT_S), self._rooms.open(needs) as room:
                for command in stage.commands:
                    code = await self._run(room, command, log, step)
                    if code:
                        raise BuildFailed(f"step {step} failed with exit code {code}: {stage.title}", step)
        except TimeoutError as error:
            raise BuildFailed(f"step {step} took longer than {_STAGE_TIMEOUT_S:.0f} s: {stage.title}", step) from error
        except InvalidArgument as error:
            raise BuildFailed(f"step {step}: {error.message}", step) from error

    async def _run(self, room: R, command: Command, log: BuildLog, step: str) -> int:
        def on_line(stream: str, text: str) -> None:
            log.add(self._clock(), "warn" if stream == "stderr" else "info", f"[{step}] [{stream}]: {text}", step)

        # A template may set these; its sandboxes get the host's door instead, and a build has no door to a model.
        env = {name: value for name, value in command.env.items() if name not in MODEL_VARIABLES}
        return await self._runner.run(room, command.text, user=command.user, cwd=command.cwd, env=env, on_line=on_line)

    async def _finalize(self, order: Order, layers: tuple[Path, ...], log: BuildLog) -> None:
        """The start command is tried once, and has to become ready; what it does to files is not kept."""
        plan = order.plan
        if not plan.start_command and not plan.ready_command:
            return
        with self._cache.work_file() as layer:
            await self._images.layer_over(layers, layer, order.limits.disk_mb)
            needs = RoomNeeds(
                id=f"{order.id}-{FINALIZE}",
                root=plan.base.root,
                interpreter=plan.base.interpreter,
                account=order.scope,
                limits=order.limits,
                layer=layer,
                lower=below(layers),
            )
            async with self._rooms.open(needs) as room:
                log.add(self._clock(), "info", f"[{FINALIZE}] {plan.start_command or plan.ready_command}", FINALIZE)
                start = asyncio.create_task(self._run(room, self._as_user(plan, plan.start_command), log, FINALIZE))
                try:
                    async with asyncio.timeout(_READY_TIMEOUT_S):
                        await self._until_ready(room, plan, start, log)
                except TimeoutError as error:
                    message = f"The start command was not ready after {_READY_TIMEOUT_S:.0f} s."
                    raise BuildFailed(message, FINALIZE) from error
                finally:
                    start.cancel()
                    await asyncio.gather(start, return_exceptions=True)

    async def _until_ready(self, room: R, plan: Plan, start: asyncio.Task[int], log: BuildLog) -> None:
        while plan.ready_command:
            if start.done() and (code := start.result()):
                raise BuildFailed(f"The start command ended with exit code {code}.", FINALIZE)
            if await self._run(room, self._as_user(plan, plan.ready_command), log, FINALIZE) == 0:
                return
            await asyncio.sleep(_READY_PAUSE_S)

    @staticmethod
    def _as_user(plan: Plan, text: str) -> Command:
        context = plan.context
        return Command(text=text or "true", user=context.user, cwd=context.workdir, env=context.env)

    def _say(self, log: BuildLog, stage: Stage, text: str) -> None:
        log.add(self._clock(), "info", f"[{stage.number}] {text}", str(stage.number))
