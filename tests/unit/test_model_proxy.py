"""The model proxy: what a room may call, and what it never sees."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from roost.isolation.egress.model_proxy import MAX_REQUEST, ModelEndpoint, ModelProxy, room_environment
from roost.model.errors import InvalidArgument

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


@pytest.mark.parametrize("url", ["ftp://x/v1", "x", "", "http://user:pass@x/v1", "file:///etc/passwd"])
def test_an_endpoint_that_is_not_one(url: str) -> None:
    with pytest.raises(InvalidArgument):
        ModelEndpoint(base_url=url)


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(ModelEndpoint(base_url="https://models.example/v1", api_key=KEY))
