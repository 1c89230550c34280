"""The real guest as a process: WSGI, ASGI with WebSocket, asynchronous event handlers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.support.guest import Guest, dial, read_all


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with Guest(tmp_path) as guest:
        yield guest


WSGI = """
    class App:
        def __call__(self, environ, start_response):
            path = environ["PATH_INFO"]
            if path == "/fault":
                raise LookupError("wsgi fault")
            if path == "/lines":
                start_response("200 OK", [("Content-Type", "text/plain")])
                return (line.upper() for line in environ["wsgi.input"])
            if path == "/late":
                def parts():
                    yield b"first"
                    raise LookupError("late")
                start_response("200 OK", [])
                return parts()
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            text = "|".join([environ["REQUEST_METHOD"], path, environ["QUERY_STRING"], environ["HTTP_X_COLOUR"]])
            start_response("201 Made", [("X-App", "wsgi"), ("Content-Length", str(len(text) + len(body)))])
            return [text.encode("latin-1"), body]
    handler = App()
"""


def test_wsgi_gets_the_request_and_its_reply_goes_back(guest: Guest) -> None:
    guest.ready(WSGI)
    status, headers, body = guest.request("PUT", "/a%20b?x=1", b"BODY", {"x-colour": "red"})
    assert (status, headers["x-app"], body) == (201, "wsgi", b"PUT|/a b|x=1|redBODY")


def test_wsgi_reads_and_writes_streams(guest: Guest) -> None:
    guest.ready(WSGI)
    lines = (f"line {number}\n".encode() for number in range(100))
    _, headers, body = guest.request("POST", "/lines", lines)
    assert headers["transfer-encoding"] == "chunked"
    assert body.endswith(b"LINE 99\n")
    assert body.count(b"\n") == 100


def test_wsgi_answers_a_head_request_without_a_body(guest: Guest) -> None:
    guest.ready(WSGI)
    status, headers, body = guest.request("HEAD", "/", headers={"x-colour": "red"})
    assert (status, headers["content-length"], body) == (201, "11", b"")


def test_wsgi_faults(guest: Guest) -> None:
    guest.ready(WSGI)
    status, headers, body = guest.request("GET", "/fault")
    assert (status, headers["x-fc-error-type"]) == (502, "UnhandledInvocationError")
    assert json.loads(body)["errorType"] == "LookupError"
    assert not read_all(guest.raw("/late", control="/http-invoke")).endswith(b"0\r\n\r\n")


def test_async_events_run_side_by_side_on_one_loop(guest: Guest) -> None:
    guest.ready(
        """
        import asyncio
        arrived = 0
        both = asyncio.Event()
        async def handler(event, context):
            global arrived
            arrived += 1
            if arrived == 2:
                both.set()
            await both.wait()
            return {"id": context.request_id}
        """,
        concurrency=2,
    )
    first = guest.raw()
    assert json.loads(guest.invoke(request="r-2")[2]) == {"id": "r-2"}
    assert b"r-raw" in first.recv(4096)
    first.close()


def test_async_events_over_the_concurrency_wait(guest: Guest) -> None:
    guest.ready("""
        import asyncio
        running = 0
        async def handler(event, context):
            global running
            running += 1
            seen = running
            await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            running -= 1
            return seen
    """)
    waiting = [guest.raw() for _ in range(4)]
    for sock in waiting:
        assert sock.recv(4096).endswith(b"\r\n\r\n1")
        sock.close()


def test_a_request_that_waits_for_its_turn_goes_with_its_connection(guest: Guest) -> None:
    guest.ready(
        """
        import asyncio
        async def handler(event, context):
            print("began", event.decode())
            if event == b"holds":
                await asyncio.sleep(60)
            return event
        """,
        concurrency=1,
    )
    holds = guest.raw(body=b"holds")
    guest.control.wait_for_text("began holds")
    waits = guest.raw(body=b"waits")
    waits.shutdown(1)
    assert read_all(waits) == b""
    holds.shutdown(1)
    assert read_all(holds) == b""
    assert guest.invoke(b"next")[2] == b"next"
    assert "began waits" not in guest.control.wait_for_text("began next")


def test_requests_that_were_sent_ahead_are_answered_in_turn(guest: Guest) -> None:
    guest.ready("async def handler(event, context): return event", concurrency=2)
    head = "POST /invoke HTTP/1.1\r\nx-fc-control-path: /invoke\r\ncontent-length: {}\r\n{}\r\n"
    bodies = ["one", "x" * 300_000, "", "last"]
    sent = [head.format(len(body), "connection: close\r\n" * (body == "last")) + body for body in bodies]
    with dial(guest.app_path) as sock:
        sender = threading.Thread(target=sock.sendall, args=("".join(sent).encode(),))
        sender.start()
        replies = read_all(sock)
        sender.join()
    assert [reply.partition(b"\r\n\r\n")[2].decode() for reply in replies.split(b"HTTP/1.1 200 OK\r\n")[1:]] == bodies


@pytest.mark.parametrize(
    "head", ["transfer-encoding: chunked\r\n\r\nnonsense\r\n", "content-length: x\r\n\r\n", "a b\r\n\r\n"]
)
def test_what_is_no_request_is_refused(guest: Guest, head: str) -> None:
    guest.ready("async def handler(event, context): return event")
    with dial(guest.app_path) as sock:
        sock.sendall(f"POST /invoke HTTP/1.1\r\n{head}".encode())
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    assert guest.invoke(b"good")[2] == b"good"


def test_out_of_descriptors_new_connections_wait(guest: Guest) -> None:
    guest.ready("""
        import os
        held = []
        async def handler(event, context):
            if event == b"take":
                try:
                    while True:
                        held.append(os.dup(0))
                except OSError:
                    return "none left"
            while held:
                os.close(held.pop())
            return event
    """)
    first = guest.connect()

    def ask(event: str) -> bytes:
        first.request("POST", "/invoke", event, {"x-fc-control-path": "/invoke"})
        return first.getresponse().read()

    assert ask("take") == b"none left"
    second = guest.raw(body=b"waited")
    assert ask("free") == b"free"
    assert second.recv(65536).endswith(b"waited")
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("raise ValueError('no')", "ValueError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise __import__('asyncio').CancelledError", "CancelledError"),
    ],
)
def test_an_async_fault_ends_its_request_and_not_the_worker(guest: Guest, statement: str, kind: str) -> None:
    guest.ready(f"""
        async def handler(event, context):
            if event == b"good":
                return "fine"
            {statement}
    """)
    assert json.loads(guest.invoke()[2])["errorType"] == kind
    assert guest.invoke(b"good")[2] == b"fine"


def test_an_async_generator_streams(guest: Guest) -> None:
    guest.ready("""
        async def handler(event, context):
            yield {"statusCode": 203, "headers": {"x-a": "b"}}
            yield "one"
            yield {"two": 2}
    """)
    status, headers, body = guest.request("GET", "/")
    assert (status, headers["x-a"], body) == (203, "b", b'one{"two": 2}\n')


ASGI = """
    import asyncio
    events = []

    async def handler(scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["word"] = "from lifespan"
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            print("lifespan is over")
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await http(scope, receive, send)
        else:
            await websocket(scope, receive, send)

    async def http(scope, receive, send):
        if scope["path"] == "/fault":
            raise LookupError("asgi fault")
        if scope["path"] == "/state":
            await reply(send, scope["state"]["word"].encode())
        elif scope["path"] == "/echo":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            more = True
            while more:
                message = await receive()
                more = message["more_body"]
                await send({"type": "http.response.body", "body": message["body"], "more_body": more})
        elif scope["path"] == "/wait":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-early", b"1")]})
            assert (await receive())["type"] == "http.request"
            message = await receive()
            print("saw", message["type"])
        elif scope["path"] == "/deaf":
            try:
                await asyncio.sleep(100)
            finally:
                print("deaf was cancelled")
        elif scope["path"] == "/background":
            await reply(send, b"answered")
            await asyncio.sleep(0.05)
            print("background done")
        elif scope["path"] == "/short":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async def reply(send, body):
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def websocket(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"] == "/refuse":
            await send({"type": "websocket.close"})
            return
        if scope["path"] == "/deny":
            await send({"type": "websocket.http.response.start", "status": 418, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"teapot"})
            return
        await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
        if scope["path"] == "/fault":
            raise LookupError("websocket fault")
        if scope["path"] == "/quiet":
            await asyncio.sleep(100)
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                print("websocket closed", message["code"], message["reason"])
                return
            if message.get("text") == "bye":
                await send({"type": "websocket.close", "code": 3001, "reason": "so long"})
                return
            await send({k: v for k, v in message.items() if k != "type"} | {"type": "websocket.send"})
"""


@pytest.fixture
def app(guest: Guest) -> Guest:
    return guest.ready(ASGI, concurrency=8)


def test_asgi_state_comes_from_the_lifespan(app: Guest) -> None:
    assert app.request("GET", "/state")[2] == b"from lifespan"


def test_asgi_lifespan_ends_before_the_room(app: Guest) -> None:
    app.control.send(op="pre_stop")
    app.control.wait_for("pre_stopped")
    assert "lifespan is over" in app.control.text()


def test_a_failed_lifespan_fails_the_start(guest: Guest) -> None:
    event = guest.start("""
        async def handler(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no database"})
    """)
    assert event["error"]["errorType"] == "LifespanFailed"
    assert "no database" in event["error"]["errorMessage"]


def test_asgi_streams_a_large_body_both_ways(app: Guest) -> None:
    async def main() -> int:
        reader, writer = await asyncio.open_unix_connection(app.app_path)
        writer.write(b"POST /echo HTTP/1.1\r\nhost: f\r\ntransfer-encoding: chunked\r\n\r\n")

        async def send() -> None:
            for _ in range(320):
                writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")

        sending = asyncio.ensure_future(send())
        await reader.readuntil(b"\r\n\r\n")
        size = 0
        while (length := int(await reader.readline(), 16)) > 0:
            size += len((await reader.readexactly(length + 2))[:-2])
        await sending
        writer.close()
        return size

    assert asyncio.run(asyncio.wait_for(main(), 30)) == 320 * 65536


def test_asgi_faults(app: Guest) -> None:
    status, _, body = app.request("GET", "/fault")
    assert status == 502
    assert json.loads(body)["errorType"] == "LookupError"
    assert read_all(app.raw("/short", control="/http-invoke")).endswith(b"half\r\n")


def test_the_next_request_does_not_wait_for_work_in_the_background(app: Guest) -> None:
    connection = app.connect()
    for _ in range(2):
        connection.request("GET", "/background")
        assert connection.getresponse().read() == b"answered"
    assert app.control.wait_for_text("background done")
    connection.close()


def test_a_head_goes_out_while_the_application_waits_and_a_disconnect_reaches_it(app: Guest) -> None:
    sock = app.raw("/wait", control="/http-invoke")
    assert b"x-early: 1" in sock.recv(4096)
    sock.shutdown(1)
    assert read_all(sock) == b""
    app.control.wait_for_text("saw http.disconnect")


def test_an_application_that_does_not_listen_is_cancelled(app: Guest) -> None:
    sock = app.raw("/deaf", control="/http-invoke")
    app.control.wait_for_text("Start RequestId: r-raw")
    sock.shutdown(1)
    assert read_all(sock) == b""
    app.control.wait_for_text("deaf was cancelled")


def websocket(guest: Guest, path: str, **options: Any) -> Any:
    return unix_connect(str(guest.app_path), f"ws://f{path}", compression=None, **options)


async def test_websocket_echoes_text_binary_and_fragments(app: Guest) -> None:
    async with websocket(app, "/", subprotocols=["chat"], max_size=None) as client:
        assert client.subprotocol == "chat"
        for message in ("text \u2713", b"\x00\xff", "x" * 200_000, bytes(3_000_000)):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["in ", "three ", "parts"])
        assert await client.recv() == "in three parts"


async def test_websocket_answers_pings_although_the_application_does_not_listen(app: Guest) -> None:
    async with websocket(app, "/quiet") as client:
        await asyncio.wait_for(await client.ping(), 10)


async def test_websocket_close_codes_travel_both_ways(app: Guest) -> None:
    async with websocket(app, "/") as client:
        await client.send("bye")
        with pytest.raises(ConnectionClosedError) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3001, "so long")
    async with websocket(app, "/") as client:
        await client.close(3002, "from here")
    await asyncio.to_thread(app.control.wait_for_text, "websocket closed 3002 from here")


async def test_websocket_refusals_and_faults(app: Guest) -> None:
    for path, status in (("/refuse", 403), ("/deny", 418)):
        with pytest.raises(InvalidStatus) as refused:
            await websocket(app, path).__aenter__()
        assert refused.value.response.status_code == status
    async with websocket(app, "/fault") as client:
        with pytest.raises(ConnectionClosedError) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011


async def test_websocket_too_large_a_message_closes_with_1009(app: Guest) -> None:
    async with websocket(app, "/") as client:
        with pytest.raises(ConnectionClosedError) as closed:
            await client.send(bytes(17 << 20))
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_websocket_half_close_is_a_disconnect(app: Guest) -> None:
    async with websocket(app, "/") as client:
        client.transport.write_eof()
        await asyncio.to_thread(app.control.wait_for_text, "websocket closed 1006")
