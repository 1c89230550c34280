"""How sessions travel: header, cookie, and the two transports of MCP."""

from __future__ import annotations

import asyncio
from pathlib import Path

from roost.instances.lease import SessionRef
from roost.model.function import Affinity, FunctionSpec, SessionPolicy
from tests.support.gateway_world import (
    eventually,
    mirror,
    on_both_loops,
    read_answer,
    read_chunks,
    read_head,
    read_request,
    reply,
    server,
    spec,
    world,
)


def with_affinity(affinity: Affinity, **policy: object) -> FunctionSpec:
    return spec(sessions=SessionPolicy(affinity=affinity, **policy))  # type: ignore[arg-type]


def get(*lines: bytes, method: bytes = b"GET", target: bytes = b"/echo/x") -> bytes:
    fields = b"".join(line + b"\r\n" for line in lines)
    return b"%b %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (method, target, fields)


@on_both_loops
async def test_a_header_names_the_session_or_is_given_one(tmp_path: Path) -> None:
    async with world(tmp_path, mirror, with_affinity(Affinity.HEADER_FIELD, header="x-conversation")) as w:
        reader, writer = await w.connect()
        writer.write(get())
        assert (await read_answer(reader)).headers["x-conversation"] == "generated-1"
        writer.write(get(b"X-Conversation: mine-1"))
        assert "x-conversation" not in (await read_answer(reader)).headers
        writer.write(get(b"X-Conversation: -bad"))
        answer = await read_answer(reader)
        assert (answer.status, b"InvalidArgument" in answer.body) == (400, True)
        body = b"POST /2023-03-30/functions/echo/invocations HTTP/1.1\r\nHost: h\r\ncontent-length: 0\r\n"
        writer.write(body + b"x-conversation: mine-2\r\n\r\n")
        assert (await read_answer(reader)).status == 200
        writer.close()
    assert w.fleet.refs == [SessionRef(id="", generated=True), SessionRef(id="mine-1"), SessionRef(id="mine-2")]
    await eventually(lambda: len(w.records.seen) >= 3)
    assert [record.session_id for record in w.records.seen if record.instance_id] == ["generated-1", "mine-1", "mine-2"]


@on_both_loops
async def test_a_lost_instance_is_told(tmp_path: Path) -> None:
    async with world(tmp_path, mirror, with_affinity(Affinity.HEADER_FIELD, header="x-conversation")) as w:
        w.fleet.restored = True
        reader, writer = await w.connect()
        writer.write(get(b"x-conversation: a"))
        assert (await read_answer(reader)).headers["x-roost-session-restored"] == "files"
        writer.close()


@on_both_loops
async def test_only_the_server_plants_the_cookie(tmp_path: Path) -> None:
    async with world(tmp_path, mirror, with_affinity(Affinity.GENERATED_COOKIE)) as w:
        w.fleet.known = {"generated-1"}
        reader, writer = await w.connect()
        planted = "x-fc-cookie-session-id=generated-1; Max-Age=3600; Path=/echo; HttpOnly; SameSite=Lax"
        for line in (b"x: y", b"Cookie: x-fc-cookie-session-id=made-up", b"Cookie: x-fc-cookie-session-id=../etc"):
            writer.write(get(line))
            answer = await read_answer(reader)
            assert (answer.status, answer.headers["set-cookie"]) == (200, planted)
        writer.write(get(b'Cookie: a=b; x-fc-cookie-session-id="generated-1"'))
        answer = await read_answer(reader)
        assert answer.status == 200
        assert "set-cookie" not in answer.headers
        writer.close()
    fresh, known = SessionRef(id="", generated=True), SessionRef(id="generated-1", generated=True)
    assert w.fleet.refs == [fresh, SessionRef(id="made-up", generated=True), fresh, fresh, known]


@on_both_loops
async def test_streamable_http_sessions_follow_the_id_of_the_users_server(tmp_path: Path) -> None:
    def app(head: bytes, body: bytes) -> bytes:
        return reply(b"{}") if b"cp-session-id" in head.lower() else reply(b"{}", b"Mcp-Session-Id: 6f1c")

    async with world(tmp_path, server(app), with_affinity(Affinity.MCP_STREAMABLE_HTTP)) as w:
        w.fleet.known = {"6f1c"}
        reader, writer = await w.connect()
        initialize = get(b"Content-Length: 0", method=b"POST", target=b"/echo/mcp")
        writer.write(initialize)
        assert (await read_answer(reader)).headers["mcp-session-id"] == "6f1c"
        assert w.directory.bound == {"6f1c": "i-1"}
        writer.write(get(b"Mcp-Session-Id: 6f1c", target=b"/echo/mcp"))
        assert (await read_answer(reader)).status == 200
        writer.write(get(b"Mcp-Session-Id: unknown", target=b"/echo/mcp"))
        assert (await read_answer(reader)).status == 404
        writer.write(get(b"Mcp-Session-Id: 6f1c", method=b"DELETE", target=b"/echo/mcp"))
        assert (await read_answer(reader)).status == 200
        assert w.directory.ended == ["6f1c"]
        writer.close()
    assert w.fleet.refs[0] is None


async def test_a_session_that_the_users_server_has_forgotten_is_over(tmp_path: Path) -> None:
    forgotten = reply(b"{}", status=b"404 Not Found")
    app = server(lambda head, body: forgotten)
    for affinity, ended in ((Affinity.MCP_STREAMABLE_HTTP, ["6f1c"]), (Affinity.MCP_SSE, [])):
        async with world(tmp_path, app, with_affinity(affinity)) as w:
            w.fleet.known = {"6f1c"}
            reader, writer = await w.connect()
            writer.write(get(b"Mcp-Session-Id: 6f1c", target=b"/echo/mcp?session_id=6f1c"))
            assert (await read_answer(reader)).status == 404
            assert w.directory.ended == ended
            writer.close()


@on_both_loops
async def test_sse_sessions_are_learnt_from_the_first_event(tmp_path: Path) -> None:
    end = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read_request(reader)
        if head.startswith(b"POST"):
            writer.write(reply(b"Accepted", status=b"202 Accepted"))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in (b": hello\n\nevent: endp", b"oint\ndata: /messages/?session_id=ab12\n", b"\nevent: message\n\n"):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0.01)
        await end.wait()
        writer.write(b"0\r\n\r\n")

    async with world(tmp_path, app, with_affinity(Affinity.MCP_SSE, sse_path="/sse")) as w:
        w.fleet.known = {"ab12"}
        reader, writer = await w.connect()
        writer.write(get(target=b"/echo/sse"))
        assert (await read_head(reader))[0] == 200
        seen = b""
        async for piece in read_chunks(reader):
            seen += piece
            if seen.endswith(b"event: message\n\n"):
                break
        expected = b": hello\n\nevent: endpoint\ndata: /echo/messages/?session_id=ab12\n\nevent: message\n\n"
        assert seen == expected
        assert w.directory.bound == {"ab12": "i-1"}
        poster = await w.connect()
        for query, status in ((b"session_id=ab12", 202), (b"sessionId=zz", 404)):
            poster[1].write(get(b"Content-Length: 0", method=b"POST", target=b"/echo/messages/?" + query))
            assert (await read_answer(poster[0])).status == status
        end.set()
        assert await reader.readuntil(b"0\r\n\r\n")
        await eventually(lambda: w.directory.ended == ["ab12"])
        writer.close()
        poster[1].close()
    assert w.fleet.refs[:2] == [None, SessionRef(id="ab12", generated=True)]
