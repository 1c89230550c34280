"""Every object of a server, made once, top to bottom, and nowhere else."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from roost.api.audited import Audited
from roost.api.console import Console, console_routes
from roost.api.e2b.app import build_e2b_api
from roost.api.e2b.call import Endpoints
from roost.api.e2b.terms import Terms
from roost.api.fc.app import build_fc_api
from roost.api.mcp.app import build_mcp_api
from roost.api.objects import Objects
from roost.api.tenants import Tenants
from roost.api.webhooks import Webhooks
from roost.config import Config
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
from roost.isolation.egress.index_proxy import IndexLimits
from roost.isolation.egress.rules import Reach, parse_networks, parse_rules
from roost.isolation.egress.upstreams import Upstreams, read_upstreams
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.templates import Templates
from roost.model.audit import AuditEvent
from roost.model.errors import InvalidArgument, RoostError
from roost.model.function import ISOLATIONS, FunctionSpec, Limits
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
from roost.store.store import Store
from roost.telemetry.audit.log import AuditLog
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


class Wiring:
    """What there is, and who hears of what. Nothing of it runs yet."""

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
            audit=self.audit.record,
            usual=parse_rules(config.sandbox_allow_out),
            reach=Reach(private=parse_networks(config.egress_private)),
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
            isolation=config.sandbox_isolation,
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
            audit=self.audit.record,
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
            audit=self.audit.record,
        )
        self.sandbox_domain = config.sandbox_domain
        self.api = Starlette(
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
        self.control = Audited(self.api, self.audit.record)

    def _who(self, config: Config) -> None:
        """Who may do what, and how much of it."""
        self.key_book = KeyBook(self.keys, self.store.access_keys, self.store.sealer, clock=time.time)
        self.quotas = Quotas(
            Quota(**asdict(config.quota)),
            self.store.quotas,
            clock=time.time,
            monotonic=time.monotonic,
            holdings=self._holdings,
        )
        self.audit = AuditLog(config.data_dir / "audit", clock=time.time, most_bytes=config.audit_mb << 20)
        self.identity = Identity(
            self.keys, clock=time.time, audit=self._login, used=self.key_book.used, meter=self.quotas.request
        )

    def _login(self, event: AuditEvent) -> None:
        """Logins, and changes of who may what: for the audit, and for who reads the server's log."""
        self.audit.record(event)
        level = logging.WARNING if event.outcome == "denied" else logging.INFO
        log.log(level, "%s %s: %s %s %r", event.action, event.outcome, event.actor, event.target, dict(event.detail))

    def _holdings(self, account: str) -> tuple[int, int, int]:
        """What an account has rooms for now: instances, their memory in MB, sandboxes among them."""
        mine = [i for i in self.roster.instances() if i.spec.account == account and i.state in ALIVE]
        boxes = [i for i in self.sandboxes.instances() if i.spec.account == account]
        memory = sum(i.spec.limits.memory_mb for i in (*mine, *boxes))
        return len(mine) + len(boxes), memory, len(boxes)

    def _egress(self, account: str, function: str, count: int) -> None:
        """Before so many bytes are sent to a room. Raises Throttled when its account has used up its day."""
        self.quotas.egress(account, count)
        self.metrics.egress(account, function, count)

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
        if spec.isolation not in ISOLATIONS:
            raise InvalidArgument(
                f"This server has no isolation '{spec.isolation[:64]}', only {' and '.join(ISOLATIONS)}."
            )
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


def _ignore(_: object) -> None:
    """For callbacks that return nothing."""
