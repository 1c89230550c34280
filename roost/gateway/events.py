"""The body of InvokeFunction as it goes by: its size is bounded, and what was signed is what arrives."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable

from roost.gateway.connection import BodySink, Request
from roost.model.errors import PayloadTooLarge, RoostError, Unauthenticated

_SHA256 = re.compile(r"[0-9a-f]{64}")
CLAIM = b"x-acs-content-sha256"


class EventBody:
    """Stands between a request and the sink of its body.

    With a claimed digest the last piece is held back until the whole body has been compared with it: the message stays
    without its end, so the function never runs on a body that was not signed.
    """

    def __init__(
        self, sink: BodySink, *, limit: int, claimed_sha256: str, refuse: Callable[[RoostError], None]
    ) -> None:
        self._sink = sink
        self._left = limit
        self._limit = limit
        claimed = claimed_sha256.lower()
        self._claimed = claimed if _SHA256.fullmatch(claimed) else ""
        self._digest = hashlib.sha256() if self._claimed else None
        self._held = b""
        self._refused = False
        self._refuse = refuse

    def body(self, data: bytes) -> None:
        if self._refused:
            return
        self._left -= len(data)
        if self._left < 0:
            self._stop(too_large(self._limit))
        elif self._digest is None:
            self._sink.body(data)
        else:
            self._digest.update(data)
            if self._held:
                self._sink.body(self._held)
            self._held = data

    def body_end(self) -> None:
        if self._refused:
            return
        if self._digest is not None and self._digest.hexdigest() != self._claimed:
            self._stop(_not_signed())
            return
        if self._held:
            self._sink.body(self._held)
            self._held = b""
        self._sink.body_end()

    def _stop(self, error: RoostError) -> None:
        self._refused = True
        self._held = b""
        self._refuse(error)


def check_bodiless(claimed_sha256: str) -> None:
    """A message without a body ends with its head, so its digest is compared ahead. Raises Unauthenticated."""
    if _SHA256.fullmatch(claimed_sha256.lower()) and claimed_sha256.lower() != hashlib.sha256().hexdigest():
        raise _not_signed()


def _not_signed() -> Unauthenticated:
    return Unauthenticated("The body is not the one that was signed (x-acs-content-sha256 differs).")


def too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"An event has at most {limit} bytes.", code="PayloadTooLarge")


class _Collector:
    """Most bodies are there when they are asked for; a future is for those that are not."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._ended = False
        self._fault: RoostError | None = None
        self._waiting: asyncio.Future[None] | None = None

    def body(self, data: bytes) -> None:
        self._pieces.append(data)

    def body_end(self) -> None:
        self._end(None)

    def refuse(self, error: RoostError) -> None:
        self._end(error)

    def _end(self, fault: RoostError | None) -> None:
        if not self._ended:
            self._ended, self._fault = True, fault
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(None)

    async def all(self) -> bytes:
        """Raises what was refused."""
        if not self._ended:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        if self._fault is not None:
            raise self._fault
        return b"".join(self._pieces)


async def collect(request: Request, *, limit: int, claimed_sha256: str) -> bytes:
    """The whole body, of at most `limit` bytes. Raises PayloadTooLarge or Unauthenticated."""
    if (request.head.length or 0) > limit:
        raise too_large(limit)
    collector = _Collector()
    request.stream_to(EventBody(collector, limit=limit, claimed_sha256=claimed_sha256, refuse=collector.refuse))
    return await collector.all()
