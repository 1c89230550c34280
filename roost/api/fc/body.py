"""A request's body: read within a limit, or thrown away so that the client gets to see the refusal."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from roost.model.errors import InvalidArgument, PayloadTooLarge

#: What is thrown away at most before the connection is closed on a client that goes on sending.
DISCARD_BYTES = 256 << 20
DISCARD_S = 10.0
#: Seconds a client may send nothing in the middle of a body.
STALL_S = 30.0


class Body:
    """One request's body. `read` once, then `discard`, on every path."""

    def __init__(self, request: Request, *, stall_s: float = STALL_S) -> None:
        self._request = request
        self._stall_s = stall_s
        self._ended = False

    async def read(self, limit: int) -> bytes:
        """All of it. Raises PayloadTooLarge beyond `limit` bytes, InvalidArgument on a stall, ClientDisconnect."""
        length = self._request.headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > limit:
            raise PayloadTooLarge(f"The body has {length} bytes; at most {limit} are accepted here.")
        chunks, size = [], 0
        while not self._ended:
            try:
                async with asyncio.timeout(self._stall_s):
                    chunk = await self._next()
            except TimeoutError:
                self._ended = True
                raise InvalidArgument(
                    f"The body stopped for more than {self._stall_s:g} seconds.", code="RequestTimeout"
                ) from None
            size += len(chunk)
            if size > limit:
                raise PayloadTooLarge(f"The body has more than the {limit} bytes that are accepted here.")
            chunks.append(chunk)
        return b"".join(chunks)

    async def discard(self) -> None:
        """Take in what is left, without keeping it.

        A connection that is closed on unread data is reset, and many clients then never see the answer.
        """
        left = DISCARD_BYTES
        try:
            async with asyncio.timeout(DISCARD_S):
                while not self._ended and left > 0:
                    left -= len(await self._next())
        except (TimeoutError, ClientDisconnect):
            self._ended = True

    async def _next(self) -> bytes:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            self._ended = True
            raise ClientDisconnect
        self._ended = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body
