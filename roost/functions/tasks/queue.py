"""The way in: an event is checked, counted and stored; only then has it been accepted."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from roost.functions.tasks.backlog import Backlog
from roost.model.function import Affinity, FunctionSpec
from roost.model.task import Task, TaskEvent, TaskState, check_delay, check_task_id
from roost.store.tasks import Tasks

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
    """Implements the data plane's `AsyncSink`. `notify` is called after a task was stored."""

    def __init__(
        self, store: Tasks, backlog: Backlog, *, clock: Callable[[], float], notify: Callable[[], None]
    ) -> None:
        self._store = store
        self._backlog = backlog
        self._clock = clock
        self._notify = notify

    async def submit(
        self,
        spec: FunctionSpec,
        *,
        qualifier: str,
        request_id: str,
        session_id: str,
        payload: bytes,
        headers: Mapping[str, str],
    ) -> Accepted:
        """Keep the event durably. An id that is known returns its task.

        Raises InvalidArgument, Conflict (the id is another event's), Throttled, StorageFull, NotFound.
        """
        chosen = headers.get("x-fc-async-task-id", "")
        task_id = check_task_id(chosen) if chosen else request_id
        delay = check_delay(headers.get("x-fc-async-delay", ""))
        session, fields = _session(spec, session_id)
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
            digest=_digest(payload, qualifier, session_id),
            fields=fields,
            events=(TaskEvent(state=TaskState.ENQUEUED, at=now),),
        )
        kept = await self._store_counted(task, payload)
        return Accepted(task_id=kept.id, request_id=kept.request_id, session_id=kept.session)

    async def _store_counted(self, task: Task, payload: bytes) -> Task:
        lane = (task.account, task.function, task.session)
        self._backlog.reserve(lane)
        try:
            kept, new = await self._store.enqueue(task, payload)
        except Exception:
            self._backlog.left(lane)
            raise
        if new:
            self._backlog.added(lane, task.due)
            self._notify()
        else:
            self._backlog.left(lane)
        return kept


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


def _digest(payload: bytes, qualifier: str, session_id: str) -> str:
    parts = (qualifier.encode(), session_id.encode(), payload)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
