"""The composition root: every object of a server is made here, top to bottom, and nowhere else.

`python -m roost.server [--host H] [--port P] [--data-dir D] [--config F]`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import importlib
import logging
import os
import random
import resource
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from starlette.applications import Starlette

from roost.api.console import Console, console_routes
from roost.api.e2b.app import build_e2b_api
from roost.api.e2b.call import Endpoints
from roost.api.e2b.terms import Terms
from roost.api.fc.app import build_fc_api
from roost.api.mcp.app import build_mcp_api
from roost.api.objects import Objects
from roost.api.tenants import Tenants
from roost.api.webhooks import Webhooks
from roost.config import Config, load
from roost.functions.catalog import FunctionCatalog
from roost.functions.packages import PackageStore
from roost.functions.tasks.backlog import BacklogLimits
from roost.functions.tasks.ports import Publisher
from roost.functions.tasks.service import Retention
from roost.functions.tasks.tasks import AsyncTasks
from roost.functions.tasks.webhooks import WebhookPublisher
from roost.functions.triggers.endpoints import SCHEMES
from roost.gateway.gatekeeper import Gatekeeper
from roost.gateway.invoke import InvokeLimits
from roost.gateway.server import Gateway
from roost.gateway.tls import Certificate
from roost.instances.adoption import Adoption
from roost.instances.assembly import Assembly, Places
from roost.instances.background import Background
from roost.instances.clock import SteadyClock
from roost.instances.egress import RoomEgress
from roost.instances.fleet import InstanceFleet
from roost.instances.instance import Surroundings
from roost.instances.pauses import Pauses
from roost.instances.roster import FleetLimits, Roster
from roost.instances.service import InstanceHistory, SessionService
from roost.instances.sessions import SessionBook
from roost.instances.volumes import Volumes
from roost.isolation.bundle import build_bundle
from roost.isolation.egress.cache import CacheLimits
from roost.isolation.egress.embedded import EmbeddedServer
from roost.isolation.egress.index_proxy import IndexLimits
from roost.isolation.egress.upstreams import Upstreams, read_upstreams
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.namespaces.orphans import OrphanWatch
from roost.isolation.templates import Templates
from roost.model.audit import AuditEvent
from roost.model.errors import InvalidArgument, NotFound, RoostError, Unavailable
from roost.model.function import FunctionSpec, Limits
from roost.model.instance import ALIVE
from roost.model.session import Session
from roost.model.signature import Keys
from roost.model.usage import TransitionRecord
from roost.objects.stores import open_store
from roost.sandboxes.assembly import Places as SandboxPlaces
from roost.sandboxes.assembly import SandboxAssembly
from roost.sandboxes.book import SandboxBook
from roost.sandboxes.build_cache import BuildCache
from roost.sandboxes.build_queue import BuildQueue
from roost.sandboxes.build_rooms import BuildRooms
from roost.sandboxes.builder import Builder
from roost.sandboxes.care import SandboxCare
from roost.sandboxes.daemon import DaemonRunner
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.image_shelf import ImageShelf
from roost.sandboxes.launcher import Launcher
from roost.sandboxes.lives import Lives
from roost.sandboxes.packages import ContextPackages
from roost.sandboxes.registry import TemplateRegistry
from roost.sandboxes.snapshots import Snapshots
from roost.sandboxes.template_book import TemplateBook
from roost.sandboxes.templates import TemplateShelf
from roost.sandboxes.traffic import SandboxTraffic
from roost.sandboxes.volumes import VolumeShelf
from roost.sandboxes.workshop import Workshop
from roost.store.sealing import Sealer
from roost.store.store import Store
from roost.telemetry.logs import FunctionLogs
from roost.telemetry.metering import Meter
from roost.telemetry.metrics import Drops, FunctionGauges, Metrics, TaskGauges
from roost.telemetry.observer import Observer
from roost.telemetry.output import Output
from roost.telemetry.trigger_metrics import TriggerCounts
from roost.telemetry.usage_saver import UsageSaver
from roost.tenants.identity import Identity
from roost.tenants.keybook import KeyBook
from roost.tenants.quotas import Quota, Quotas
from roost.triggers.alarms import Alarms
from roost.triggers.manager import TriggerManager
from roost.triggers.publish import QueuePublisher
from roost.triggers.sources import factories
from roost.triggers.status import Statuses

if TYPE_CHECKING:
    from roost.telemetry.tracing import Tracing

log = logging.getLogger("roost")

CONTROL_SOCKET = "control.sock"
#: Followers of logs and slow uploads hold one each; that many of them must not keep others from the API.
CONTROL_CONNECTIONS = 2000
COLLECT_EVERY_S = 600.0
WATCH_CERTIFICATE_S = 30.0


class Server:
    """One server, wired. `run` serves until it is told to stop."""

    def __init__(self, config: Config) -> None:
        data = config.data_dir
        self.config = config
        self.keys = Keys.of(config.keys, config.account)
        # What is stored.
        self.store = Store(data / "roost.db", config.database)
        self._who(config)
        self.packages = PackageStore(data / "code")
        self.catalog = FunctionCatalog(
            self.store, self.packages, keys=self.keys, region=config.region, admit=self._admit
        )
        # What is observed.
        self.logs = FunctionLogs(data / "logs", max_bytes_per_file=config.log_file_mb << 20)
        self.meter = Meter()
        self.metrics = Metrics(
            gauges=self._gauges, drops=self._drops, tasks=self._task_gauges, triggers=self._trigger_counts
        )
        self.output = Output(self.logs)
        self.tracing = _tracing(config.otlp_endpoint)
        self.saver = UsageSaver(self.meter, lambda snapshot: self.store.settings.put("usage", snapshot))
        # What runs.
        self.clock = SteadyClock()
        self.driver = NamespacesDriver(data, build_bundle(data))
        self.templates = Templates(data)
        self.volumes = Volumes(data / "volumes")
        self.egress = RoomEgress(
            data / "index-cache",
            upstreams=_package_indexes(),
            limits=IndexLimits(cache=CacheLimits(total=config.package_cache_mb << 20)),
            model=config.model,
            on_bytes=self._egress,
        )
        self.assembly = Assembly(
            places=Places(code=data / "code", sessions=data / "sessions", run=config.run_dir),
            templates=self.templates,
            volumes=self.volumes,
            images=self.driver.disks,
            egress=self.egress,
            region=config.region,
            time_zone=os.environ.get("TZ", "UTC"),
        )
        self.book = SessionBook(
            self.store.sessions, clock=self.clock, ended=self._session_ended, idle=self._session_idle
        )
        self.observer = self._observer()
        self.background = Background()
        around = Surroundings(
            driver=self.driver,
            preparer=self.assembly,
            on_transition=self._transition,
            on_output=self.output.output,
            clock=self.clock,
            start_timeout=config.start_timeout,
            stop_grace=config.stop_grace,
        )
        self.roster = Roster(
            specs=self.catalog,
            around=around,
            limits=FleetLimits(
                max_instances=config.max_instances, max_waiting=config.max_waiting, stop_grace=config.stop_grace
            ),
            run_dir=config.run_dir,
            admit=self.quotas.instance,
        )
        self.pauses = Pauses(
            book=self.book, roster=self.roster, background=self.background, stop_grace=config.stop_grace
        )
        self.fleet = InstanceFleet(
            roster=self.roster,
            book=self.book,
            pauses=self.pauses,
            background=self.background,
            folders=self.assembly,
        )
        self.packages_of_contexts = ContextPackages(data)
        self.shelf = TemplateShelf(
            self.templates,
            self.packages_of_contexts,
            _sandbox_limits(config),
            TemplateBook(self.store.templates, self.store.template_tags, clock=self.clock),
        )
        self.volume_shelf = VolumeShelf(
            store=self.store.volumes,
            places=self.volumes,
            images=self.driver.disks,
            size_mb=config.volume_disk_mb,
            clock=self.clock,
        )
        images = ImageShelf(data / "snapshots", self.driver.disks, most_bytes=config.snapshots_disk_mb << 20)
        sandbox_assembly = SandboxAssembly(
            places=SandboxPlaces(layers=data / "sandboxes", run=config.run_dir),
            roots=self.shelf,
            layers=self.driver.disks,
            images=images,
            volumes=self.volume_shelf,
            egress=self.egress,
            region=config.region,
            time_zone=os.environ.get("TZ", "UTC"),
        )
        self.lives = Lives(
            book=SandboxBook(self.store.sandboxes, clock=self.clock),
            templates=self.shelf,
            assembly=sandbox_assembly,
            around=around,
            max_running=config.max_sandboxes,
            admit=partial(self.quotas.instance, sandbox=True),
        )
        launcher = Launcher(self.lives)
        self.sandboxes = SandboxFleet(self.lives, launcher)
        registry = TemplateRegistry(self.lives, self.shelf)
        self.sandbox_care = SandboxCare(self.lives)
        self.adoption = Adoption(specs=self.catalog, book=self.book, roster=self.roster, sandboxes=self.sandbox_care)
        self.history = InstanceHistory(self.roster)
        publishers = self._publishers()
        self.tasks = AsyncTasks(
            store=self.store,
            catalog=self.catalog,
            limits=BacklogLimits(
                queued=config.max_queued_tasks,
                running=config.max_running_tasks,
                running_per_function=config.max_running_tasks_per_function,
            ),
            retention=Retention(count=config.keep_tasks, days=config.keep_tasks_days),
            clock=self.clock,
            publishers=publishers,
            requests=self.book.in_use,
            output_bytes=config.task_output_kb << 10,
            admit=self.quotas.task,
            ended=lambda task: self.metrics.task_ended(task.account, task.function, task.state.value),
        )
        # What is reached.
        self.gateway = Gateway(
            account=config.account,
            region=config.region,
            control_socket=config.run_dir / CONTROL_SOCKET,
            catalog=self.catalog,
            access=Gatekeeper(self.identity, self.catalog, self.quotas),
            fleet=self.fleet,
            observer=self.observer,
            directory=self.fleet,
            logs=self.logs,
            tasks=self.tasks.queue,
            invoke_limits=InvokeLimits(lease_timeout_s=config.queue_timeout),
            keyless=not self.keys,
            sandboxes=SandboxTraffic(self.lives),
            sandbox_domain=config.sandbox_domain,
        )
        self.triggers = self._triggers()
        console = Console(
            roster=self.roster,
            sandboxes=self.sandboxes.instances,
            logs=self.logs,
            metrics=self.metrics,
            meter=self.meter,
            exists=lambda account, name: _ignore(self.catalog.get(account, name)),
            functions=lambda account: len(self.catalog.list(account)),
            data_dir=str(data),
            drivers=(self.driver.name,),
            identity=self.identity,
        )
        fc = build_fc_api(
            catalog=self.catalog,
            identity=self.identity,
            sessions=SessionService(self.book, self.pauses),
            instances=self.history,
            tasks=self.tasks.service,
            destinations=publishers,
            statuses=self.statuses,
            link_secret=secrets.token_bytes(32),
            clock=self.clock,
        )
        terms = Terms(
            timeout_s=config.sandbox_timeout,
            max_timeout_s=config.sandbox_max_timeout,
            public=config.sandbox_public_traffic,
        )
        e2b = build_e2b_api(
            fleet=self.sandboxes,
            snapshots=Snapshots(
                lives=self.lives,
                fleet=self.sandboxes,
                launcher=launcher,
                shelf=self.shelf,
                registry=registry,
                most=config.max_snapshots,
            ),
            shelf=self.shelf,
            registry=registry,
            workshop=self._workshop(around, sandbox_assembly, registry),
            secrets=self.store.secrets,
            volumes=self.volume_shelf,
            census=self.lives.census,
            terms=terms,
            domain=lambda: self.sandbox_domain,
            identity=self.identity,
            link_secret=secrets.token_bytes(32),
            clock=self.clock,
        )
        mcp = build_mcp_api(
            fleet=self.sandboxes,
            traffic=SandboxTraffic(self.lives),
            identify=Endpoints(self.identity).identify,
            terms=terms,
        )
        self.sandbox_domain = config.sandbox_domain
        self.control = Starlette(
            routes=[
                *console_routes(console),
                *Tenants(self.key_book, self.quotas, self.identity).routes(),
                *Objects(self.objects, self.identity, most_bytes=config.object_size_mb << 20).routes(),
                *fc,
                *Webhooks(self.catalog, self.triggers.delivery).routes(),
                *mcp,
                *e2b,
            ]
        )

    def _who(self, config: Config) -> None:
        """Who may do what, and how much of it."""
        self.key_book = KeyBook(
            self.keys, self.store.access_keys, Sealer(config.data_dir / "keys.sealing"), clock=time.time
        )
        self.quotas = Quotas(
            Quota(**asdict(config.quota)),
            self.store.quotas,
            clock=time.time,
            monotonic=time.monotonic,
            holdings=self._holdings,
        )
        self.identity = Identity(
            self.keys, clock=time.time, audit=_login, used=self.key_book.used, meter=self.quotas.request
        )

    def _holdings(self, account: str) -> tuple[int, int, int]:
        """What an account has rooms for now: instances, their memory in MB, sandboxes among them."""
        mine = [i for i in self.roster.instances() if i.spec.account == account and i.state in ALIVE]
        boxes = [i for i in self.sandboxes.instances() if i.spec.account == account]
        memory = sum(i.spec.limits.memory_mb for i in (*mine, *boxes))
        return len(mine) + len(boxes), memory, len(boxes)

    def _egress(self, account: str, function: str, count: int) -> None:
        self.metrics.egress(account, function, count)
        self.quotas.egress(account, count)

    def _triggers(self) -> TriggerManager:
        """What serves triggers, and so starts functions by itself."""
        self.objects = open_store(self.config)
        self.statuses = Statuses()
        return TriggerManager(
            catalog=self.catalog,
            queue=self.tasks.queue,
            invoker=self.gateway.tasks,
            factories=factories(
                alarms=Alarms(),
                cursors=self.store.triggers,
                objects=self.objects,
                seen_objects=self.store.trigger_objects,
                seen_rows=self.store.trigger_rows,
                region=self.config.region,
            ),
            statuses=self.statuses,
        )

    def _observer(self) -> Observer:
        seen = [self.meter.invocation, self.metrics.invocation, self.output.invocation, self.logs.invocation]
        if self.tracing is not None:
            seen.append(self.tracing.invocation)
        return Observer(
            invocations=seen,
            transitions=[self.meter.transition, self.metrics.transition, self.output.transition],
        )

    def _publishers(self) -> dict[str, Publisher]:
        """What takes events about ended tasks out of the server, by the scheme of their destination's address."""
        self.webhooks = WebhookPublisher(secret=self.config.webhook_secret)
        self.queues = QueuePublisher()
        return {"http": self.webhooks, "https": self.webhooks, **dict.fromkeys(SCHEMES, self.queues)}

    def _workshop(self, around: Surroundings, assembly: SandboxAssembly, registry: TemplateRegistry) -> Workshop:
        """What builds templates."""
        self.build_cache = BuildCache(self.config.data_dir / "builds", most_bytes=self.config.build_cache_mb << 20)
        self.build_rooms = BuildRooms(around=around, assembly=assembly, roots=self.shelf)
        self.builds = BuildQueue(clock=self.clock)
        return Workshop(
            shelf=self.shelf,
            registry=registry,
            images=assembly.images,
            builder=Builder(
                rooms=self.build_rooms,
                runner=DaemonRunner(),
                images=self.driver.disks,
                cache=self.build_cache,
                clock=self.clock,
            ),
            cache=self.build_cache,
            queue=self.builds,
            limits=_sandbox_limits(self.config),
            most=self.config.max_snapshots,
            stand_ins=self.config.images,
            clock=self.clock,
        )

    # --- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, say so in one line, serve until SIGTERM or SIGINT, stop. Raises RoostError when it can't start."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            certificate = await self._certificate(stack)
            host, port = await self.gateway.start(self.config.host, self.config.port, certificate)
            stack.push_async_callback(self.gateway.close, drain_s=self.config.stop_grace)
            self.sandbox_domain = self.sandbox_domain or f"localhost:{port}"
            self.tasks.start(self.gateway.tasks)
            stack.push_async_callback(self.tasks.close, drain_s=self.config.stop_grace)
            self.triggers.start()
            stack.push_async_callback(self.triggers.close, grace_s=self.config.stop_grace)
            print(self._ready_line(host, port), flush=True)
            await stop.wait()
            log.info("stopping")

    async def _certificate(self, stack: contextlib.AsyncExitStack) -> ssl.SSLContext | None:
        """That of the settings, kept as new as its files are. Raises Unavailable when it can't be used."""
        tls = self.config.tls
        if not tls.cert:
            return None
        certificate = Certificate(Path(tls.cert), Path(tls.key))

        def renew(how: Callable[[], object]) -> None:
            try:
                if how() is not False:
                    log.info("the certificate %s was read again", tls.cert)
            except RoostError as error:
                log.error("the certificate stays as it was: %s", error.message)

        async def watch() -> None:
            while True:
                await asyncio.sleep(WATCH_CERTIFICATE_S)
                renew(certificate.reload_if_changed)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew, certificate.reload)
        stack.push_async_callback(_cancel, asyncio.create_task(watch()))
        return certificate.context

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        await self.store.open()
        stack.push_async_callback(self.store.close)
        await self.key_book.load()
        await self.quotas.load()
        self.gateway.keyless = not self.keys
        stack.push_async_callback(self.key_book.note)
        self.packages.open()
        await self.objects.prepare()
        await self.catalog.load()
        await self.book.load()
        self.meter.restore(await self.store.settings.get("usage") or {})
        for part in (self.logs, self.observer, self.saver):
            await part.start()
            stack.push_async_callback(part.close)
        if self.tracing is not None:
            stack.push_async_callback(self.tracing.close)
        await self.driver.start()
        stack.push_async_callback(self.driver.close)
        lock = self.config.data_dir / "roost.db.lock"
        orphans = OrphanWatch(
            lock=lock, run_dir=self.config.run_dir, groups=self.driver.groups, grace_s=self.config.orphan_grace
        )
        await orphans.start()
        stack.push_async_callback(orphans.close)
        await self.egress.start()
        stack.push_async_callback(self.egress.close)
        await self.shelf.book.load()
        await self.volume_shelf.load()
        await self.sandbox_care.load()
        adopted = await self.adoption.run(unsettled=await self.tasks.interrupted())
        await self.sandbox_care.reconcile()
        self.build_cache.prepare()  # rooms of builds were swept
        stack.push_async_callback(self.background.close)
        stack.push_async_callback(self.roster.close)
        stack.push_async_callback(self.sandbox_care.close)
        stack.push_async_callback(self.build_rooms.close)
        stack.push_async_callback(self.builds.close)
        self.volumes.forget_pending({instance.id for instance in self.roster.instances()})
        if adopted:
            log.info("adopted %d instances of the server before", adopted)
        await stack.enter_async_context(self._control_plane())
        await self.driver.warm(self.templates.get("host"))
        await self.tasks.open(self.roster.settled)
        stack.push_async_callback(self.webhooks.close)
        stack.push_async_callback(self.queues.close)
        self.catalog.subscribe(self._function_changed)
        for account, name in self.catalog.names():
            for spec in self.catalog.specs(account, name):
                self.roster.provision(spec)
        stack.push_async_callback(self.packages_of_contexts.close)
        parts = (self.book, self.key_book)
        for task in (
            *(part.run() for part in parts),
            self._collect(),
            self.volumes.sweep(),
            self.sandbox_care.sample(),
        ):
            stack.push_async_callback(_cancel, asyncio.create_task(task))

    @contextlib.asynccontextmanager
    async def _control_plane(self) -> AsyncIterator[None]:
        """uvicorn on a unix socket of its own; the gateway is its only client."""
        server = EmbeddedServer(
            self.control,
            self.config.run_dir / CONTROL_SOCKET,
            grace_s=int(self.config.stop_grace),
            max_connections=CONTROL_CONNECTIONS,
        )
        await server.start()
        try:
            yield
        finally:
            await server.close()

    async def _collect(self) -> None:
        """Now and then, remove packages that no function has any more."""
        while True:
            await asyncio.sleep(COLLECT_EVERY_S * random.uniform(0.9, 1.1))  # noqa: S311
            try:
                await self.catalog.collect_garbage(self._code_in_use())
            except RoostError as error:
                log.warning("packages can't be removed: %s", error.message)

    def _ready_line(self, host: str, port: int) -> str:
        keys = "signed requests only" if self.keys else f"no keys configured: everyone here is '{self.config.account}'"
        scheme = "https" if self.config.tls.cert else "http"
        return f"Roost is ready on {scheme}://{host}:{port} ({keys}; data in {self.config.data_dir})"

    # --- events ------------------------------------------------------------------------------------------------

    def _transition(self, record: TransitionRecord) -> None:
        self.history.transition(record)
        self.observer.transition(record)

    def _function_changed(self, account: str, name: str) -> None:
        self.roster.function_changed(account, name)
        specs = self.catalog.specs(account, name)
        for spec in specs:
            self.roster.provision(spec)
        if (account, name) not in self.catalog.names():
            self.background.spawn(self._forget(account, name))

    async def _forget(self, account: str, name: str) -> None:
        # What is kept goes first: a function that is created again under this name must find nothing, and lose nothing.
        await asyncio.gather(self.assembly.forget_function(account, name), self.logs.delete(account, name))
        await self.book.forget_function(account, name)
        await self.roster.emptied(account, name)
        if (account, name) not in self.catalog.names():
            self.metrics.forget(account, name)

    def _code_in_use(self) -> frozenset[str]:
        """Packages that an instance still runs from, though its function has moved on."""
        specs = [instance.spec for instance in self.roster.instances()]
        return frozenset(digest for spec in specs for digest in (spec.code, spec.layers) if digest)

    async def _session_ended(self, session: Session) -> None:
        await self.pauses.ended(session)
        await self.assembly.forget(session, deleted=not self.book.remembers(session))

    async def _session_idle(self, session: Session) -> None:
        await self.pauses.idle(session)

    def _admit(self, spec: FunctionSpec) -> None:
        """Refuse, at deployment, what this machine can't run."""
        if spec.isolation != self.driver.name:
            raise InvalidArgument(f"This server has no isolation '{spec.isolation}', only '{self.driver.name}'.")
        self.templates.get(spec.template)

    def _gauges(self) -> Iterable[FunctionGauges]:
        return [*self.roster.gauges(), *self.sandboxes.gauges()]  # both are made after the metrics

    def _task_gauges(self) -> Iterable[TaskGauges]:
        return self.tasks.service.gauges()

    def _trigger_counts(self) -> Iterable[TriggerCounts]:
        return self.statuses.counts()

    def _drops(self) -> Drops:
        return Drops(log_lines=self.logs.dropped, records=self.observer.dropped)


def _tracing(endpoint: str) -> Tracing | None:
    """Loaded where it is asked for alone: OpenTelemetry is slow to import. Raises TracingUnavailable."""
    if not endpoint:
        return None
    tracing: Tracing = importlib.import_module("roost.telemetry.tracing").Tracing(endpoint)
    return tracing


def _package_indexes() -> Upstreams:
    """The host's own indexes. A setting of pip's or npm's that Roost can't follow must not keep it from starting."""
    try:
        return read_upstreams(os.environ)
    except RoostError as error:
        log.warning("the host's package indexes can't be used, rooms get the public ones: %s", error.message)
        return read_upstreams({}, root=Path("/nonexistent"), prefix=Path("/nonexistent"))


def _sandbox_limits(config: Config) -> Limits:
    """Of one sandbox. Many processes of many files: somebody works in it."""
    return Limits(
        memory_mb=config.sandbox_memory_mb,
        cpu=config.sandbox_cpu,
        disk_mb=config.sandbox_disk_mb,
        pids=1024,
        open_files=65536,
    )


def _login(event: AuditEvent) -> None:
    """Logins, and changes of who may what."""
    level = logging.WARNING if event.outcome == "denied" else logging.INFO
    log.log(level, "%s %s: %s %s %r", event.action, event.outcome, event.actor, event.target, dict(event.detail))


def _ignore(_: object) -> None:
    """For callbacks that return nothing."""


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="roost serve", description="Run the Roost server in the foreground.")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=_whole_number, help="port to listen on (default 8700; 0: a free one)")
    parser.add_argument("--data-dir", type=Path, help="where everything is kept (default ~/.local/share/roost)")
    parser.add_argument("--database", metavar="URL", help="PostgreSQL instead of SQLite (postgresql://user@host/name)")
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    return parser.parse_args(arguments)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _need_root() -> None:
    if os.geteuid() != 0:
        raise NotFound(
            "Roost needs root to make rooms (namespaces, cgroups, mounts): run it with sudo. "
            "A later release will run without root, in user namespaces and with fewer limits."
        )


def _raise_file_limit() -> None:
    """Every instance and every connection is a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_directory(directory: Path, purpose: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        why = "it is not a directory" if error.errno == errno.EEXIST else error.strerror
        raise Unavailable(f"The {purpose} {directory} can't be used: {why}.") from error


def _explained(error: OSError, config: Config) -> str:
    """What kept the server from starting or running, and what mends it where that is known."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {config.port} on {config.host} is in use; end the program that uses it, "
            "or take another port with --port (0: a free one)."
        )
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"This machine has no address {config.host}; take one of its own with --host."
    reason = error.strerror or str(error)
    return f"{error.filename} can't be used: {reason}." if error.filename else f"{reason}."


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 stopped as asked, 1 it could not start or run, 2 wrong arguments or settings, 130 interrupted while
    it started. SIGINT may come in blocked (see `roost serve`): it is heard from here on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    options = {k: v for k, v in vars(_parse(arguments)).items() if v is not None}
    file = options.pop("config", None)
    try:
        config = load(file, options)
    except RoostError as error:
        print(f"roost: {error.message}", file=sys.stderr)
        return 2
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _need_root()
        _raise_file_limit()
        _make_directory(config.data_dir, "data directory")
        _make_directory(config.run_dir, "directory of sockets")
        server = Server(config)
        uvloop.run(server.run())
    except RoostError as error:
        print(f"roost: {error.message}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"roost: {_explained(error, config)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("roost: interrupted", file=sys.stderr)
        return 130
    finally:
        with contextlib.suppress(OSError):  # it is not empty while another server, or an instance to adopt, uses it
            config.run_dir.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
