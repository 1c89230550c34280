"""The sandbox's daemon: the room's PID 1, root of the room, which serves app.sock for all of it in a single thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from roost.guest.async_server import AsyncHandler, AsyncServer, Disconnected, Exchange
from roost.guest.config import StartConfig
from roost.guest.dedup import give_back
from roost.guest.environment import BUNDLE_BIN
from roost.guest.faults import StartFailed
from roost.guest.loading import reseed_random
from roost.guest.passed import PassedConnections
from roost.guest.reactor import Reactor
from roost.guest.sandbox.commands import Commands
from roost.guest.sandbox.envd import Envd
from roost.guest.sandbox.files import Files
from roost.guest.sandbox.filesystem_service import FilesystemService
from roost.guest.sandbox.identities import Identities
from roost.guest.sandbox.metrics import Metrics
from roost.guest.sandbox.process_service import ProcessService
from roost.guest.sandbox.processes import ProcessTable
from roost.guest.sandbox.replies import refuse, reply_json
from roost.guest.sandbox.standstill import Around, Standstill
from roost.guest.sandbox.sudo_broker import SudoBroker
from roost.guest.sandbox.watches import Watches
from roost.guest.worker import Reporter

CONCURRENCY = 1000
INTERPRETER_PORT = "49999"
SUDO_SOCKET = "/run/roost-sudo.sock"
SUDO = "/usr/local/bin/sudo"  # first on the PATH that login shells set, before one whose setuid bit means nothing here


class Handler(Protocol):
    """What serves one port."""

    async def __call__(self, exchange: Exchange) -> None: ...


class Furnish(Protocol):
    """See `furnish_room`."""

    async def __call__(self, identities: Identities, interpreter: InterpreterHandler | None) -> None: ...


class InterpreterHandler(Handler, Protocol):
    """The code interpreter. `begin`: its contexts are there, and copied when the host asks for that.
    `stand` and `go_on` are for a copy of the whole room."""

    def begin(self) -> None: ...

    async def stand(self, wait_s: float) -> list[str]: ...

    def go_on(self, config: StartConfig | None) -> None: ...


def run_sandbox(
    config: StartConfig,
    app: socket.socket,
    status: socket.socket,
    interpreter: Callable[[StartConfig, Identities], InterpreterHandler] | None = None,
    *,
    beside: Reactor,
    around: Around,
    furnish: Furnish | None = None,
) -> None:
    """Returns when the sandbox could not start (the supervisor has been told) or `beside`, which goes on, is stopped.

    `interpreter` makes the handler of port 49999, for a sandbox that is to have one. `around` serves guest.sock.
    `furnish`: what makes the daemon known within the room, instead of what does that there.
    """
    report = Reporter(status)
    try:
        with asyncio.Runner() as runner:
            serving = _serve(config, app, report, interpreter, around=around, furnish=furnish or furnish_room)
            runner.run(_serve_beside(beside, serving))
    except StartFailed as error:
        told = {"errorType": error.kind, "errorMessage": error.message, "stackTrace": error.stack}
        report.send({"event": "failed", "error": told})


async def _serve_beside(reactor: Reactor, serving: Coroutine[Any, Any, None]) -> None:
    """Until either has ended. Raises what `serving` raises."""
    tasks = asyncio.create_task(serving), asyncio.create_task(_turn(reactor))
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _turn(reactor: Reactor) -> None:
    """Turn it when it has something to do, until it is stopped."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    timer: asyncio.TimerHandle | None = None

    def turn() -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()
        try:
            reactor.turn(0)
        except Exception as error:
            if not ended.done():
                ended.set_exception(error)
            return
        timer = loop.call_at(reactor.due, turn) if reactor.due is not None else None
        if reactor.stopped and not ended.done():
            ended.set_result(None)

    loop.add_reader(reactor.fileno(), turn)
    turn()
    try:
        await ended
    finally:
        loop.remove_reader(reactor.fileno())


async def _serve(
    config: StartConfig,
    app: socket.socket,
    report: Reporter,
    make_interpreter: Callable[[StartConfig, Identities], InterpreterHandler] | None,
    *,
    around: Around,
    furnish: Furnish,
) -> None:
    started = time.monotonic()
    _set_up_process(config)
    sandbox = config.sandbox
    identities = Identities(
        default=sandbox.user, env=config.env, workdir=sandbox.workdir, own_python=sandbox.interpreter
    )
    if config.time_zone:
        identities.env.setdefault("TZ", config.time_zone)
    interpreter: Handler = _closed_port
    made: InterpreterHandler | None = None
    if make_interpreter is not None and sandbox.interpreter:
        interpreter = made = make_interpreter(config, identities)
    server = AsyncServer(
        app, handler(config, identities, interpreter), concurrency=CONCURRENCY, grace_s=0.0, on_quiet=give_back
    )
    await server.serve()
    await furnish(identities, made)
    if made is not None:
        made.begin()
    if isinstance(app, PassedConnections):
        Standstill(app, server, identities, around, made).serve()
    commands = Commands(identities, report)
    await commands.run(sandbox.start_command, sandbox.ready_command)
    init_ms = round((time.monotonic() - started) * 1000, 3)
    report.send({"event": "ready", "init_ms": init_ms, "stops": False})
    await asyncio.get_running_loop().create_future()


def handler(config: StartConfig, identities: Identities, interpreter: Handler) -> AsyncHandler:
    """What answers the requests of a sandbox."""
    metrics = Metrics(config.function.memory << 20)  # which counts from now on
    envd: Envd | None = None  # made when it is wanted: a sandbox that only runs code does without

    async def handle(exchange: Exchange) -> None:
        nonlocal envd
        served = interpreter
        if exchange.head.get("x-roost-port") != INTERPRETER_PORT:
            served = envd = envd or _make_envd(identities, metrics)
        try:
            await served(exchange)
        except Disconnected:
            raise
        except Exception:  # a mistake of the daemon: it is logged, and costs this request alone
            traceback.print_exc()
            if not exchange.framer.sent:
                await refuse(exchange, 500, "the sandbox's daemon failed at this request: its log says more")

    return handle


def _make_envd(identities: Identities, metrics: Metrics) -> Envd:
    return Envd(
        identities=identities,
        processes=ProcessService(identities, ProcessTable()),
        filesystem=FilesystemService(identities, Watches()),
        files=Files(identities),
        metrics=metrics,
    )


async def furnish_room(identities: Identities, interpreter: Handler | None) -> None:
    """Programs of the room can become root, and find the interpreter at its port. Without a token: whoever is in here
    can be root."""
    sudo = SudoBroker(identities)
    sudo.serve(SUDO_SOCKET)
    _link_sudo(f"{BUNDLE_BIN}/sudo")
    if interpreter is None:
        return
    with contextlib.suppress(OSError):  # it is no reason not to start
        listener = socket.create_server(("0.0.0.0", int(INTERPRETER_PORT)), backlog=64)  # noqa: S104 - there is only lo
        await AsyncServer(listener, interpreter, concurrency=64, grace_s=0.0).serve()


async def _closed_port(exchange: Exchange) -> None:
    body = {"message": "The sandbox is running but port is not open", "port": int(INTERPRETER_PORT), "code": 502}
    await reply_json(exchange, body, 502)


def _set_up_process(config: StartConfig) -> None:
    # Nothing of the supervisor's environment reaches what is started here, nor the daemon's own libraries.
    os.environ.clear()
    os.environ.update({"LANG": "C.UTF-8", "HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    if config.time_zone:
        os.environ["TZ"] = config.time_zone
    time.tzset()
    os.umask(0o022)
    for fd in os.listdir("/proc/self/fd"):  # see `spawn`: what it inherited must not reach a program either
        with contextlib.suppress(OSError):
            os.set_inheritable(int(fd), int(fd) < 3)
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reseed_random(config.entropy)


def _link_sudo(program: str) -> None:
    """A template's own, and what somebody put there before, stay."""
    with contextlib.suppress(OSError):
        if os.path.exists(program) and not os.path.lexists(SUDO):
            os.makedirs(os.path.dirname(SUDO), exist_ok=True)
            os.symlink(program, SUDO)
