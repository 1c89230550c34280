"""The model proxy: what a room may call, and what it never sees."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from roost.isolation.egress.budget import FAILURES, Budget
from roost.isolation.egress.model_proxy import MAX_REQUEST, ModelEndpoint, ModelProxy, room_environment
from roost.model.errors import InvalidArgument, Throttled

KEY = "sk-of-the-host"


class Upstream:
    """What the proxy called, and what it gets back."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.reply = httpx.Response(200, json={"ok": True}, headers={"set-cookie": "a=b", "x-request-id": "r"})

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        return self.reply


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def room(upstream: Upstream) -> AsyncIterator[httpx.AsyncClient]:
    """A client as code in a room has it."""
    endpoint = ModelEndpoint(base_url="https://models.example/v1/", api_key=KEY)
    async with httpx.AsyncClient(transport=httpx.MockTransport(upstream)) as client:
        proxy = ModelProxy(endpoint, client)
        transport = httpx.ASGITransport(app=proxy)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url=room_environment()["OPENAI_BASE_URL"]) as room:
            yield room


async def test_the_key_is_put_in_by_the_host(room: httpx.AsyncClient, upstream: Upstream) -> None:
    headers = {"authorization": "Bearer held-by-the-host", "x-forwarded-for": "evil", "cookie": "c=d"}
    reply = await room.post("/chat/completions", json={"model": "m"}, headers=headers)
    assert reply.json() == {"ok": True}
    assert reply.headers["x-request-id"] == "r"
    assert "set-cookie" not in reply.headers
    [seen] = upstream.requests
    assert str(seen.url) == "https://models.example/v1/chat/completions"
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert "cookie" not in seen.headers
    assert "x-forwarded-for" not in seen.headers
    assert json.loads(seen.content) == {"model": "m"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/files"),
        ("DELETE", "/models/x"),
        ("GET", "/chat/completions"),
        ("POST", "/chat/completions/../../admin"),
        ("POST", "/chat/completions/x"),
        ("GET", "/organization/api_keys"),
    ],
)
async def test_nothing_else_is_offered(room: httpx.AsyncClient, upstream: Upstream, method: str, path: str) -> None:
    reply = await room.request(method, path)
    assert reply.status_code == 404
    assert reply.json()["error"]["type"] == "roost_proxy_error"
    assert upstream.requests == []


async def test_a_request_that_is_too_large(room: httpx.AsyncClient, upstream: Upstream) -> None:
    reply = await room.post("/chat/completions", content=bytes(MAX_REQUEST + 1))
    assert reply.status_code == 413
    assert upstream.requests == []


async def test_an_endpoint_that_fails_is_said_without_its_address() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route to models.example")

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
        proxy = ModelProxy(ModelEndpoint(base_url="http://models.example/v1"), client)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=proxy),  # type: ignore[arg-type]
            base_url=room_environment()["OPENAI_BASE_URL"],
        ) as room:
            reply = await room.get("/models")
    assert reply.status_code == 502
    assert "models.example" not in reply.text


async def test_calls_and_bytes_are_counted_and_end_at_the_limit(upstream: Upstream) -> None:
    calls, count = 0, 0

    def call() -> None:
        nonlocal calls
        if calls == 2:
            raise Throttled("enough for today", retry_after=60)
        calls += 1

    def add(size: int) -> None:
        nonlocal count
        count += size

    async with httpx.AsyncClient(transport=httpx.MockTransport(upstream)) as client:
        proxy = ModelProxy(ModelEndpoint(base_url="https://m.example/v1"), client, on_call=call, on_bytes=add)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=proxy),  # type: ignore[arg-type]
            base_url=room_environment()["OPENAI_BASE_URL"],
        ) as room:
            sent = [await room.post("/chat/completions", content=b"{}") for _ in range(3)]
    assert [reply.status_code for reply in sent] == [200, 200, 429]
    assert sent[2].json()["error"]["message"] == "enough for today"
    assert sent[2].headers["retry-after"] == "60"
    assert len(upstream.requests) == 2
    assert count == 3 * 2 - 2 + 2 * len(sent[0].content)


@pytest.mark.parametrize("url", ["ftp://x/v1", "x", "", "http://user:pass@x/v1", "file:///etc/passwd"])
def test_an_endpoint_that_is_not_one(url: str) -> None:
    with pytest.raises(InvalidArgument):
        ModelEndpoint(base_url=url)


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(ModelEndpoint(base_url="https://models.example/v1", api_key=KEY))


async def test_a_budget_ends_calls_and_names_itself(upstream: Upstream) -> None:
    budget = Budget(lambda: 0.0, most=2)
    async with httpx.AsyncClient(transport=httpx.MockTransport(upstream)) as client:
        for _ in range(2):  # a room that is made anew goes on with the same one
            proxy = ModelProxy(ModelEndpoint(base_url="https://m.example/v1"), client, budget=budget)
            transport = httpx.ASGITransport(app=proxy)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://room/openai/v1") as room:
                assert (await room.post("/chat/completions", json={})).status_code == 200
        async with httpx.AsyncClient(transport=transport, base_url="http://room/openai/v1") as room:
            reply = await room.post("/chat/completions", json={})
    assert reply.status_code == 429
    assert "2 times, and may no more (model_calls)" in reply.json()["error"]["message"]
    assert "retry-after" not in reply.headers
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("failure", [500, 429, None])
async def test_a_model_that_fails_is_left_alone_for_longer_and_longer(failure: int | None) -> None:
    now, calls, works = 0.0, 0, False

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if works:
            return httpx.Response(200, json={})
        if failure is None:
            raise httpx.ConnectError("nobody is there")
        return httpx.Response(failure, json={})

    budget = Budget(lambda: now)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        proxy = ModelProxy(ModelEndpoint(base_url="https://m.example/v1"), client, budget=budget)
        transport = httpx.ASGITransport(app=proxy)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://room/openai/v1") as room:
            for _ in range(30):
                reply = await room.post("/chat/completions", json={})
            assert calls == FAILURES
            assert reply.status_code == 429
            assert "failed 10 times in a row" in reply.json()["error"]["message"]
            waits = []
            for _ in range(9):
                reply = await room.post("/chat/completions", json={})
                waits.append(int(reply.headers["retry-after"]))
                now += waits[-1]
                await room.post("/chat/completions", json={})
            assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
            now, works = now + 60, True
            for _ in range(20):
                assert (await room.post("/chat/completions", json={})).status_code == 200
