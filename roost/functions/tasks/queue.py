"""The way in: an event is checked, counted and stored; only then has it been accepted."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from roost.functions.tasks.backlog import Backlog
from roost.functions.tasks.policy import TaskSettings
from roost.instances.background import Background
from roost.model.errors import InvalidArgument
from roost.model.function import Affinity, FunctionSpec
from roost.model.task import (
    Busy,
    Task,
    TaskEvent,
    TaskState,
    check_busy,
    check_delay,
    check_task_id,
)
from roost.store.tasks import Lane, Tasks

#: Fields of the request that its function sees when it runs. What proves the caller's identity is never stored.
_KEPT = ("content-type", "content-encoding", "traceparent", "tracestate", "baggage")
_COOKIE = "x-fc-cookie-session-id"


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The task that an event became, or had become before."""

    task_id: str
    request_id: str
    session_id: str


class TaskQueue:
    """Implements the data plane's `AsyncSink`. `notify` is called after a task was stored, `stopped` for each that was
    stopped in its favour; `requests` says how many requests an instance works on for a session."""

    def __init__(
        self,
        store: Tasks,
        backlog: Backlog,
        *,
        clock: Callable[[], float],
        notify: Callable[[], None],
        settings: Callable[[Task], TaskSettings],
        stopped: Callable[[Task], None],
        requests: Callable[[Lane], int],
        background: Background,
    ) -> None:
        self._store = store
        self._backlog = backlog
        self._clock = clock
        self._notify = notify
        self._settings = settings
        self._stopped = stopped
        self._requests = requests
        self._background = background

    async def submit(
        self,
        spec: FunctionSpec,
        *,
        qualifier: str,
        request_id: str,
        session_id: str,
        payload: bytes,
        headers: Mapping[str, str],
        http: Mapping[str, str] | None = None,
        hops: int = 0,
    ) -> Accepted:
        """Keep the event durably; `hops` invocations led to it. An id that is known returns its task.

        Raises InvalidArgument, Conflict (the id is another event's; the session is busy), Throttled, StorageFull,
        NotFound.
        """
        chosen = headers.get("x-fc-async-task-id", "")
        task_id = check_task_id(chosen) if chosen else request_id
        delay = check_delay(headers.get("x-fc-async-delay", ""))
        busy = check_busy(headers.get("x-roost-task-busy", ""))
        session, fields = _session(spec, session_id)
        fields = {**(http or {}), **fields}
        fields |= {name: headers[name] for name in _KEPT if name in headers}
        now = self._clock()
        task = Task(
            account=spec.account,
            function=spec.name,
            id=task_id,
            qualifier=qualifier,
            request_id=request_id,
            session=session,
            enqueued=now,
            ready=now + delay,
            due=now + delay,
            digest=_digest(payload, qualifier, session_id, http or {}),
            hops=hops,
            fields=fields,
            events=(TaskEvent(state=TaskState.ENQUEUED, at=now),),
        )
        kept = await self._store_counted(task, payload, self._busy(task, busy, bool(delay)))
        return Accepted(task_id=kept.id, request_id=kept.request_id, session_id=kept.session)

    def _busy(self, task: Task, asked: Busy | None, delayed: bool) -> Busy:
        """What is to be done about the session's other work."""
        if not task.session:
            if asked not in (None, Busy.ENQUEUE):
                raise InvalidArgument(f"x-roost-task-busy: function {task.function} has no session to be busy.")
            return Busy.ENQUEUE
        busy = asked or self._settings(task).busy
        if busy is Busy.INTERRUPT and delayed:
            raise InvalidArgument("x-fc-async-delay: a task that interrupts its session's others can't be delayed.")
        return busy

    def _store_counted(self, task: Task, payload: bytes, busy: Busy) -> Awaitable[Task]:
        lane = (task.account, task.function, task.session)
        self._backlog.reserve(lane)
        if busy is not Busy.ENQUEUE:
            # Not broken off by a caller that goes: whoever is stopped has to hear of it.
            return asyncio.shield(self._background.spawn(self._keep(lane, task, payload, busy)))
        return self._keep(lane, task, payload, busy)

    async def _keep(self, lane: Lane, task: Task, payload: bytes, busy: Busy) -> Task:
        try:
            occupied = busy is Busy.REJECT and self._requests(lane) > 0
            kept = await self._store.enqueue(task, payload, busy=busy, occupied=occupied)
        except asyncio.CancelledError:
            self._added(lane, task)  # the caller has gone; the store goes on, and most likely has it
            raise
        except Exception:
            self._backlog.left(lane)
            raise
        for other in kept.stopped:
            self._stopped(other)
        if kept.new:
            self._added(lane, task)
        else:
            self._backlog.left(lane)
        return kept.task

    def _added(self, lane: Lane, task: Task) -> None:
        self._backlog.added(lane, task.due)
        self._notify()


def _session(spec: FunctionSpec, session_id: str) -> tuple[str, dict[str, str]]:
    """The session whose lane the task takes, and the fields that name it when it runs.

    Where ids are the client's to choose, one is chosen now: every try of the task then works on the same files.
    """
    if spec.sessions.affinity is Affinity.HEADER_FIELD:
        session_id = session_id or f"task-{secrets.token_hex(12)}"
        return session_id, {spec.sessions.header: session_id}
    if spec.sessions.affinity is Affinity.GENERATED_COOKIE and session_id:
        return session_id, {"cookie": f"{_COOKIE}={session_id}"}
    return "", {}


def _digest(payload: bytes, qualifier: str, session_id: str, http: Mapping[str, str]) -> str:
    parts = (qualifier, session_id, *(http[name] for name in (":method", ":target") if name in http))
    return hashlib.sha256(b"\0".join([*(part.encode() for part in parts), payload])).hexdigest()
