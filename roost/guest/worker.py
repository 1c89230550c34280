"""The worker: loads the user's code and serves app.sock with it."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from roost.guest.blocking import BlockingServer, Handler
from roost.guest.config import Hook, StartConfig
from roost.guest.context import Context, ContextFactory, set_up_logging
from roost.guest.control import MAX_MESSAGE, LineReader, parse_message
from roost.guest.environment import worker_environment
from roost.guest.faults import StartFailed, describe, stack_of
from roost.guest.invocation import Output
from roost.guest.kinds import Kind, classify
from roost.guest.loading import load, prepare_path, reseed
from roost.guest.sync_events import EventRunner
from roost.guest.watch import MainThread, Watcher
from roost.guest.wsgi import WsgiRunner


def run_worker(config: StartConfig, app: socket.socket, status: socket.socket) -> None:
    """Returns when the worker could not start (the supervisor has been told); otherwise serves until killed."""
    report = Reporter(status)
    try:
        Worker(config, app, report).run()
    except StartFailed as error:
        report.send(
            {
                "event": "failed",
                "error": {"errorType": error.kind, "errorMessage": error.message, "stackTrace": error.stack},
            }
        )


class Reporter:
    """The worker's end of the status socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self.sock.sendall(json.dumps(message).encode() + b"\n")


class Worker:
    """One process of user code. `run` in its main thread."""

    def __init__(self, config: StartConfig, app: socket.socket, report: Reporter) -> None:
        self._config = config
        self._app = app
        self._report = report
        self._started = time.monotonic()
        self._output = Output()
        self._commands = LineReader(MAX_MESSAGE)

    def run(self) -> None:
        config = self._config
        self._set_up_process()
        contexts = ContextFactory(config, set_up_logging(self._output.stream))
        main = MainThread()
        handler = load(config.handler)
        initializer = self._load_hook(config.initializer)
        kind = classify(handler)
        self._initialize(config.initializer, initializer, contexts)
        watcher = Watcher()
        self._watch_commands(watcher, self._load_hook(config.pre_stop), contexts)
        runner: Handler
        if kind is Kind.WSGI:
            runner = WsgiRunner(handler, self._output, threads=config.concurrency > 1)
        else:
            runner = EventRunner(handler, contexts, self._output)
        server = BlockingServer(self._app, runner, concurrency=config.concurrency, watcher=watcher, main=main)
        self._ready()
        server.run()

    def _ready(self) -> None:
        self._output.flush()
        self._report.send({"event": "ready", "init_ms": round((time.monotonic() - self._started) * 1000, 3)})

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

    def _load_hook(self, hook: Hook | None) -> Callable[..., Any] | None:
        return load(hook.handler) if hook is not None and hook.handler else None

    def _initialize(self, hook: Hook | None, function: Callable[..., Any] | None, contexts: ContextFactory) -> None:
        if hook is None:
            return
        self._report.send({"event": "phase", "what": "the initializer", "limit_s": hook.timeout})
        self._output.mark("FC Initialize Start")
        try:
            run_hook(hook, function, contexts.make({}))
        except BaseException as error:
            self._output.fault(error)
            text = f"{type(error).__name__}: {describe(error)['errorMessage']}"
            raise StartFailed(type(error).__name__, f"The initializer failed: {text}", stack_of(error)) from error
        finally:
            self._output.mark("FC Initialize End")

    def _watch_commands(self, watcher: Watcher, pre_stop: Callable[..., Any] | None, contexts: ContextFactory) -> None:
        sock = self._report.sock

        def on_readable() -> None:
            data = sock.recv(4096)
            if not data:  # the supervisor is gone
                os._exit(0)
            for line in self._commands.feed(data):
                if parse_message(line).get("op") == "pre_stop":
                    context = contexts.make({})
                    threading.Thread(target=self._pre_stop, args=(pre_stop, context), daemon=True).start()

        watcher.add_reader(sock, on_readable)

    def _pre_stop(self, function: Callable[..., Any] | None, context: Context) -> None:
        hook = self._config.pre_stop
        self._output.mark("FC PreStop Start")
        try:
            if hook is not None:
                run_hook(hook, function, context)
        except BaseException as error:
            self._output.fault(error)
        finally:
            self._output.mark("FC PreStop End")
            self._report.send({"event": "pre_stopped"})


def run_hook(hook: Hook, function: Callable[..., Any] | None, context: Context) -> None:
    """Call the hook's function with the context, or run its command. Raises what it raises."""
    if function is not None:
        result = function(context)
        if inspect.iscoroutine(result):
            asyncio.run(result)
    if hook.command:
        subprocess.run(hook.command, check=True, timeout=hook.timeout)
