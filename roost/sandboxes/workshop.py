"""Builds of templates as their owners see them: asked for, given files, started, watched, kept when they are ready."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roost.model.errors import InvalidArgument, NotFound, RoostError, Throttled, Unavailable
from roost.model.function import Limits
from roost.model.sandbox import Foundation
from roost.model.template import DEFAULT_TAG, TemplateBuild, TemplateKind, TemplateRecord
from roost.sandboxes.bases import template_for
from roost.sandboxes.build_cache import BoundedFile, BuildCache
from roost.sandboxes.build_log import BuildLog
from roost.sandboxes.build_queue import Build, BuildQueue, BuildStatus
from roost.sandboxes.builder import Builder, BuildFailed, Built, Order
from roost.sandboxes.builds import BadStep, Base, Context, Plan, plan
from roost.sandboxes.image_shelf import ImageShelf
from roost.sandboxes.recipes import Recipe, parse_recipe
from roost.sandboxes.registry import TemplateRegistry, parse_tag, split_name
from roost.sandboxes.templates import TemplateShelf, new_id

MOST_UPLOAD = 2 << 30
_UPLOADS_AT_ONCE = 8
_MOST_REQUESTED = 512
BASE_STEP = "base"  # as clients call what comes before the first step


@dataclass(frozen=True, kw_only=True)
class Requested:
    """A build that was asked for. `record` is what its template will be, or is already."""

    id: str
    record: TemplateRecord
    tags: tuple[str, ...]
    limits: Limits
    capped: str = ""  # a sentence, if less was given than asked for


class Workshop:
    """What was asked for and not built is forgotten with the server, or when too much of that is there.

    `limits` is what a template gets, and the most it may ask for; `most`: templates of one account. `stand_ins` says
    which template stands for an image.
    """

    def __init__(
        self,
        *,
        shelf: TemplateShelf,
        registry: TemplateRegistry,
        images: ImageShelf,
        builder: Builder[str],
        cache: BuildCache,
        queue: BuildQueue,
        limits: Limits,
        most: int,
        stand_ins: Mapping[str, str],
        clock: Callable[[], float],
        lack: str = "",
    ) -> None:
        """`lack`: why no template can be built here, or nothing."""
        self._shelf = shelf
        self._registry = registry
        self._images = images
        self._builder = builder
        self._cache = cache
        self._queue = queue
        self._limits = limits
        self._most = most
        self._stand_ins = stand_ins
        self._clock = clock
        self._lack = lack
        self._requested: OrderedDict[str, Requested] = OrderedDict()
        self._uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    # --- asked for -----------------------------------------------------------------------------------------------

    def request(
        self, account: str, name: str, tags: Sequence[str], *, cpu: int | None = None, memory_mb: int | None = None
    ) -> Requested:
        """A new build, of a new template or of one that exists. Raises InvalidArgument, Conflict, Throttled, and
        Unavailable where none can be built."""
        if self._lack:
            raise Unavailable(self._lack)
        plain, tag = split_name(name)
        if not plain:
            raise InvalidArgument("name: a template needs one.")
        wanted = [parse_tag(given) for given in tags]
        if ":" in name or not wanted:
            wanted.insert(0, tag)
        record = self._shelf.record_for(account, plain, TemplateKind.BUILT, new_id(), self._clock())
        for earlier in self._requested.values():
            if (earlier.record.account, earlier.record.name) == (account, record.name):
                record = replace(record, id=earlier.record.id)
        self._check_count(record)
        self._make_place()
        limits = replace(
            self._limits,
            cpu=min(self._limits.cpu, cpu or self._limits.cpu),
            memory_mb=min(self._limits.memory_mb, memory_mb or self._limits.memory_mb),
        )
        capped = (cpu or 0) > limits.cpu or (memory_mb or 0) > limits.memory_mb
        id = str(uuid.uuid4())
        requested = self._requested[id] = Requested(
            id=id,
            record=record,
            tags=tuple(dict.fromkeys(wanted)) or (DEFAULT_TAG,),
            limits=limits,
            capped=f"This server gives {limits.cpu:g} CPUs and {limits.memory_mb} MB at most." if capped else "",
        )
        return requested

    def _check_count(self, record: TemplateRecord) -> None:
        """Raises Throttled if it would be one too many, with those that are being built."""
        account = record.account
        known = {built.id for built in self._shelf.book.of_kind(account, TemplateKind.BUILT)}
        asked = (one for one in self._requested.values() if one.record.account == account)
        known |= {one.record.id for one in asked if self._running(one.id)}
        if len(known) >= self._most and record.id not in known:
            raise Throttled(f"This account has {self._most} templates already (max_snapshots); delete some.")

    def _make_place(self) -> None:
        for id in list(self._requested):
            if len(self._requested) < _MOST_REQUESTED:
                return
            if not self._running(id):
                del self._requested[id]
        if len(self._requested) >= _MOST_REQUESTED:
            raise Throttled("Too many builds run already.", retry_after=5)

    def _running(self, id: str) -> bool:
        try:
            return not self._queue.get(id).ended
        except NotFound:
            return False

    # --- files ---------------------------------------------------------------------------------------------------

    def has_files(self, account: str, template: str, files_hash: str) -> bool:
        """Whether these were uploaded before. Raises NotFound for the template, InvalidArgument for what is no hash."""
        if not any(
            account == r.record.account and template in (r.record.id, r.record.name) for r in self._requested.values()
        ):
            self._shelf.own(account, template)
        return self._cache.has_files(account, files_hash)

    @contextlib.asynccontextmanager
    async def upload(self, account: str, files_hash: str) -> AsyncIterator[BoundedFile]:
        """A file to write the archive to, in another thread; it is kept if the block ends well."""
        async with self._uploads:
            upload = self._cache.upload(account, files_hash, most_bytes=MOST_UPLOAD)
            file = await asyncio.to_thread(upload.__enter__)
            try:
                yield file
            except BaseException as error:
                await asyncio.shield(asyncio.to_thread(upload.__exit__, type(error), error, error.__traceback__))
                raise
            await asyncio.to_thread(upload.__exit__, None, None, None)

    # --- built ---------------------------------------------------------------------------------------------------

    def start(self, account: str, template: str, id: str, body: Mapping[str, Any]) -> Build:
        """Raises NotFound, InvalidArgument that names the field or the step, Conflict if it was started, Throttled."""
        requested = self._find(account, template, id)
        recipe = parse_recipe(body)
        self._check_count(requested.record)

        async def work(log: BuildLog) -> None:
            await self._build(requested, recipe, log)

        return self._queue.start(id, requested.record.id, work)

    def status(self, account: str, template: str, id: str) -> Build:
        """How a build is, or went. Raises NotFound."""
        with contextlib.suppress(NotFound):
            requested = self._find(account, template, id)
            with contextlib.suppress(NotFound):
                return self._queue.get(id)
            return Build(id=id, template=requested.record.id, created=requested.record.created)
        record = self._shelf.book.find(account, template)
        for build in self._shelf.book.builds(record) if record is not None else ():
            if build.id == id:  # by an earlier server: what it said is gone
                return Build(id=id, template=build.template, created=build.created, status=BuildStatus.READY)
        raise NotFound(f"build '{id[:128]}' not found", code="BuildNotFound")

    def _find(self, account: str, template: str, id: str) -> Requested:
        found = self._requested.get(id)
        if found is None or found.record.account != account or template not in (found.record.id, found.record.name):
            raise NotFound(f"build '{id[:128]}' of template '{template[:128]}' not found", code="BuildNotFound")
        return found

    async def _build(self, requested: Requested, recipe: Recipe, log: BuildLog) -> None:
        if requested.capped:
            log.add(self._clock(), "warn", requested.capped)
        foundation = await self._below(requested.record.account, recipe)
        with self._registry.holding(foundation.layers):
            made = self._plan(requested, recipe, foundation, await self._identity(foundation))
            image = ""
            try:
                with self._images.making() as image:
                    self._images.reserve(image, 0)  # what it will take is not known
                    order = Order(
                        id=f"b{requested.id.replace('-', '')[:24]}",
                        scope=requested.record.account,
                        plan=made,
                        limits=requested.limits,
                        target=self._images.path(image),
                    )
                    built = await self._builder.build(order, log)
                    await self._registry.register(
                        requested.record.account,
                        requested.record.name,
                        TemplateKind.BUILT,
                        self._result(requested, built, foundation),
                        requested.tags,
                    )
            finally:
                self._registry.release((image,))

    async def _below(self, account: str, recipe: Recipe) -> Foundation:
        """What the recipe begins with. Raises BuildFailed."""
        try:
            name = recipe.template
            if recipe.image:
                local = {name for template in self._shelf.list(account) for name in template.names}
                name = template_for(recipe.image, local, self._stand_ins)
            return self._shelf.get(name, account).foundation
        except RoostError as error:
            raise BuildFailed(error.message, BASE_STEP) from error

    async def _identity(self, foundation: Foundation) -> str:
        root = await self._shelf.root(foundation)
        return "\n".join([str(root.root), str(root.root.stat().st_mtime_ns), *foundation.layers])

    def _plan(self, requested: Requested, recipe: Recipe, foundation: Foundation, identity: str) -> Plan:
        context = Context(user=foundation.user, workdir=foundation.workdir, env=foundation.environment)
        base = Base(
            root=foundation.root,
            identity=identity,
            interpreter=foundation.interpreter,
            layers=self._images.paths(foundation.layers),
            context=context,
        )
        try:
            made = plan(recipe, base, scope=requested.record.account, disk_mb=requested.limits.disk_mb)
        except BadStep as error:
            raise BuildFailed(error.message, str(error.step)) from error
        return replace(
            made,
            start_command=made.start_command or foundation.start_command,
            ready_command=made.ready_command or ("" if made.start_command else foundation.ready_command),
        )

    def _result(self, requested: Requested, built: Built, foundation: Foundation) -> TemplateBuild:
        return TemplateBuild(
            id=requested.id,
            template=requested.record.id,
            foundation=Foundation(
                root=built.root,
                layers=tuple(_name(path) for path in built.layers),
                interpreter=foundation.interpreter,
                user=built.context.user,
                workdir=built.context.workdir,
                environment=built.context.env,
                start_command=built.start_command,
                ready_command=built.ready_command,
                labels=foundation.labels,
                taint=foundation.taint,
            ),
            limits=requested.limits,
            created=round(self._clock(), 3),
        )


def _name(image: Path) -> str:
    return image.stem
