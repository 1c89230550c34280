"""Posts events to webhooks: as CloudEvents in binary mode, signed as Standard Webhooks has it where there is a secret.

Where an address may lead, `functions.outbound` has said before. Redirects are not followed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpx

from roost.instances.chains import HOPS
from roost.model.errors import InvalidArgument, NotFound, Unavailable

TIMEOUT_S = 15.0


def key_of(secret: str) -> bytes:
    """The key in `whsec_<base64>`."""
    return base64.b64decode(secret.removeprefix("whsec_"))


def signature(key: bytes, event_id: str, at: int, body: bytes) -> str:
    """`webhook-signature`, version 1."""
    digest = hmac.new(key, f"{event_id}.{at}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def headers_of(event_id: str, body: bytes, *, key: bytes, at: int) -> dict[str, str]:
    """Of one delivery at that time; `key` is empty for no signature."""
    event = json.loads(body)
    about = event["requestContext"]
    moment = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
    headers = {
        "content-type": "application/json",
        "user-agent": "roost",
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-type": "roost.task.failed" if event["responseContext"]["functionError"] else "roost.task.succeeded",
        "ce-source": about["functionArn"],
        "ce-subject": about["taskId"],
        "ce-time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
        HOPS: str(about.get("hops", 0)),
    }
    return headers | ({"webhook-signature": signature(key, event_id, at, body)} if key else {})


class WebhookPublisher:
    """Implements `ports.Publisher` for `https` and `http`. `secret`: `whsec_` and a key in base64, or empty."""

    def __init__(self, *, secret: str = "", clock: Callable[[], float] = time.time) -> None:
        self._key = key_of(secret) if secret else b""
        self._clock = clock
        self._client: httpx.AsyncClient | None = None

    async def publish(self, destination: str, event_id: str, body: bytes) -> None:
        headers = headers_of(event_id, body, key=self._key, at=int(self._clock()))
        try:
            async with self._opened().stream("POST", destination, content=body, headers=headers) as response:
                status, wait = response.status_code, response.headers.get("retry-after", "")
        except httpx.InvalidURL as error:
            raise InvalidArgument(f"It is no address: {error}.") from error
        except httpx.TimeoutException as error:
            raise Unavailable(f"It did not answer within {TIMEOUT_S:g} seconds.") from error
        except httpx.HTTPError as error:
            raise Unavailable(f"It can't be reached: {error}.") from error
        if status == 410:
            raise NotFound("It answered with status 410: it is gone.")
        if not 200 <= status < 300:
            retry_after = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None
            raise Unavailable(f"It answered with status {status}.", retry_after=retry_after)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _opened(self) -> httpx.AsyncClient:
        """Made when it is needed: reading the machine's certificates takes a while."""
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False)
        return self._client
