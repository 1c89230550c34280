"""The life of the worker, as PID 1 sees it: start, restart, hooks, exit."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from roost.guest.child import Forked, Pipes, fork_worker, kill_tree
from roost.guest.config import StartConfig
from roost.guest.control import MAX_MESSAGE, LineReader, ProtocolError, parse_message
from roost.guest.logs import Outbox
from roost.guest.pump import OutputPump
from roost.guest.reactor import READ, Reactor, Timer

Message = dict[str, Any]
#: How long an import of the user's code may take; the initializer has a limit of its own.
IMPORT_LIMIT_S = 120.0
HOOK_GRACE_S = 0.5
CHUNK = 64 << 10
STOP_LIMIT_S = 3.0  # of a worker that has no hook, but an end of its own (lifespan)


def failure(kind: str, message: str, stack: list[str] | None = None) -> Message:
    """A `failed` event."""
    return {
        "event": "failed",
        "error": {"errorType": kind, "errorMessage": message, "stackTrace": stack or []},
    }


class Child:
    """A forked process of the room with its output and status socket. `close` drains and releases all."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        pid: int,
        pipes: Pipes,
        outbox: Outbox,
        rate: int,
        on_status: Callable[[Message], None],
    ) -> None:
        self.pid = pid
        self._reactor = reactor
        self._status = pipes.status
        self._on_status = on_status
        self._reader = LineReader(MAX_MESSAGE)
        self._output = OutputPump(reactor, pipes.stdout, pipes.stderr, outbox, rate)
        self._open = True
        reactor.watch(self._status, READ, self._on_ready)

    @property
    def tail(self) -> str:
        """The end of its output."""
        return self._output.tail.strip()

    def send(self, message: Message) -> bool:
        """False if the worker does not take it."""
        try:
            data = json.dumps(message).encode() + b"\n"
            return self._status.send(data) == len(data)
        except OSError:
            return False

    def drain(self) -> None:
        self._output.drain()

    def close(self) -> None:
        if self._open:
            self._close_status()
        self.drain()
        self._output.close()

    def hear(self) -> None:
        """Take what it has said last: its end may be noticed before that."""
        for _ in range(MAX_MESSAGE // CHUNK + 1):
            if not self._open or not self._receive():
                return

    def _close_status(self) -> None:
        self._open = False
        self._reactor.watch(self._status, 0, self._on_ready)
        self._status.close()

    def _on_ready(self, events: int) -> None:
        self._receive()

    def _receive(self) -> bool:
        """False if there was nothing."""
        try:
            data = self._status.recv(CHUNK)
            # User code shares a process with the sender, so what comes is checked like anything else it says.
            messages = [parse_message(line) for line in self._reader.feed(data)]
        except BlockingIOError:
            return False
        except (OSError, ProtocolError):
            data, messages = b"", []
        if not data:
            self._close_status()
        for message in messages:
            self._on_status(message)
        return True


class State(Enum):
    NEW = auto()
    STARTING = auto()
    READY = auto()
    FAILED = auto()
    EXITED = auto()
    KILLING = auto()  # the old worker's tree is being killed; a new one starts when the last of it is reaped


class Life:
    """Starts `body(config, status socket)` in a child and reports what becomes of it through `emit`.

    `serving(True)` is called when the worker has become ready and `serving(False)` when it no longer is.
    """

    def __init__(
        self,
        reactor: Reactor,
        outbox: Outbox,
        config: StartConfig,
        *,
        body: Callable[[StartConfig, socket.socket], None],
        pre_stop: Callable[[StartConfig], None] | None,
        keep: tuple[int, ...],
        emit: Callable[[Message], None],
        serving: Callable[[bool], None],
    ) -> None:
        self._reactor = reactor
        self._outbox = outbox
        self._config = config
        self._body = body
        self._pre_stop = pre_stop
        self._keep = keep
        self._emit = emit
        self._serving = serving
        self._state = State.NEW
        self._present: Message = failure("NotStarted", "The worker has not been started.")
        self._child: Child | None = None
        self._hook: Child | None = None
        self.on_held: Callable[[str], None] = lambda why: (
            None
        )  # the worker stands still, to be copied; or why it does not
        self._stops = False  # the worker wants to hear of its end
        self._limit: Timer | None = None
        self._hook_limit: Timer | None = None

    @property
    def present(self) -> Message | None:
        """The last `ready`, `failed` or `exited`; None while it is being decided (the event will follow)."""
        return None if self._state in (State.STARTING, State.KILLING) else self._present

    def start(self, ahead: Forked | None = None) -> None:
        """`ahead`: a worker that was forked already and has been told its configuration."""
        self._state = State.STARTING
        try:
            self._child = self._own(ahead or self._fork(self._body_of_worker), self._on_status)
        except OSError as error:
            self._settle(State.FAILED, failure("StartFailed", f"The room can't start a process: {error.strerror}."))
            return
        self._set_limit(IMPORT_LIMIT_S, "importing the code")

    def tell(self, message: Message) -> bool:
        """False if there is no worker that is ready, or it does not take it."""
        return self._state is State.READY and self._child is not None and self._child.send(message)

    def restart(self) -> None:
        """Kill the worker's tree, then start anew. While a restart is under way another one changes nothing."""
        if self._state is State.KILLING:
            return
        self._serving(False)
        self._clear_limit()
        self._state = State.KILLING
        if self._child is None:
            self.start()
        else:
            kill_tree(self._child.pid)

    def stop(self) -> None:
        """Kill everything, for good."""
        for child in (self._child, self._hook):
            if child is not None:
                kill_tree(child.pid)

    def close(self) -> None:
        """The same, and hear nothing more of it."""
        self.stop()
        for child in (self._child, self._hook):
            if child is not None:
                child.close()

    def pre_stop(self) -> None:
        """Run the hook; `pre_stopped` follows in any case, at the latest after the hook's time limit."""
        hook = self._config.pre_stop
        wanted = hook is not None or self._stops
        if not wanted or self._state is not State.READY or self._child is None or self._hook_limit is not None:
            self._pre_stopped()
            return
        limit = hook.timeout if hook is not None else STOP_LIMIT_S
        self._hook_limit = self._reactor.call_later(limit + HOOK_GRACE_S, self._pre_stopped)
        if self._pre_stop is None:
            if not self._child.send({"op": "pre_stop"}):
                self._pre_stopped()
            return
        try:
            self._hook = self._own(self._fork(self._body_of_hook), lambda _: None)
        except OSError:
            self._pre_stopped()

    def on_ended(self, pid: int, status: int) -> None:
        """Of every reaped process, also of those that were only adopted."""
        if self._hook is not None and pid == self._hook.pid:
            self._pre_stopped()
        if self._child is None or pid != self._child.pid:
            return
        self._child.hear()
        child, self._child = self._child, None
        starting = self._state is State.STARTING
        if self._state is not State.KILLING:
            # What it started has lost its meaning, and may hold connections of the host open.
            kill_tree(pid)
        child.close()
        self._clear_limit()
        self._serving(False)
        code, number = (None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), None)
        if self._state is State.KILLING:
            self.start()
        elif starting:
            how = f"signal {number}" if number is not None else f"exit code {code}"
            text = f"The process ended with {how} before it was ready."
            output = child.tail[-1000:]
            self._settle(
                State.FAILED, failure("ExitedAtStart", f"{text} Its last output:\n{output}" if output else text)
            )
        elif self._state is State.READY:
            self._settle(State.EXITED, {"event": "exited", "code": code, "signal": number})

    def _fork(self, body: Callable[[socket.socket], None]) -> Forked:
        return fork_worker(body, keep=self._keep)

    def _own(self, forked: Forked, on_status: Callable[[Message], None]) -> Child:
        pid, pipes = forked
        return Child(
            self._reactor,
            pid=pid,
            pipes=pipes,
            outbox=self._outbox,
            rate=self._config.output_bytes_per_s,
            on_status=on_status,
        )

    def _body_of_worker(self, status: socket.socket) -> None:
        self._body(self._config, status)

    def _body_of_hook(self, status: socket.socket) -> None:
        if self._pre_stop is not None:
            self._pre_stop(self._config)

    def _on_status(self, message: Message) -> None:
        match message.get("event"):
            case "phase" if self._state is State.STARTING:
                seconds, what = message.get("limit_s"), message.get("what")
                if isinstance(seconds, int | float) and isinstance(what, str):
                    self._set_limit(seconds, what)
            case "ready" if self._state is State.STARTING:
                self._serving(True)
                self._stops = message.get("stops") is True
                self._settle(State.READY, {"event": "ready", "init_ms": message.get("init_ms")})
            case "failed" if self._state is State.STARTING:
                self._settle(State.FAILED, {"event": "failed", "error": message.get("error")})
                self.stop()
            case "held":
                self.on_held(str(message.get("error", "")))
            case "pre_stopped":
                self._pre_stopped()

    def _settle(self, state: State, message: Message) -> None:
        if self._child is not None:
            self._child.drain()
        self._clear_limit()
        self._state = state
        self._present = message
        self._emit(message)

    def _set_limit(self, seconds: float, what: str) -> None:
        self._clear_limit()
        self._limit = self._reactor.call_later(seconds, lambda: self._too_late(seconds, what))

    def _clear_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _too_late(self, seconds: float, what: str) -> None:
        text = f"Not ready: {what} did not end within {seconds:g} seconds."
        tail = self._child.tail[-1000:] if self._child is not None else ""
        self._settle(State.FAILED, failure("InitializerTimeout", f"{text} Its last output:\n{tail}" if tail else text))
        self.stop()

    def _pre_stopped(self) -> None:
        if self._hook_limit is not None:
            self._hook_limit.cancel()
            self._hook_limit = None
        if self._hook is not None:
            hook, self._hook = self._hook, None
            if os.getpid() != 1:
                kill_tree(hook.pid)
            hook.close()
        if self._child is not None:
            self._child.drain()
        self._emit({"event": "pre_stopped"})
