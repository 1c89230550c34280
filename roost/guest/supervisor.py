"""PID 1 of the room: serves guest.sock, keeps the worker (a sandbox's it is itself), reaps what nobody waits for."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from roost.guest.ahead import wait_and_run
from roost.guest.child import Forked, begin_here, fork_worker
from roost.guest.config import BadStart, StartConfig, parse_start
from roost.guest.control import ControlChannel, Opening
from roost.guest.copies import Copies
from roost.guest.custom import exec_server, run_pre_stop
from roost.guest.invocation import Output
from roost.guest.life import Life, Message, failure
from roost.guest.logs import Outbox
from roost.guest.pump import log_message
from roost.guest.reactor import READ, Reactor, Timer
from roost.guest.reaping import reap
from roost.guest.relay import Forwarder, Relay, connect_tcp, connect_unix
from roost.guest.resolving import name_resolver
from roost.guest.sandbox.daemon import run_sandbox
from roost.guest.sandbox.interpreter.lifeline import Lifeline
from roost.guest.sandbox.interpreter.server import Interpreter
from roost.guest.sandbox.interpreter.spare import Spare, make_spare
from roost.guest.worker import run_worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is the same in every room, and different in tests."""

    orphan_s: float = 60.0  # without a control connection for so long, the room ends itself
    egress_port: int = 3128
    egress_path: str = "/run/roost/index.sock"
    proxy_port: int = 3129
    proxy_path: str = "/run/roost/proxy.sock"


class Supervisor:
    """Owns both listening sockets. `run` returns when the room is to end."""

    def __init__(
        self,
        guest: socket.socket,
        app: socket.socket,
        settings: Settings,
        *,
        live: socket.socket | None = None,
        fork: Callable[..., Forked] = fork_worker,
        spare: Callable[[], Spare | None] = make_spare,
        daemon: Callable[..., None] = run_sandbox,
    ) -> None:
        self._guest = guest
        self._app = app
        self._settings = settings
        self._lifeline = live
        self._live: Lifeline | None = None  # of a sandbox
        self._copies: Copies | None = None  # of a function
        self._fork = fork
        self._make_spare = spare
        self._run_daemon = daemon
        self._reactor = Reactor()
        self._outbox = Outbox(self._flush)
        self._channel: ControlChannel | None = None
        self._life: Life | None = None
        self._ahead: Forked | None = None
        self._spare: Spare | None = None
        self._daemon: Callable[[], None] | None = None
        self._refused: Message = failure("NotStarted", "No start message has come yet.")
        self._orphan: Timer | None = None
        self._egress: list[Forwarder] = []
        self._openings: set[Opening] = set()
        self._relays: set[Relay] = set()
        self._renew: Callable[[StartConfig], None] | None = None  # of a copy that was not started yet

    def run(self) -> None:
        waker, wakened = socket.socketpair()
        waker.setblocking(False)
        wakened.setblocking(False)
        # The handler makes Python write to the wake-up descriptor; the work is done in the loop.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._fork_ahead()
        self._reactor.watch(wakened, READ, lambda _: self._on_child_signal(wakened))
        self._guest.setblocking(False)
        self._reactor.watch(self._guest, READ, self._accept)
        self._await_control()
        self._reactor.run()
        if self._daemon is not None:
            self._daemon()
            self._reactor.run()
        if self._life is not None:
            self._life.close()
        if self._ahead is not None:  # no start has come
            self._ahead[1].close()
        if self._spare is not None:
            self._spare.close()

    def _fork_ahead(self) -> None:
        """What is forked now comes up while the configuration is awaited: a sandbox's first context, where the template
        has some, else the worker."""
        if self._lifeline is not None:  # the host makes it
            return
        self._spare = self._make_spare()
        if self._spare is not None:
            return
        app = self._app
        # Without it, the start itself forks, and reports what prevents that.
        with contextlib.suppress(OSError):
            self._ahead = self._fork(lambda status: wait_and_run(app, status), keep=(app.fileno(),))

    def _on_child_signal(self, wakened: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            wakened.recv(4096)
        for pid, status in reap():
            if self._copies is not None:
                self._copies.lost(pid)
            if self._life is not None:
                self._life.on_ended(pid, status)

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._guest.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: the backlog holds until some are free
            self._reactor.watch(self._guest, 0, self._accept)
            self._reactor.call_later(0.1, lambda: self._reactor.watch(self._guest, READ, self._accept))
            return
        sock.setblocking(False)
        self._openings.add(Opening(self._reactor, sock, self._on_open, self._openings.discard))

    def _on_open(self, sock: socket.socket, port: int | None, rest: bytes) -> None:
        if port is not None:
            try:
                relay = Relay(self._reactor, sock, connect_tcp(port), first=rest, on_close=self._relays.discard)
            except OSError:
                sock.close()
            else:
                self._relays.add(relay)
            return
        if self._channel is not None:
            self._channel.close()
        if self._orphan is not None:
            self._orphan.cancel()
        self._channel = ControlChannel(self._reactor, sock, self._outbox, self._on_message, self._on_channel_closed)
        self._channel.open(rest)

    def _on_channel_closed(self, channel: ControlChannel) -> None:
        if channel is self._channel:
            self._channel = None
            self._await_control()

    def _await_control(self) -> None:
        self._orphan = self._reactor.call_later(self._settings.orphan_s, self._reactor.stop)

    def _on_message(self, message: dict[str, Any]) -> None:
        match message.get("op"):
            case "start" if self._life is None:
                self._start(message)
            case "start" if self._renew is not None:
                self._start_copy(message, self._renew)
            case "restart" if self._daemon is not None:
                self._reactor.stop()  # what is to be ended is this process
            case "restart" if self._life is not None:
                self._life.restart()
            case "pre_stop":
                if self._life is None:
                    self._emit({"event": "pre_stopped"})
                else:
                    self._life.pre_stop()
            case "attach" | "start" | "restart":
                present = self._life.present if self._life is not None else self._refused
                if present is not None:
                    self._emit(present)

    def let_go(self) -> None:
        """Close all connections of the host's, and take no other until `go_on`."""
        for opening in tuple(self._openings):
            opening.close()
        for relay in tuple(self._relays):
            relay.close()
        if self._channel is not None:
            self._channel.close()
        for forwarder in self._egress:
            forwarder.serve(False)

    def go_on(self, renew: Callable[[StartConfig], None] | None) -> None:
        """`renew`: this is a copy, which the host is going to start."""
        self._renew = renew
        for forwarder in self._egress:
            forwarder.serve(True)

    def _start_copy(self, message: dict[str, Any], renew: Callable[[StartConfig], None]) -> None:
        try:
            config = parse_start(message)
        except BadStart as error:
            self._emit(failure("BadStart", f"start: {error}"))
            return
        self._renew = None
        if config.resolver:
            name_resolver(config.resolver)
        renew(config)
        present = self._life.present if self._life is not None else None
        self._emit(present if present is not None else self._refused)

    def _emit(self, message: Message) -> None:
        self._outbox.put(json.dumps(message).encode() + b"\n", is_log=False)

    def _flush(self) -> None:
        if self._channel is not None:
            self._channel.flush()

    def _start(self, message: dict[str, Any]) -> None:
        try:
            config = parse_start(message)
        except BadStart as error:
            self._refused = failure("BadStart", f"start: {error}")
            self._emit(self._refused)
            return
        if config.resolver:
            name_resolver(config.resolver)
        if config.egress:
            settings = self._settings
            self._open_egress(settings.egress_port, settings.egress_path)
            self._open_egress(settings.proxy_port, settings.proxy_path)
        spare, self._spare = self._spare, None
        if spare is not None and not config.sandbox.interpreter:
            spare.close()
            spare = None
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None and config.runtime == "sandbox" and config.sandbox.interpreter:
            self._live = Lifeline(lifeline)
        elif lifeline is not None and config.runtime == "python" and config.live:
            self._copies = Copies(self._reactor, lifeline, self._app)
        elif lifeline is not None:
            lifeline.close()
        self._life = self._make_life(config)
        if self._copies is not None:
            self._life.start(self._copies.begin(message))
            self._life.on_held = self._copies.held
            self._copies.serve(self._life)
        elif config.runtime == "sandbox":
            self._be_daemon(config, self._life, spare)
        else:
            self._life.start(self._tell_ahead(message))

    def _be_daemon(self, config: StartConfig, life: Life, spare: Spare | None) -> None:
        """Be a sandbox's daemon from the next turn on: a process of its own would cost each sandbox three megabytes."""
        if self._ahead is not None:
            self._ahead[1].close()  # it ends
            self._ahead = None
        forked, status = begin_here()
        life.start(forked)
        self._daemon = partial(
            self._run_daemon,
            config,
            self._app,
            status,
            partial(Interpreter, spare=spare, live=self._live),
            beside=self._reactor,
            around=self,
        )
        self._reactor.leave()

    def _tell_ahead(self, message: dict[str, Any]) -> Forked | None:
        """The worker that waits for its configuration, when it has been told; None when there is none."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        pipes = ahead[1]
        data = json.dumps(message).encode() + b"\n"
        try:
            # A start may be longer than what the socket takes at once, and the worker is reading already.
            pipes.status.setblocking(True)
            pipes.status.sendall(data)
            pipes.status.setblocking(False)
        except OSError:
            pipes.close()
            return None
        return ahead

    def _make_life(self, config: StartConfig) -> Life:
        serving: Callable[[bool], None] = lambda _: None  # noqa: E731  the Python worker serves app.sock itself
        custom = config.runtime == "custom"
        if custom:
            forwarder = Forwarder(self._reactor, self._app, lambda: connect_tcp(config.port), near_eof_closes=True)
            serving = forwarder.serve
        app = self._app

        def serve(config: StartConfig, status: socket.socket) -> None:
            run_worker(config, app, status, Output())

        return Life(
            self._reactor,
            self._outbox,
            config,
            body=exec_server if custom else serve,
            pre_stop=run_pre_stop if custom else None,
            keep=() if custom else (app.fileno(),),
            emit=self._emit,
            serving=serving,
        )

    def _open_egress(self, port: int, path: str) -> None:
        try:
            listener = socket.create_server(("127.0.0.1", port), backlog=64)
        except OSError as error:
            text = f"[roost] no proxy at 127.0.0.1:{port}: {error.strerror}\n"
            self._outbox.put(log_message("stderr", text), is_log=True)
            return
        forwarder = Forwarder(self._reactor, listener, lambda: connect_unix(path), near_eof_closes=False)
        self._egress.append(forwarder)
        forwarder.serve(True)
