"""Invocations: events, deadlines, cancellation, broken functions, and that every lease comes back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from roost.functions.tasks.policy import Kind
from roost.gateway.invoke import InvokeLimits
from roost.model.errors import Fault, InstanceExited, NotFound, Throttled, Unavailable
from roost.model.function import FunctionSpec
from roost.model.usage import Outcome
from tests.support.gateway_world import (
    eventually,
    mirror,
    on_both_loops,
    read_answer,
    read_request,
    reply,
    server,
    spec,
    world,
)

PATH = b"/2023-03-30/functions/echo/invocations"
GET = b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"


def event(body: bytes, *lines: bytes, path: bytes = PATH) -> bytes:
    head = b"".join(line + b"\r\n" for line in lines)
    return b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n%b" % (path, head, len(body), body)


@on_both_loops
async def test_an_event_is_posted_to_invoke(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        reader, writer = await w.connect()
        signed = (b"Authorization: ACS3-HMAC-SHA256 hidden", b"x-acs-security-token: hidden", b"x-mine: kept")
        writer.write(event(b"payload", b"x-fc-invocation-type: Sync", *signed, path=PATH + b"?qualifier=prod"))
        answer = await read_answer(reader)
        writer.close()
    assert answer.status == 200
    assert answer.body.startswith(b"POST /invoke HTTP/1.1\r\n")
    assert b"x-fc-control-path: /invoke\r\n" in answer.body
    assert b"x-fc-qualifier: prod\r\n" in answer.body
    assert b"invocation-type" not in answer.body
    assert b"hidden" not in answer.body
    assert b"x-mine: kept" in answer.body
    assert answer.body.endswith(b"\r\n\r\npayload")
    assert answer.headers["x-fc-request-id"].encode() in answer.body
    assert int(answer.headers["x-fc-invocation-duration"]) >= 0


@on_both_loops
async def test_a_functions_error_is_passed_on_and_recorded(tmp_path: Path) -> None:
    fault = b'{"errorMessage":"m","errorType":"ValueError","stackTrace":[]}'
    app = server(lambda *_: reply(fault, b"x-fc-error-type: UnhandledInvocationError"))
    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(event(b""))
        answer = await read_answer(reader)
        assert (answer.status, answer.body) == (200, fault)
        assert answer.headers["x-fc-error-type"] == "UnhandledInvocationError"
        await eventually(lambda: bool(w.records.seen))
        assert w.records.seen[0].outcome is Outcome.FUNCTION_ERROR
        writer.close()


@pytest.mark.parametrize("chunked", [False, True])
@on_both_loops
async def test_an_event_is_bounded(tmp_path: Path, chunked: bool) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await read_request(reader)
        except asyncio.IncompleteReadError:
            writer.close()
        else:
            writer.write(reply(b"ran"))

    async with world(tmp_path, app, invoke=InvokeLimits(event_bytes=1000, grace_s=1)) as w:
        reader, writer = await w.connect()
        if chunked:
            writer.write(b"POST %b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH)
            writer.write(b"258\r\n%b\r\n258\r\n%b\r\n0\r\n\r\n" % (bytes(600), bytes(600)))
        else:
            writer.write(event(bytes(1001)))
        answer = await read_answer(reader)
        assert answer.status == 413
        assert json.loads(answer.body)["Code"] == "PayloadTooLarge"
        await eventually(lambda: all(lease.released for lease in w.fleet.leases))
        writer.close()
        reader, writer = await w.connect()
        writer.write(event(bytes(1000)))
        assert (await read_answer(reader)).body == b"ran"
        writer.close()


@pytest.mark.parametrize("size", [0, 5, 300_000])
@on_both_loops
async def test_only_the_body_that_was_signed_is_delivered(tmp_path: Path, size: int) -> None:
    ran: list[bytes] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                _, body = await read_request(reader)
                ran.append(body)
                writer.write(reply(b"ran"))
        except asyncio.IncompleteReadError:
            writer.close()

    body = b"x" * size
    good = b"x-acs-content-sha256: " + hashlib.sha256(body).hexdigest().encode()
    wrong = b"x-acs-content-sha256: " + hashlib.sha256(b"other").hexdigest().encode()
    async with world(tmp_path, app) as w:
        for line, status in ((good, 200), (wrong, 403)):
            reader, writer = await w.connect()
            writer.write(event(body, line))
            assert (await read_answer(reader)).status == status
            writer.close()
        await eventually(lambda: all(lease.released for lease in w.fleet.leases))
    assert ran == [body]


@on_both_loops
async def test_the_wrong_key_gets_no_lease(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        reader, writer = await w.connect()
        writer.write(event(b"", b"Authorization: Bearer wrong"))
        assert (await read_answer(reader)).status == 403
        writer.close()
    assert w.fleet.leases == []


@on_both_loops
async def test_the_tail_of_the_log_comes_with_the_reply(tmp_path: Path) -> None:
    class Tails:
        async def tail_for_ended_request(self, account: str, function: str, request_id: str) -> bytes:
            await asyncio.sleep(0.05)  # the reply is there first
            return b"old" * 2000 + f"{account} {function} {request_id}".encode()

    async with world(tmp_path, mirror, logs=Tails()) as w:
        reader, writer = await w.connect()
        writer.write(event(b"", b"x-fc-log-type: Tail"))
        answer = await read_answer(reader)
        tail = base64.b64decode(answer.headers["x-fc-log-result"])
        assert len(tail) == 4096
        assert tail.endswith(b"acme echo " + answer.headers["x-fc-request-id"].encode())
        assert b"x-fc-log-type: Tail\r\n" in answer.body
        assert answer.body.endswith(b"\r\n\r\n")
        writer.write(event(b""))
        answer = await read_answer(reader)
        assert "x-fc-log-result" not in answer.headers
        assert b"x-fc-log-type" not in answer.body
        writer.close()


@dataclass(frozen=True)
class Taken:
    task_id: str
    request_id: str
    session_id: str


class Queue:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes, str]] = []

    async def submit(
        self, spec: FunctionSpec, *, qualifier: str, request_id: str, session_id: str, payload: bytes,
        headers: Mapping[str, str], http: Mapping[str, str] | None = None, hops: int = 0,
    ) -> Taken:  # fmt: skip
        self.seen.append((spec.name, qualifier, payload, headers.get("x-fc-async-task-id", "")))
        return Taken(headers.get("x-fc-async-task-id", ""), request_id, session_id)


@on_both_loops
async def test_asynchronous_events_go_to_the_queue(tmp_path: Path) -> None:
    queue = Queue()
    line = b"x-fc-invocation-type: Async"
    async with world(tmp_path, mirror, tasks=queue) as w:
        reader, writer = await w.connect()
        writer.write(event(b"later", line, b"x-fc-async-task-id: t1"))
        answer = await read_answer(reader)
        assert (answer.status, answer.body) == (202, b"")
        assert answer.headers["x-fc-request-id"]
        assert answer.headers["x-fc-async-task-id"] == "t1"
        writer.write(event(bytes(128 * 1024 + 1), line))
        assert (await read_answer(reader)).status == 413
        writer.close()
    assert queue.seen == [("echo", "LATEST", b"later", "t1")]
    assert w.fleet.leases == []


@on_both_loops
async def test_without_a_queue_asynchronous_events_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        reader, writer = await w.connect()
        for kind, status in ((b"Async", 501), (b"Whenever", 400)):
            writer.write(event(b"", b"x-fc-invocation-type: " + kind))
            assert (await read_answer(reader)).status == status
        writer.close()


# -- time


class Stuck:
    """Takes a request and never answers; lets go at a half-close if it is told to."""

    def __init__(self, *, lets_go: bool, first: bytes = b"") -> None:
        self.lets_go = lets_go
        self.first = first
        self.half_closed = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(self.first)
        assert await reader.read() == b""
        self.half_closed.set()
        if not self.lets_go:
            await self.end.wait()
        writer.close()


@pytest.mark.parametrize("lets_go", [True, False])
@on_both_loops
async def test_past_its_time_a_request_is_cancelled(tmp_path: Path, lets_go: bool) -> None:
    app = Stuck(lets_go=lets_go)
    async with world(tmp_path, app, spec(timeout_s=0.2)) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        answer = await read_answer(reader)
        assert answer.status == 504
        value = json.loads(answer.body)
        assert value["Code"] == value["errorType"] == "FunctionTimeout"
        assert value["Message"] == "Function timed out after 0.2 seconds"
        writer.write(event(b"{}"))  # the client's connection is still good
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["x-fc-error-type"]) == (200, "FunctionTimeout")
        assert json.loads(answer.body)["errorType"] == "FunctionTimeout"
        await eventually(lambda: len(w.records.seen) == 2)
        assert app.half_closed.is_set()
        app.end.set()
        writer.close()
    assert {record.outcome for record in w.records.seen} == {Outcome.TIMEOUT}
    for lease in w.fleet.leases:
        assert (lease.released, lease.abandoned) == ((1, []) if lets_go else (0, ["timeout"]))


@on_both_loops
async def test_a_cancelled_function_that_goes_on_talking_has_not_let_go(tmp_path: Path) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with world(tmp_path, app, spec(timeout_s=0.1), invoke=InvokeLimits(grace_s=0.3)) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        assert (await read_answer(reader)).status == 504
        await eventually(lambda: bool(w.records.seen))
        writer.close()
    assert w.fleet.leases[0].abandoned == ["timeout"]


@on_both_loops
async def test_past_its_time_a_begun_reply_is_broken_off(tmp_path: Path) -> None:
    app = Stuck(lets_go=True, first=b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
    async with world(tmp_path, app, spec(timeout_s=0.3)) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        await reader.readuntil(b"abc\r\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await eventually(lambda: bool(w.records.seen))
        writer.close()
    assert w.records.seen[0].outcome is Outcome.TIMEOUT


@pytest.mark.parametrize("lets_go", [True, False])
@on_both_loops
async def test_a_client_that_goes_cancels_its_request(tmp_path: Path, lets_go: bool) -> None:
    app = Stuck(lets_go=lets_go)
    async with world(tmp_path, app) as w:
        _, writer = await w.connect()
        writer.write(GET)
        await eventually(lambda: bool(w.fleet.leases))
        await asyncio.sleep(0.02)
        writer.close()
        await asyncio.wait_for(app.half_closed.wait(), 5)
        await eventually(lambda: bool(w.records.seen))
        app.end.set()
    (record,), (lease,) = w.records.seen, w.fleet.leases
    assert (record.outcome, record.status) == (Outcome.CANCELLED, 499)
    assert (lease.released, lease.abandoned) == ((1, []) if lets_go else (0, ["cancelled"]))


@on_both_loops
async def test_a_client_that_goes_while_it_waits_leaves_the_queue(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        w.fleet.gate = asyncio.Event()
        _, writer = await w.connect()
        writer.write(GET)
        await eventually(lambda: w.fleet.waiting == 1)
        writer.close()
        await eventually(lambda: w.fleet.cancelled == 1)
        await eventually(lambda: bool(w.records.seen))
        assert w.records.seen[0].outcome is Outcome.CANCELLED
        assert w.records.seen[0].instance_id == ""
    assert w.fleet.leases == []


@on_both_loops
async def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async with world(tmp_path, mirror) as w:
        w.fleet.error = Throttled("full", retry_after=2.5)
        reader, writer = await w.connect()
        writer.write(event(b""))
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["retry-after"]) == (429, "3")
        await eventually(lambda: bool(w.records.seen))
        writer.close()
    assert w.records.seen[0].outcome is Outcome.THROTTLED


# -- functions that break


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\ncontent-le"])
@on_both_loops
async def test_a_function_that_dies_is_named_as_the_reason(tmp_path: Path, first: bytes) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(first)
        writer.close()

    async with world(tmp_path, app) as w:
        w.fleet.fault = InstanceExited(Fault(type="OutOfMemory", message="used more than 512 MB"))
        reader, writer = await w.connect()
        writer.write(GET)
        answer = await read_answer(reader)
        assert (answer.status, json.loads(answer.body)["errorType"]) == (502, "OutOfMemory")
        writer.write(event(b""))
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["x-fc-error-type"]) == (200, "InstanceExited")
        writer.close()
        await eventually(lambda: len(w.records.seen) == 2)
    assert {record.outcome for record in w.records.seen} == {Outcome.FUNCTION_ERROR}
    assert [(lease.released, lease.failures) for lease in w.fleet.leases] == [(1, 1), (1, 1)]


@on_both_loops
async def test_a_socket_nobody_serves_is_a_fault_of_the_instance(tmp_path: Path) -> None:
    async with world(tmp_path, None) as w:
        w.fleet.fault = Unavailable("the instance is gone", retry_after=1)
        reader, writer = await w.connect()
        writer.write(GET)
        assert (await read_answer(reader)).status == 503
        writer.close()
    assert w.fleet.leases[0].released == 1


class Counting:
    """Closes its connections after each reply, or dies on the second request, and counts what it runs."""

    def __init__(self) -> None:
        self.ran = 0

    async def dies_on_second(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await read_request(reader)
            self.ran += 1
            if self.ran < 2:
                writer.write(reply(b"ok"))
        writer.close()


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@on_both_loops
async def test_a_request_that_was_taken_is_never_sent_twice(tmp_path: Path, method: bytes) -> None:
    app = Counting()
    async with world(tmp_path, app.dies_on_second) as w:
        w.fleet.fault = InstanceExited(Fault(type="Exited", message="exit code 1"))
        reader, writer = await w.connect()
        for status in (200, 502):
            writer.write(b"%b /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" % method)
            assert (await read_answer(reader)).status == status
        writer.close()
    assert app.ran == 2


@on_both_loops
async def test_connections_that_an_idle_function_closed_are_not_used(tmp_path: Path) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(reply(b"once"))
        await writer.drain()
        writer.close()

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        for _ in range(50):
            writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
            assert (await read_answer(reader)).body == b"once"
            await asyncio.sleep(0)
        writer.close()


@on_both_loops
async def test_a_long_socket_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    async with world(tmp_path, mirror) as w:
        (folder / "app.sock").symlink_to(w.app_socket)
        w.fleet.app_socket = folder / "app.sock"
        reader, writer = await w.connect()
        writer.write(GET)
        assert (await read_answer(reader)).status == 200
        writer.close()


@on_both_loops
async def test_a_reply_before_the_request_has_ended(tmp_path: Path) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"enough", status=b"400 Bad Request"))
        await writer.drain()
        await reader.read()
        writer.close()

    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000))
        assert (await read_answer(reader)).body == b"enough"
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await eventually(lambda: bool(w.records.seen))
    assert w.fleet.leases[0].released == 1


@on_both_loops
async def test_the_rest_of_an_answered_upload_is_not_taken_for_a_request(tmp_path: Path) -> None:
    """The connection of a request that was answered early carries no other request."""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:  # keeps the connection, never reads a body
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(reply(head.split()[0]))
        writer.close()

    async with world(tmp_path, app) as w:
        for _ in range(3):
            reader, writer = await w.connect()
            writer.write(b"PUT /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")
            answer = await read_answer(reader)
            # Who isn't told would send its next request into a connection that is closed.
            assert (answer.body, answer.headers["connection"]) == (b"PUT", "close")
            writer.close()
            reader, writer = await w.connect()
            writer.write(GET)
            answer = await read_answer(reader)
            assert (answer.body, answer.headers.get("connection")) == (b"GET", None)
            writer.close()


@on_both_loops
async def test_a_request_gone_at_shutdown_gives_its_lease_back(tmp_path: Path) -> None:
    app = Stuck(lets_go=True)
    async with world(tmp_path, app) as w:
        reader, writer = await w.connect()
        writer.write(GET)
        await eventually(lambda: bool(w.fleet.leases))
        await w.gateway.close(drain_s=0.1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
    lease: Any = w.fleet.leases[0]
    assert lease.released + len(lease.abandoned) == 1
    assert len(w.records.seen) == 1


# --- events that no client waits for -------------------------------------------------------------------------------


@on_both_loops
async def test_an_event_of_a_trigger_is_run_as_an_invocation(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def answer(head: bytes, body: bytes) -> bytes:
        seen.append(head + body)
        return reply(b"done")

    async with world(tmp_path, server(answer)) as w:
        run = await w.gateway.tasks.invoke(spec(), qualifier="prod", request_id="r-1", payload=b'{"a": 1}')
        assert (run.kind, run.begun, run.result) == (Kind.SUCCEEDED, True, b"done")
        assert seen[0].startswith(b"POST /invoke HTTP/1.1\r\n")
        assert seen[0].endswith(b'\r\n\r\n{"a": 1}')
        for line in (b"x-fc-request-id: r-1", b"x-fc-qualifier: prod", b"content-type: application/json"):
            assert line in seen[0]
        assert w.fleet.leases[0].released == 1
        assert [(one.request_id, one.outcome) for one in w.records.seen] == [("r-1", Outcome.OK)]


@on_both_loops
async def test_how_an_event_of_a_trigger_fails(tmp_path: Path) -> None:
    fault = b'{"errorMessage":"m","errorType":"ValueError","stackTrace":[]}'
    app = server(lambda *_: reply(fault, b"x-fc-error-type: UnhandledInvocationError"))
    async with world(tmp_path, app) as w:
        run = await w.gateway.tasks.invoke(spec(), qualifier="LATEST", request_id="r-1", payload=b"")
        assert (run.kind, run.error_type, run.error) == (Kind.FAULT, "ValueError", "m")
        w.fleet.error = Throttled("no instance")
        run = await w.gateway.tasks.invoke(spec(), qualifier="LATEST", request_id="r-2", payload=b"")
        assert (run.kind, run.begun, run.error) == (Kind.TROUBLE, False, "no instance")
        w.fleet.error = NotFound("no such version")
        run = await w.gateway.tasks.invoke(spec(), qualifier="9", request_id="r-3", payload=b"")
        assert (run.kind, run.error) == (Kind.REFUSED, "no such version")


@on_both_loops
async def test_an_event_of_a_trigger_that_is_broken_off_gives_its_lease_back(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        begun.set()
        await reader.read()  # the half-close: it is to end
        writer.close()

    async with world(tmp_path, app) as w:
        work = asyncio.create_task(w.gateway.tasks.invoke(spec(), qualifier="L", request_id="r-1", payload=b""))
        await begun.wait()
        work.cancel()
        await asyncio.wait({work}, timeout=5)
        assert work.cancelled()
        assert w.fleet.leases[0].released == 1
        # One that waits for an instance goes at once.
        w.fleet.gate = asyncio.Event()
        work = asyncio.create_task(w.gateway.tasks.invoke(spec(), qualifier="L", request_id="r-2", payload=b""))
        await eventually(lambda: w.fleet.waiting == 1)
        work.cancel()
        await asyncio.wait({work}, timeout=5)
        assert (work.cancelled(), w.fleet.cancelled) == (True, 1)
