"""Every object of a server, made once, top to bottom, and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

from starlette.applications import Starlette

from roost.api.audited import Audited
from roost.api.console import Console, console_routes
from roost.api.e2b.app import build_e2b_api
from roost.api.e2b.call import Endpoints
from roost.api.e2b.terms import Terms
from roost.api.fc.app import build_fc_api
from roost.api.labels import LabelsApi
from roost.api.mcp.app import build_mcp_api
from roost.api.objects import Objects
from roost.api.tenants import Tenants
from roost.api.webhooks import Webhooks
from roost.config import Config
from roost.functions.catalog import FunctionCatalog
from roost.functions.outbound import Outbound
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
from roost.instances.chains import Chains
from roost.instances.clock import SteadyClock
from roost.instances.egress import RoomEgress
from roost.instances.fleet import InstanceFleet
from roost.instances.labels import LabelBook
from roost.instances.pauses import Pauses
from roost.instances.roster import FleetLimits, Roster
from roost.instances.service import InstanceHistory, SessionService
from roost.instances.session_snapshots import SessionSnapshots
from roost.instances.sessions import SessionBook
from roost.instances.surroundings import Surroundings
from roost.isolation.driver import Capability
from roost.isolation.egress.cache import CacheLimits
from roost.isolation.egress.index_proxy import IndexLimits
from roost.isolation.egress.resolver import Resolver
from roost.isolation.egress.rules import Reach, parse_networks, parse_rules
from roost.isolation.namespaces.doors import check_doors
from roost.isolation.templates import Templates
from roost.isolation.unprivileged.folders import NO_SNAPSHOTS
from roost.model.audit import AuditEvent
from roost.model.errors import InvalidArgument
from roost.model.function import FunctionSpec
from roost.model.instance import ALIVE
from roost.model.session import Session
from roost.model.signature import Keys
from roost.model.taint import holder_name
from roost.model.usage import TransitionRecord
from roost.objects.stores import open_store
from roost.sandboxes.assembly import Places as SandboxPlaces
from roost.sandboxes.assembly import SandboxAssembly, name_of
from roost.sandboxes.book import SandboxBook
from roost.sandboxes.build_cache import BuildCache
from roost.sandboxes.build_queue import BuildQueue
from roost.sandboxes.build_rooms import BuildRooms
from roost.sandboxes.builder import Builder
from roost.sandboxes.care import SandboxCare
from roost.sandboxes.checkpoints import Checkpoints
from roost.sandboxes.copies import Copies
from roost.sandboxes.daemon import DaemonRunner
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.image_shelf import ImageShelf
from roost.sandboxes.ladder import PauseLadder
from roost.sandboxes.launcher import Launcher
from roost.sandboxes.lives import Lives
from roost.sandboxes.packages import ContextPackages
from roost.sandboxes.pruning import Bounds
from roost.sandboxes.registry import TemplateRegistry
from roost.sandboxes.snapshots import Snapshots
from roost.sandboxes.template_book import TemplateBook
from roost.sandboxes.templates import TemplateShelf
from roost.sandboxes.traffic import SandboxTraffic
from roost.sandboxes.volumes import VolumeShelf
from roost.sandboxes.workshop import Workshop
from roost.server.parts import drivers_of, package_indexes, sandbox_limits, sandbox_taint, tracing_of, volumes_of
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

log = logging.getLogger("roost")

CONTROL_SOCKET = "control.sock"

#: Of names that the server itself connects to for accounts, at once.
_OUTBOUND_LOOKUPS = 8


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
        self.tracing = tracing_of(config.otlp_endpoint)
        self.saver = UsageSaver(self.meter, lambda snapshot: self.store.settings.put("usage", snapshot))
        # What runs.
        self.clock = SteadyClock()
        self.driver, self.drivers = drivers_of(config)
        self.templates = Templates(data)
        self.volumes = volumes_of(data, self.driver)
        self.egress = self._room_egress()
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
            driver=self.drivers,
            preparer=self.assembly,
            on_transition=self._transition,
            on_output=self.output.output,
            clock=self.clock,
            start_timeout=config.start_timeout,
            stop_grace=config.stop_grace,
        )
        self._instances(config, around)
        self.packages_of_contexts = ContextPackages(data)
        self.shelf = TemplateShelf(
            self.templates,
            self.packages_of_contexts,
            sandbox_limits(config),
            TemplateBook(self.store.templates, self.store.template_tags, clock=self.clock),
        )
        self.volume_shelf = VolumeShelf(
            store=self.store.volumes,
            places=self.volumes,
            images=self.driver.disks,
            size_mb=config.volume_disk_mb,
            clock=self.clock,
            gone=lambda one: self.egress.forget_labels(holder_name(one.account, "sandbox-volume", one.id)),
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
            way_out=config.sandbox_egress,
            taint=sandbox_taint(config),
            live=config.sandbox_live,
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
        registry = TemplateRegistry(
            self.lives, self.shelf, lambda account, template: self.metrics.forget(account, name_of(template))
        )
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
            outbound=self.outbound.address,
            most_hops=config.max_hops,
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
            chains=self.chains,
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
            drivers=self.drivers.present,
            identity=self.identity,
        )
        fc = build_fc_api(
            catalog=self.catalog,
            identity=self.identity,
            sessions=SessionService(self.book, self.pauses, self.roster, self.assembly),
            snapshots=self.session_snapshots,
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
        self.sandbox_domain = config.sandbox_domain
        e2b = build_e2b_api(
            fleet=self.sandboxes,
            snapshots=self._copies(launcher, registry),
            checkpoints=self.checkpoints,
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
            only=config.mcp_tools,
        )
        self.api = Starlette(
            routes=[
                *console_routes(console),
                *Tenants(self.key_book, self.quotas, self.identity).routes(),
                *LabelsApi(self.labels, self.identity, self.audit.record).routes(),
                *Objects(self.objects, self.identity, most_bytes=config.object_size_mb << 20).routes(),
                *fc,
                *Webhooks(self.catalog, self.triggers.delivery).routes(),
                *mcp,
                *e2b,
            ]
        )
        self.control = Audited(self.api, self.audit.record)

    def _instances(self, config: Config, around: Surroundings) -> None:
        """Instances of functions, and what sessions are made of."""
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
        self.session_snapshots = SessionSnapshots(
            config.data_dir / "session-snapshots",
            book=self.book,
            pinned=self.roster.pinned.get,
            leases=self.fleet,
            rooms=self.assembly,
            images=self.driver.disks,
            background=self.background,
            clock=self.clock,
            most=config.max_snapshots,
            most_bytes=config.snapshots_disk_mb << 20,
        )

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
        self.chains = Chains(config.max_hops, audit=self.audit.record)
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
        memory = sum(i.spec.limits.memory_mb for i in (*mine, *boxes)) + (self.checkpoints.held_bytes(account) >> 20)
        return len(mine) + len(boxes), memory, len(boxes)

    def _egress(self, account: str, function: str, count: int) -> None:
        """Before so many bytes are sent to a room. Raises Throttled when its account has used up its day."""
        self.quotas.egress(account, count)
        self.metrics.egress(account, function, count)

    def _model_call(self, account: str) -> None:
        """Before a room's request goes to its model. Raises Throttled when its account has made enough today."""
        self.quotas.model_call(account)

    def _room_egress(self) -> RoomEgress:
        """What rooms reach of the world, and the server for them."""
        reach = Reach(private=parse_networks(self.config.egress_private))
        self.labels = LabelBook(self.store.labels)
        self.outbound = Outbound(self.config.account, reach, Resolver(_OUTBOUND_LOOKUPS).resolve)
        return RoomEgress(
            self.config.data_dir / "index-cache",
            upstreams=package_indexes(),
            limits=IndexLimits(cache=CacheLimits(total=self.config.package_cache_mb << 20)),
            model=self.config.model,
            labels=self.labels,
            on_bytes=self._egress,
            audit=self.audit.record,
            usual=parse_rules(self.config.sandbox_allow_out),
            reach=reach,
            vault=self.store.secrets.find,
            outbound=self.outbound.address,
            on_model_call=self._model_call,
            open_door=self.driver.open_door,
            chains=self.chains,
        )

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
            admit=self.outbound.trigger,
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

    def _copies(self, launcher: Launcher, registry: TemplateRegistry) -> Snapshots:
        """What is made of sandboxes as they are."""
        config = self.config
        copies = Copies(self.lives, self.sandboxes)
        self.checkpoints = Checkpoints(
            lives=self.lives,
            fleet=self.sandboxes,
            copies=copies,
            bounds=Bounds(
                most=config.max_checkpoints,
                age_s=config.checkpoints_days * 24 * 3600,
                memory_bytes=config.checkpoints_memory_mb << 20,
                disk_bytes=config.checkpoints_disk_mb << 20,
            ),
            spills=config.data_dir / "spills",
            over_quota=lambda account: self.quotas.memory_over(account) << 20,
        )
        self.ladder = PauseLadder(
            self.lives,
            spills=config.data_dir / "spills",
            disk_bytes=config.checkpoints_disk_mb << 20,
            after_s=config.sandbox_pause_spill_s,
        )
        return Snapshots(
            lives=self.lives,
            fleet=self.sandboxes,
            launcher=launcher,
            copies=copies,
            checkpoints=self.checkpoints,
            shelf=self.shelf,
            registry=registry,
            most=config.max_snapshots,
        )

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
            limits=sandbox_limits(self.config),
            most=self.config.max_snapshots,
            stand_ins=self.config.images,
            clock=self.clock,
            lack="" if Capability.SNAPSHOT in self.driver.capabilities else f"Templates can't be built: {NO_SNAPSHOTS}",
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
        await self.session_snapshots.forget_function(account, name)
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
        self.drivers.admit(spec.isolation)
        if Capability.HARD_LIMITS not in self.drivers.capabilities and any(one.quota_mb for one in spec.mounts):
            raise InvalidArgument("A volume can't have a quota here: that takes disk images, and so root.")
        if spec.live and Capability.SNAPSHOT not in self.drivers.capabilities:
            raise InvalidArgument(f"roost.live: instances can't be copied while they run here: {NO_SNAPSHOTS}")
        if spec.egress.transparent:
            check_doors(spec.isolation)
        self.templates.get(spec.template)

    def _gauges(self) -> Iterable[FunctionGauges]:
        return [*self.roster.gauges(), *self.sandboxes.gauges()]  # both are made after the metrics

    def _task_gauges(self) -> Iterable[TaskGauges]:
        return self.tasks.service.gauges()

    def _trigger_counts(self) -> Iterable[TriggerCounts]:
        return self.statuses.counts()

    def _drops(self) -> Drops:
        return Drops(log_lines=self.logs.dropped, records=self.observer.dropped)


def _ignore(_: object) -> None:
    """For callbacks that return nothing."""
