"""The one way from a room to a model: a reverse proxy on the host that holds the key.

The room calls `http://127.0.0.1:3128/openai/v1/...` with any key; the proxy replaces it and calls the configured
OpenAI-compatible endpoint. The room chooses neither host nor scheme, and never sees the credential.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from roost.model.errors import InvalidArgument

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PREFIX = "/openai/v1/"
DEFAULT_BASE_URL = "https://api.openai.com/v1"
#: What an OpenAI-compatible client calls to talk to a model; files, fine-tuning and administration are not offered.
OPERATIONS = {
    "chat/completions": "POST",
    "completions": "POST",
    "responses": "POST",
    "embeddings": "POST",
    "models": "GET",
}
MAX_REQUEST = 32 << 20
_PASSED_REQUEST = {"content-type", "accept", "openai-beta"}
_PASSED_RESPONSE = {"content-type", "retry-after", "x-request-id", "openai-processing-ms"}


@dataclass(frozen=True, kw_only=True)
class ModelEndpoint:
    """Where a function's model is. `base_url` ends before `/chat/completions`."""

    base_url: str
    api_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise InvalidArgument(f"OPENAI_BASE_URL must be an http(s) URL without a user, not '{self.base_url}'.")


def room_environment() -> dict[str, str]:
    """What a room gets in place of the endpoint and its key."""
    return {"OPENAI_BASE_URL": f"http://127.0.0.1:3128{PREFIX.rstrip('/')}", "OPENAI_API_KEY": "held-by-the-host"}


class ModelProxy:
    """An ASGI application for one room. The client is shared; it bounds connections and waits."""

    def __init__(self, endpoint: ModelEndpoint, client: httpx.AsyncClient) -> None:
        self._endpoint = endpoint
        self._client = client

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        operation = scope["path"].removeprefix(PREFIX)
        if OPERATIONS.get(operation) != scope["method"]:
            await _refuse(send, 404, f"The model proxy does not offer {scope['method']} {scope['path']}.")
        elif (body := await _body(receive)) is None:
            await _refuse(send, 413, f"A request to the model has at most {MAX_REQUEST >> 20} MiB.")
        else:
            await self._forward(scope, operation, body, send)

    async def _forward(self, scope: Message, operation: str, body: bytes, send: Send) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        passed = {k: v for k, v in headers.items() if k in _PASSED_REQUEST}
        if self._endpoint.api_key:
            passed["authorization"] = f"Bearer {self._endpoint.api_key}"
        url = f"{self._endpoint.base_url.rstrip('/')}/{operation}"
        started = False
        try:
            async with self._client.stream(scope["method"], url, content=body, headers=passed) as reply:
                kept = [(k.encode(), v.encode()) for k, v in reply.headers.items() if k in _PASSED_RESPONSE]
                await send({"type": "http.response.start", "status": reply.status_code, "headers": kept})
                started = True
                await _stream(reply.aiter_bytes(), send)
        except httpx.HTTPError as error:
            log.info("the model's endpoint failed: %s", type(error).__name__)
            if started:
                raise  # the server breaks the connection: a cut reply must not look complete
            await _refuse(send, 502, f"The model's endpoint can't be reached ({type(error).__name__}).")


async def _stream(chunks: AsyncIterator[bytes], send: Send) -> None:
    async for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes | None:
    """The whole request body, or None when it is too large."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_REQUEST:
            return None
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _refuse(send: Send, status: int, message: str) -> None:
    """An error in OpenAI's shape."""
    body = json.dumps({"error": {"message": message, "type": "roost_proxy_error"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
