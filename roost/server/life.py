"""A server's life: what is started, in which order, and that all of it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from roost.gateway.tls import Certificate
from roost.isolation.egress.embedded import EmbeddedServer
from roost.isolation.namespaces.orphans import OrphanWatch
from roost.model.errors import InvalidArgument, RoostError
from roost.server.wiring import CONTROL_SOCKET, Wiring
from roost.telemetry.rounds import going_on

log = logging.getLogger("roost")

#: Followers of logs and slow uploads hold one each; that many of them must not keep others from the API.
CONTROL_CONNECTIONS = 2000
COLLECT_EVERY_S = 600.0
WATCH_CERTIFICATE_S = 30.0
#: Objects after which the garbage collector looks through the new ones. A request makes some that live until its end:
#: with Python's 700, many requests at once have each of them looked at a few times.
YOUNG_OBJECTS = 10_000


class Server(Wiring):
    """`run` serves until it is told to stop."""

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
            # What is in memory by now stays there: the garbage collector need not look through it again and again.
            gc.freeze()
            gc.set_threshold(YOUNG_OBJECTS)
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
                with going_on("the certificate can't be looked at"):
                    renew(certificate.reload_if_changed)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew, certificate.reload)
        stack.push_async_callback(_cancel, asyncio.create_task(watch()))
        return certificate.context

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        await self.store.open()
        stack.push_async_callback(self.store.close)
        for who in (self.key_book, self.quotas, self.labels):
            await who.load()
        self.gateway.keyless = not self.keys
        stack.push_async_callback(self.key_book.note)
        self.packages.open()
        await self.objects.prepare()
        await self.catalog.load()
        await self.book.load()
        self.meter.restore(await self.store.settings.get("usage") or {})
        for part in (self.audit, self.logs, self.observer, self.saver):
            await part.start()
            stack.push_async_callback(part.close)
        if self.tracing is not None:
            stack.push_async_callback(self.tracing.close)
        await self._start_drivers(stack)
        # The first template's zygote comes up beside all that follows.
        warming = asyncio.create_task(self.driver.warm(self.templates.get("host")))
        stack.push_async_callback(_cancel, warming)
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
        await self._forget_labels()
        self.session_snapshots.open()
        self.build_cache.prepare()  # rooms of builds were swept
        stack.push_async_callback(self.background.close)
        stack.push_async_callback(self.roster.close)
        stack.push_async_callback(self.session_snapshots.close)
        stack.push_async_callback(self.sandbox_care.close)
        stack.push_async_callback(self.build_rooms.close)
        stack.push_async_callback(self.builds.close)
        self.volumes.forget_pending({instance.id for instance in self.roster.instances()})
        if adopted:
            log.info("adopted %d instances of the server before", adopted)
        await stack.enter_async_context(self._control_plane())
        await warming
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
            self.checkpoints.watch(),
            self.ladder.watch(),
        ):
            stack.push_async_callback(_cancel, asyncio.create_task(task))

    async def _forget_labels(self) -> None:
        """Of rooms and sandboxes that the server before had, and this one has not."""
        await self.labels.keep_only("instance", {instance.id for instance in self.roster.instances()})
        await self.labels.keep_only("sandbox", {sandbox.id for sandbox in self.lives.book.list()})

    async def _start_drivers(self, stack: contextlib.AsyncExitStack) -> None:
        await self.drivers.start()
        stack.push_async_callback(self.drivers.close)
        try:
            self.drivers.admit(self.config.sandbox_isolation)
        except InvalidArgument as error:
            log.warning("sandboxes can't be made: %s", error.message)

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
            with going_on("packages can't be removed"):
                await self.catalog.collect_garbage(self._code_in_use())

    def _ready_line(self, host: str, port: int) -> str:
        keys = "signed requests only" if self.keys else f"no keys configured: everyone here is '{self.config.account}'"
        scheme = "https" if self.config.tls.cert else "http"
        rooms = "" if self.driver.capabilities else "; not root: rooms without hard limits"
        return f"Roost is ready on {scheme}://{host}:{port} ({keys}; data in {self.config.data_dir}{rooms})"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
