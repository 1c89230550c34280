"""The worker: loads the user's code and serves app.sock with it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from roost.guest.asgi import AsgiRunner, Lifespan
from roost.guest.async_events import AsyncEventRunner
from roost.guest.async_server import DISCONNECT_GRACE_S, AsyncHandler, AsyncServer
from roost.guest.blocking import BlockingServer, Handler
from roost.guest.config import StartConfig
from roost.guest.context import ContextFactory, set_up_logging
from roost.guest.control import MAX_MESSAGE, LineReader, parse_message
from roost.guest.environment import worker_environment
from roost.guest.faults import StartFailed
from roost.guest.hooks import Hooks, run_in
from roost.guest.invocation import Output
from roost.guest.kinds import Kind, classify
from roost.guest.loading import load, prepare_path, reseed
from roost.guest.still import Still
from roost.guest.sync_events import EventRunner
from roost.guest.watch import MainThread, Watcher
from roost.guest.wsgi import WsgiRunner

LIFESPAN_LIMIT_S = 60.0


def run_worker(config: StartConfig, app: socket.socket, status: socket.socket, output: Output) -> None:
    """Returns when the worker could not start (the supervisor has been told); otherwise serves until killed."""
    report = Reporter(status)
    try:
        Worker(config, app, report, output).run()
    except StartFailed as error:
        report.send(
            {
                "event": "failed",
                "error": {"errorType": error.kind, "errorMessage": error.message, "stackTrace": error.stack},
            }
        )


class Reporter:
    """The worker's end of the status socket: what it tells the supervisor, and what that asks."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._lines = LineReader(MAX_MESSAGE)
        self.pause: Callable[[], None] = lambda: None  # let others read the socket
        self.resume: Callable[[], None] = lambda: None

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._sock.sendall(json.dumps(message).encode() + b"\n")

    def renew(self) -> None:
        """In a copy of the process."""
        self._lock = threading.Lock()
        self._lines = LineReader(MAX_MESSAGE)

    def serve(self, watcher: Watcher, on_pre_stop: Callable[[], None], still: Still | None = None) -> None:
        """From now on call `on_pre_stop` (in the watcher's thread) when the supervisor asks for it."""

        def on_readable() -> None:
            data = self._sock.recv(4096)
            if not data:  # the supervisor is gone
                os._exit(0)
            for line in self._lines.feed(data):
                match parse_message(line).get("op"):
                    case "pre_stop":
                        on_pre_stop()
                    case "hold" if still is not None:
                        still.ask()
                    case "go" if still is not None:
                        still.call_off()

        self.pause = lambda: watcher.remove(self._sock)
        self.resume = lambda: watcher.add_reader(self._sock, on_readable)
        self.resume()


class Worker:
    """One process of user code. `run` in its main thread. Raises StartFailed."""

    def __init__(self, config: StartConfig, app: socket.socket, report: Reporter, output: Output) -> None:
        self._config = config
        self._app = app
        self._report = report
        self._started = time.monotonic()
        self._output = output
        self._contexts = ContextFactory(config, set_up_logging(self._output.stream))

    def run(self) -> None:
        self._set_up_process()
        main = MainThread()
        handler = load(self._config.handler)
        kind = classify(handler)
        hooks = Hooks(self._config, self._contexts, self._output)
        if self._config.initializer is not None:
            self._phase("the initializer", self._config.initializer.timeout)
        if not kind.on_loop:
            hooks.initialize(asyncio.run)
            self._serve_blocking(kind, handler, hooks, main)
            return
        with asyncio.Runner() as runner:
            hooks.initialize(runner.run)
            runner.run(self._serve_on_loop(kind, handler, hooks))

    def _serve_blocking(self, kind: Kind, handler: Callable[..., Any], hooks: Hooks, main: MainThread) -> None:
        runner: Handler
        if kind is Kind.WSGI:
            runner = WsgiRunner(handler, self._output, threads=self._config.concurrency > 1)
        else:
            runner = EventRunner(handler, self._contexts, self._output)
        watcher = Watcher()
        concurrency = self._config.concurrency
        still = self._still(watcher) if concurrency == 1 else None
        server = BlockingServer(self._app, runner, concurrency=concurrency, watcher=watcher, main=main, still=still)
        self._report.serve(watcher, lambda: hooks.pre_stop(asyncio.run, self._pre_stopped), still)
        self._ready(stops=False)
        server.run()

    async def _serve_on_loop(self, kind: Kind, handler: Callable[..., Any], hooks: Hooks) -> None:
        loop = asyncio.get_running_loop()
        lifespan: Lifespan | None = None
        runner: AsyncHandler
        if kind is Kind.ASGI:
            lifespan = Lifespan(handler, self._output)
            self._phase("the application's start-up", LIFESPAN_LIMIT_S)
            await lifespan.start()
            runner = AsgiRunner(handler, self._output, lifespan.state)
        else:
            runner = AsyncEventRunner(handler, self._contexts, self._output)
        watcher = Watcher()
        server = AsyncServer(
            self._app,
            runner,
            concurrency=self._config.concurrency,
            grace_s=DISCONNECT_GRACE_S if kind is Kind.ASGI else 0.0,
        )
        await server.serve()

        def stop_lifespan() -> None:
            if lifespan is not None:
                run_in(loop)(lifespan.stop())
            self._pre_stopped()

        still = self._still(watcher)
        if still is not None:
            still.serve(loop, lambda: server.is_quiet)
        self._report.serve(watcher, lambda: hooks.pre_stop(run_in(loop), stop_lifespan), still)
        self._ready(stops=lifespan is not None and lifespan.supported)
        await loop.create_future()  # until killed

    def _still(self, watcher: Watcher) -> Still | None:
        if not self._config.live:
            return None
        return Still(self._app, self._report, on_copy=watcher.renew)

    def _phase(self, what: str, limit_s: float) -> None:
        self._report.send({"event": "phase", "what": what, "limit_s": limit_s})

    def _ready(self, *, stops: bool) -> None:
        """`stops`: it has an end of its own to go through before it is killed."""
        self._output.flush()
        init_ms = round((time.monotonic() - self._started) * 1000, 3)
        self._report.send({"event": "ready", "init_ms": init_ms, "stops": stops})

    def _pre_stopped(self) -> None:
        self._output.flush()
        self._report.send({"event": "pre_stopped"})

    def _set_up_process(self) -> None:
        env = worker_environment(self._config)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        try:
            os.chdir(self._config.code)
        except OSError as error:
            raise StartFailed("CodeNotFound", f"{self._config.code}: {error.strerror}") from error
        prepare_path(self._config.code, env["PYTHONUSERBASE"])
        reseed(self._config.entropy)
