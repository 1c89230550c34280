"""The one way from a room to a model: a reverse proxy on the host that holds the key.

The room calls `http://127.0.0.1:3128/openai/v1/...` with any key; the proxy replaces it and calls the configured
OpenAI-compatible endpoint. The room chooses neither host nor scheme, and never sees the credential.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from roost.isolation.egress.budget import Budget
from roost.isolation.egress.injector import Vault, fill_for
from roost.isolation.egress.placeholders import names
from roost.isolation.egress.refusal import Refused
from roost.model.errors import InvalidArgument, RoostError

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
#: Of one room, at once. The others of the room wait; rooms together then can't use up what they share.
MAX_REQUESTS = 16
_PASSED_REQUEST = {b"content-type", b"accept", b"openai-beta", b"content-length"}
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


class _TooLarge(Exception):
    """The request's body is larger than MAX_REQUEST."""


class _Left(Exception):
    """The room gave its request up."""


class ModelProxy:
    """An ASGI application for one room. The client is shared; it bounds waits.

    Bodies go by in both directions as they come: a room decides how large they are, and none is held in memory.
    """

    def __init__(
        self,
        endpoint: ModelEndpoint,
        client: httpx.AsyncClient,
        on_request: Callable[[str, bool], None] = lambda path, allowed: None,
        *,
        vault: Vault | None = None,
        admit: Callable[[str], Awaitable[str]] | None = None,
        on_call: Callable[[], None] = lambda: None,
        on_bytes: Callable[[int], None] = lambda count: None,
        budget: Budget | None = None,
        said: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`on_request` is told each path that was asked for, and whether it may be. `vault` has the secret that the
        endpoint's key may be a placeholder of; `admit` raises RoostError when the endpoint may not be connected to;
        `on_call` and `on_bytes`, which are told of each request and of what goes either way, when that is too much;
        `budget` is the room's own; `said` are fields that its requests get."""
        self._budget = budget or Budget(time.monotonic)
        self._endpoint = endpoint
        self._client = client
        self._on_request = on_request
        self._vault = vault
        self._admit = admit
        self._on_call = on_call
        self._on_bytes = on_bytes
        self._said = said
        self._slots = asyncio.Semaphore(MAX_REQUESTS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        operation = scope["path"].removeprefix(PREFIX)
        headers = dict(scope["headers"])
        offered = OPERATIONS.get(operation) == scope["method"]
        self._on_request(scope["path"], offered)
        if not offered:
            await _refuse(send, 404, f"The model proxy does not offer {scope['method']} {scope['path']}.")
        elif _announced(headers) > MAX_REQUEST:
            await _refuse_too_large(send)
        else:
            async with self._slots:
                await self._while_wanted(scope["method"], operation, headers, receive, send)

    async def _while_wanted(
        self, method: str, operation: str, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        """`_forward`, given up when the room closes its connection: nobody pays for an answer that nobody reads."""
        sent = asyncio.Event()
        body = _body(receive, sent) if method == "POST" else None
        if body is None:
            sent.set()
            headers.pop(b"content-length", None)
        answering = asyncio.ensure_future(self._forward(method, operation, headers, body, send))
        leaving = asyncio.ensure_future(_disconnected(receive, sent))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        if not answering.cancelled():
            answering.result()

    async def _forward(
        self, method: str, operation: str, headers: dict[bytes, bytes], body: AsyncIterator[bytes] | None, send: Send
    ) -> None:
        passed = [(name, value) for name, value in headers.items() if name in _PASSED_REQUEST]
        try:
            self._budget.call()
            self._on_call()
            self._on_bytes(_announced(headers))
            key = await self._key()
            if self._admit is not None:
                await self._admit(self._endpoint.base_url)
        except Refused as refused:
            await _refuse(send, refused.status, refused.message)
            return
        except RoostError as error:
            await _refuse(send, error.status, error.message, retry_after=error.retry_after)
            return
        passed += [(name.encode(), value.encode()) for name, value in self._said().items()]
        if key:
            passed.append((b"authorization", f"Bearer {key}".encode()))
        url = f"{self._endpoint.base_url.rstrip('/')}/{operation}"
        started = False
        try:
            async with self._client.stream(method, url, content=body, headers=passed) as reply:
                self._budget.ended(failed=reply.status_code == 429 or reply.status_code >= 500)
                kept = [(k.encode(), v.encode()) for k, v in reply.headers.items() if k in _PASSED_RESPONSE]
                await send({"type": "http.response.start", "status": reply.status_code, "headers": kept})
                started = True
                await _stream(self._counted(reply.aiter_bytes()), send)
        except _Left:
            return
        except _TooLarge:
            await _refuse_too_large(send)
        except httpx.HTTPError as error:
            log.info("the model's endpoint failed: %s", type(error).__name__)
            self._budget.ended(failed=True)
            if started:
                raise  # the server breaks the connection: a cut reply must not look complete
            await _refuse(send, 502, f"The model's endpoint can't be reached ({type(error).__name__}).")

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Raises RoostError in the middle: the server breaks the connection then."""
        async for chunk in chunks:
            self._on_bytes(len(chunk))
            yield chunk

    async def _key(self) -> str:
        """Raises Refused when it is a secret's, which is not for this endpoint."""
        key = self._endpoint.api_key
        if self._vault is None or not names([key]):
            return key
        parts = urlsplit(self._endpoint.base_url)
        tls = parts.scheme == "https"
        return await fill_for(key, self._vault, parts.hostname or "", parts.port or (443 if tls else 80), tls=tls)


def _announced(headers: Mapping[bytes, bytes]) -> int:
    """Content-Length; 0 without one."""
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() and len(length) < 20 else 0


async def _stream(chunks: AsyncIterator[bytes], send: Send) -> None:
    async for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive, sent: asyncio.Event) -> None:
    """Return when the room has closed its connection, after all of its request has come."""
    await sent.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive, sent: asyncio.Event) -> AsyncIterator[bytes]:
    """The request's body as it comes; `sent` is set at its end. Raises _TooLarge or _Left."""
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_REQUEST:
            raise _TooLarge
        if part:
            yield part
        more = message.get("more_body", False)
    sent.set()


async def _refuse_too_large(send: Send) -> None:
    await _refuse(send, 413, f"A request to the model has at most {MAX_REQUEST >> 20} MiB.")


async def _refuse(send: Send, status: int, message: str, *, retry_after: float | None = None) -> None:
    """An error in OpenAI's shape."""
    body = json.dumps({"error": {"message": message, "type": "roost_proxy_error"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(retry_after))))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
