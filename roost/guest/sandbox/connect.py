"""The Connect protocol with the JSON codec: errors, envelopes, and what of them goes over one exchange.

Unary calls are plain HTTP with `application/json`; streams are `application/connect+json`, each message in an envelope
of a flag byte and a length. Messages may come compressed with gzip; replies are not, which the protocol leaves to the
server. Binary messages are refused: the official clients send none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum

from roost.guest.async_server import Exchange
from roost.guest.http1 import Head
from roost.guest.sandbox.encodings import BadEncoding, TooLong, gunzip
from roost.guest.sandbox.messages import BadField, Message, parse
from roost.guest.sandbox.replies import drain

MAX_MESSAGE = 16 << 20
UNARY = "application/json"
STREAM = "application/connect+json"
_HEADER = 5
_COMPRESSED, _END = 1, 2
MAX_TIMEOUT_DIGITS = 10


class Code(StrEnum):
    CANCELED = "canceled"
    UNKNOWN = "unknown"
    INVALID_ARGUMENT = "invalid_argument"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PERMISSION_DENIED = "permission_denied"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    FAILED_PRECONDITION = "failed_precondition"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"
    UNAUTHENTICATED = "unauthenticated"


_STATUS = {
    Code.CANCELED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAUTHENTICATED: 401,
}


class ConnectError(Exception):
    """What a client of the protocol is told."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        """Of the HTTP reply to a unary call."""
        return _STATUS[self.code]

    def to_json(self) -> bytes:
        return json.dumps({"code": self.code, "message": self.message}).encode()


def envelope(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def end_of_stream(error: ConnectError | None) -> bytes:
    """The envelope that ends every stream."""
    body = b"{}" if error is None else b'{"error":' + error.to_json() + b"}"
    return bytes([_END]) + len(body).to_bytes(4, "big") + body


class Envelopes:
    """Cuts a stream of bytes into messages. Holds at most one message of `limit` bytes. `gzip`: those that are flagged
    as compressed are unpacked."""

    def __init__(self, limit: int = MAX_MESSAGE, *, gzip: bool = False) -> None:
        self._limit = limit
        self._gzip = gzip
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now. Raises ConnectError."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER:
            flags, length = self._buffer[0], int.from_bytes(self._buffer[1:_HEADER], "big")
            if flags == _COMPRESSED and not self._gzip:
                raise ConnectError(Code.INTERNAL, "protocol error: sent compressed message without compression support")
            if flags not in (0, _COMPRESSED):
                raise ConnectError(Code.INVALID_ARGUMENT, f"invalid envelope flags {flags}")
            if length > self._limit:
                raise ConnectError(
                    Code.RESOURCE_EXHAUSTED, f"message size {length} is larger than configured max {self._limit}"
                )
            if len(self._buffer) < _HEADER + length:
                break
            message = bytes(self._buffer[_HEADER : _HEADER + length])
            messages.append(_unpacked(message, self._limit) if flags and message else message)
            del self._buffer[: _HEADER + length]
        return messages

    @property
    def partial(self) -> bool:
        """The stream may not end here."""
        return bool(self._buffer)


def timeout_of(head: Head) -> float | None:
    """Seconds from Connect-Timeout-Ms; None for no limit. Raises ConnectError."""
    text = head.get("connect-timeout-ms")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > MAX_TIMEOUT_DIGITS:
        raise ConnectError(Code.INVALID_ARGUMENT, f"protocol error: invalid Connect-Timeout-Ms {text[:40]!r}")
    return int(text) / 1000 or None


class Stream:
    """The reply of a streaming call. `send` waits until the client takes what was sent before."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._started = False
        self.head = exchange.head

    async def send(self, *messages: bytes) -> None:
        """Each already in its envelope. Raises Disconnected."""
        self._start()
        await self._exchange.write(b"".join(messages))

    async def end(self, error: ConnectError | None) -> None:
        self._start()
        await self._exchange.write_last(end_of_stream(error))

    def _start(self) -> None:
        # Not before the first message, so that head and message are one packet.
        if not self._started:
            self._started = True
            self._exchange.start(200, [("content-type", STREAM)])


UnaryMethod = Callable[[Message, Head], Awaitable[bytes]]
StreamMethod = Callable[[Message, Stream], Awaitable[None]]
InputMethod = Callable[[AsyncIterator[Message]], Awaitable[bytes]]


async def serve_unary(exchange: Exchange, method: UnaryMethod) -> None:
    try:
        gzip = _check(exchange.head, UNARY, "content-encoding")
        body = await _read(exchange)
        if gzip and body:
            body = _unpacked(body, MAX_MESSAGE)
        async with asyncio.timeout(timeout_of(exchange.head)):
            reply = await method(_message(body), exchange.head)
    except (ConnectError, BadField, TimeoutError) as error:
        told = _told(error)
        await drain(exchange)
        await exchange.whole(told.status, [("content-type", UNARY)], told.to_json())
    else:
        await exchange.whole(200, [("content-type", UNARY)], reply)


async def serve_stream(exchange: Exchange, method: StreamMethod) -> None:
    """One message in, many out."""
    failed: ConnectError | None = None
    stream = Stream(exchange)
    try:
        messages = Envelopes(gzip=_check(exchange.head, STREAM, "connect-content-encoding"))
        timeout = timeout_of(exchange.head)
        found = messages.feed(await _read(exchange))
        if len(found) != 1 or messages.partial:
            raise ConnectError(Code.UNIMPLEMENTED, "unary request has zero or multiple messages, or a broken one")
        async with asyncio.timeout(timeout):
            await method(_message(found[0]), stream)
    except (ConnectError, BadField, TimeoutError) as error:
        failed = _told(error)
        await drain(exchange)
    await stream.end(failed)


async def serve_input(exchange: Exchange, method: InputMethod) -> None:
    """Many messages in, one out."""
    failed: ConnectError | None = None
    reply = b""
    try:
        messages = Envelopes(gzip=_check(exchange.head, STREAM, "connect-content-encoding"))
        async with asyncio.timeout(timeout_of(exchange.head)):
            reply = envelope(await method(_incoming(exchange, messages)))
    except (ConnectError, BadField, TimeoutError) as error:
        failed = _told(error)
        await drain(exchange)
    await exchange.whole(200, [("content-type", STREAM)], reply + end_of_stream(failed))


async def _incoming(exchange: Exchange, messages: Envelopes) -> AsyncIterator[Message]:
    while data := await exchange.read():
        for message in messages.feed(data):
            yield _message(message)
    if messages.partial:
        raise ConnectError(Code.INVALID_ARGUMENT, "protocol error: incomplete envelope")


async def _read(exchange: Exchange) -> bytes:
    parts, size = [], 0
    while part := await exchange.read():
        parts.append(part)
        size += len(part)
        if size > MAX_MESSAGE + _HEADER:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, f"message size is larger than configured max {MAX_MESSAGE}")
    return b"".join(parts)


def _check(head: Head, content_type: str, encoding: str) -> bool:
    """Whether messages may come compressed. Raises ConnectError for what can't be read."""
    given = head.get("content-type").partition(";")[0].strip().lower()
    if given != content_type:
        raise ConnectError(Code.UNIMPLEMENTED, f"content type {given[:80]!r} is not supported: send {content_type}")
    coding = head.get(encoding, "identity").lower()
    if coding not in ("", "identity", "gzip"):
        raise ConnectError(Code.UNIMPLEMENTED, f"unknown compression {coding[:40]!r}: supported encodings are gzip")
    return coding == "gzip"


def _unpacked(data: bytes, limit: int) -> bytes:
    try:
        return gunzip(data, limit)
    except BadEncoding as error:
        raise ConnectError(Code.INVALID_ARGUMENT, f"decompress: {error}") from None
    except TooLong:
        raise ConnectError(Code.RESOURCE_EXHAUSTED, f"message size is larger than configured max {limit}") from None


def _message(data: bytes) -> Message:
    try:
        return parse(data)
    except ValueError as error:
        raise ConnectError(Code.INVALID_ARGUMENT, f"unmarshal message: {error}") from None


def _told(error: Exception) -> ConnectError:
    if isinstance(error, ConnectError):
        return error
    if isinstance(error, BadField):
        return ConnectError(Code.INVALID_ARGUMENT, f"unmarshal message: {error}")
    return ConnectError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
