"""Runs tasks as the data plane runs invocations: the same leases, the same wire, only that no client waits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping

from roost.functions.tasks.policy import Kind, Run
from roost.functions.tasks.ports import Order
from roost.functions.tasks.tapes import Tape
from roost.gateway.call import Call
from roost.gateway.connection import BodySink, ClientConnection, ClientGone, Request
from roost.gateway.faults import Answer
from roost.gateway.fields import line
from roost.gateway.head import END, BadMessage, Field, RequestHead, ResponseHead, parse_response
from roost.gateway.invoke import Invoker
from roost.gateway.routes import Event, Http
from roost.gateway.task_reply import TaskBody, body_of
from roost.model.function import FunctionSpec
from roost.model.task import Task
from roost.model.usage import Outcome

#: Function Compute: what a task returns is kept up to 1 MB. Of a longer result nothing is: a part of it means nothing.
MAX_RESULT = 1 << 20
#: For a function to end that is broken off.
_LET_GO_S = 3.0
_FAULTS = {Outcome.FUNCTION_ERROR: Kind.FAULT, Outcome.TIMEOUT: Kind.FAULT, Outcome.THROTTLED: Kind.TROUBLE}


class _Nobody(ClientConnection):
    """The connection of a client that is not there: it is never slow, and takes nothing."""

    def __init__(self) -> None:
        self.peer = b"127.0.0.1"

    @property
    def draining(self) -> bool:
        return False

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def answered(self, request: Request, *, keep_alive: bool) -> None: ...

    def abort_request(self, request: Request) -> None: ...


class TaskRequest(Request):
    """A request whose body is at hand. Of its reply, what comes bit by bit goes to the task's tape, if it is a task's,
    and the result is collected, up to MAX_RESULT."""

    __slots__ = ("_body", "_head", "_order", "_pieces", "_size", "answer", "broken", "payload", "reply_head")

    def __init__(self, head: RequestHead, order: Order | None = None) -> None:
        super().__init__(head, _Nobody())
        self.payload = b""
        self.answer: Answer | None = None  # of Roost itself
        self.broken = False  # what was collected is not all
        self.reply_head: ResponseHead | None = None
        self._order = order
        self._head = b""  # as far as it has come
        self._body: TaskBody | None = None  # of a reply that is more than its result
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def body_ended(self) -> bool:
        return True

    def stream_to(self, sink: BodySink) -> None:
        if self.payload:
            sink.body(self.payload)
        sink.body_end()

    def write(self, data: bytes) -> None:
        self.answered = True
        if self.reply_head is None:
            head, mark, data = (self._head + data).partition(END)
            self._head = head + mark
            if not mark:
                return
            self.reply_head = parse_response(self._head)
            if self._order is not None:
                self._body = body_of(self.reply_head, _Late(self._order, self))
        if data and self._body is not None:
            try:
                data = self._body.feed(data)
            except BadMessage:
                self.broken = True
                self.lose(ClientGone())
                return
        self._size += len(data)
        if self._size <= MAX_RESULT:
            self._pieces.append(data)
        else:
            self._pieces.clear()

    def finish(self, *, keep_alive: bool) -> None:
        """Nothing waits for the end but whoever runs this."""

    def reply(self, answer: Answer) -> None:
        self.answer = answer

    def abort(self) -> None:
        self.broken = True

    @property
    def whole(self) -> bool:
        """The reply came to its end."""
        return self.reply_head is not None and not self.broken and (self._body is None or self._body.whole)

    @property
    def fault(self) -> bytes | None:
        """The function's own, where it was known only after the reply had begun."""
        return self._body.fault if self._body is not None else None

    @property
    def result(self) -> bytes | None:
        """None when it was too long."""
        given = self._body.result if self._body is not None else None
        if given is not None:
            return given if len(given) <= MAX_RESULT else None
        return b"".join(self._pieces) if self._size <= MAX_RESULT else None


class _Late:
    """The task's tape, which is made when the first thing is put on it."""

    def __init__(self, order: Order, request: TaskRequest) -> None:
        self._order = order
        self._request = request

    def write(self, data: bytes) -> None:
        self._tape().write(data)

    def progress(self, data: bytes) -> None:
        self._tape().progress(data)

    def _tape(self) -> Tape:
        tape = self._order.tape
        if tape is None:
            tape = self._order.tape = self._order.record()
            tape.on_room = self._room
        return tape

    def _room(self, there_is: bool) -> None:
        if self._request.on_writable is not None:
            self._request.on_writable(there_is)


class TaskRunner:
    """Implements `functions.tasks.ports.Runner`, and `triggers.ports.Invoker`."""

    def __init__(self, invoker: Invoker) -> None:
        self._invoker = invoker

    async def run(self, order: Order) -> Run:
        task = order.task
        route = _route(task)
        request = TaskRequest(_head(task.fields), order)
        call = Call(
            request=request,
            route=route,
            id=task.request_id,
            began=time.perf_counter(),
            started=time.time(),
            spec=order.spec,
            task_id=task.id,
            hops=task.hops,
            session=self._invoker.plan(order.spec, request.head, route.target if isinstance(route, Http) else None),
        )

        async def begin(instance_id: str) -> None:
            request.payload = await order.begin(instance_id)
            request.head.length = len(request.payload)
            request.head.has_body = bool(request.payload)
            call.extra = line("x-fc-async-task-id", task.id) + line("x-roost-task-attempt", str(order.task.attempts))

        work = asyncio.get_running_loop().create_task(self._invoker.run_task(call, order.spec, begin))
        # While it waits for an instance it is cancelled; what has one is broken off as if a client had gone.
        request.on_gone = lambda: _ignore(work.cancel())
        order.on_stop = lambda: request.lose(ClientGone())
        try:
            await asyncio.wait({work})
        finally:
            order.on_stop = None
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if work.cancelled() or (order.stopped and call.outcome is Outcome.CANCELLED):
            return Run(kind=Kind.STOPPED, begun=order.begun)
        return _judge(call, request, begun=order.begun)

    async def invoke(self, spec: FunctionSpec, *, qualifier: str, request_id: str, payload: bytes) -> Run:
        """An event that is run now, and is nobody's task. Broken off, it is as if a client had gone."""
        request = TaskRequest(_head({"content-type": "application/json"}))
        request.payload = payload
        request.head.length = len(payload)
        request.head.has_body = bool(payload)
        begun = False

        async def begin(_instance_id: str) -> None:
            nonlocal begun
            begun = True

        call = Call(
            request=request,
            route=Event(spec.name, qualifier),
            id=request_id,
            began=time.perf_counter(),
            started=time.time(),
            spec=spec,
            session=self._invoker.plan(spec, request.head, None),
        )
        work = asyncio.get_running_loop().create_task(self._invoker.run_task(call, spec, begin))
        request.on_gone = lambda: _ignore(work.cancel())
        try:
            await asyncio.wait({work})
        finally:
            if not work.done():
                request.lose(ClientGone())
                await asyncio.wait({work}, timeout=_LET_GO_S)
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        return _judge(call, request, begun=begun)


def _judge(call: Call, request: TaskRequest, *, begun: bool) -> Run:
    """What came of an invocation that ran to its end."""
    if request.answer is not None:
        kind = _FAULTS.get(call.outcome)
        if kind is None:
            refused = 400 <= request.answer.status < 500 and request.answer.status not in (408, 409, 425, 429)
            kind = Kind.REFUSED if refused else Kind.TROUBLE
        error_type, message = _said(request.answer.body)
        return Run(kind=kind, begun=begun, error_type=error_type, error=message)
    if not request.whole or request.reply_head is None:
        return Run(kind=Kind.FAULT, begun=begun, error_type="InvalidResponse", error="The reply broke off.")
    head, result, fault = request.reply_head, request.result, request.fault
    texts = _texts(head)
    if fault is None and "x-fc-error-type" not in texts and head.status < 400 and _ours(texts) < 400:
        return Run(kind=Kind.SUCCEEDED, begun=begun, result=result)
    error_type, message = _said((result if fault is None else fault) or b"")
    error_type = error_type or texts.get("x-fc-error-type", "") or "FunctionError"
    said = message or f"status {head.status}"
    return Run(kind=Kind.FAULT, begun=begun, error_type=error_type, error=said, result=result)


def _ignore(_: object) -> None:
    """For callbacks that return nothing."""


def _texts(head: ResponseHead) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in head.values.items()}


def _ours(texts: dict[str, str]) -> int:
    """`x-fc-status`: how a custom runtime says that an event failed, though the reply is good HTTP."""
    text = texts.get("x-fc-status", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) == 3 else 0


def _said(body: bytes) -> tuple[str, str]:
    """Type and message of an error: a function's or ours."""
    try:
        said = json.loads(body)
        if not isinstance(said, dict):
            return "", ""
        kind, message = said.get("errorType") or said.get("Code"), said.get("errorMessage") or said.get("Message")
        return str(kind or ""), str(message or "")
    except (ValueError, RecursionError):
        return "", body[:500].decode("utf-8", "replace")


def _route(task: Task) -> Event | Http:
    """Of an event, or of a request to the function's own address."""
    if ":target" not in task.fields:
        return Event(task.function, task.qualifier)
    target = task.fields[":target"].encode("latin-1", "replace")
    return Http(task.function, task.qualifier, task.fields[":prefix"], target)


def _head(sent: Mapping[str, str]) -> RequestHead:
    """What the caller sent, or would have sent. HTTP/1.0: the reply comes without chunks."""
    fields: list[Field] = [
        (name.encode("latin-1"), name.encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in sent.items()
        if not name.startswith(":")
    ]
    return RequestHead(
        method=sent.get(":method", "POST"),
        target=sent.get(":target", "/invoke").encode("latin-1", "replace"),
        fields=fields,
        values={lower: value for lower, _, value in fields},
        http11=False,
        options=frozenset(),
        keep_alive=False,
        length=0,
        chunked=False,
        upgrade=b"",
        has_body=False,
    )
