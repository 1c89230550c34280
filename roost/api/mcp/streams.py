"""What a room sends, piece by piece: hostile, so bounded in size and in what it costs this server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from roost.isolation.said import reason
from roost.model.errors import InvalidArgument, NotFound, Unavailable

#: The port of the interpreter, as an error names it.
CODE = "49999"
_HEADER, _END = 5, 2
_MOST_MESSAGE = 1 << 20
_MOST_LINE = 8 << 20
_MOST_ERROR = 64 << 10
_MOST_REASON = 1000
#: A flood is read slowly from here on; who writes it waits. All this runs on the one event loop of the server.
_FAST = 4 << 20
_PAUSE_S = 0.01


async def paced(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same, with pauses when there is very much of it."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > _FAST:
            await asyncio.sleep(_PAUSE_S)
        yield chunk


async def whole(response: httpx.Response, most: int) -> bytes:
    """All of a reply. Raises Unavailable beyond `most` bytes."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > most:
            raise Unavailable("The sandbox sent an answer that is too large.")
    return bytes(data)


async def check(response: httpx.Response) -> None:
    """Raise what a reply says went wrong."""
    if response.is_success:
        return
    text = (await whole(response, _MOST_ERROR)).decode("utf-8", "replace")
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        said = json.loads(text)
        if str(said.get("port")) == CODE:
            raise InvalidArgument("This sandbox has no code interpreter; the template code-interpreter-v1 has one.")
        text = str(said.get("message") or text)
    message = f"{text.strip()[:1000].rstrip('.') or f'status {response.status_code}'}."
    if response.status_code == 404:
        raise NotFound(message)
    raise InvalidArgument(message) if response.status_code < 500 else Unavailable(message)


def envelope(message: bytes) -> bytes:
    """Of the Connect protocol."""
    return b"\0" + len(message).to_bytes(4, "big") + message


async def messages(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Of a Connect stream, to its end. Raises what that says."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= _HEADER:
            length = int.from_bytes(buffer[1:_HEADER], "big")
            if length > _MOST_MESSAGE:
                raise Unavailable("The sandbox sent a message that is too large.")
            if len(buffer) < _HEADER + length:
                break
            flags, message = buffer[0], parsed(bytes(buffer[_HEADER : _HEADER + length]))
            del buffer[: _HEADER + length]
            if flags & _END:
                error = message.get("error")
                if isinstance(error, dict):
                    why = reason(error.get("message"), _MOST_REASON) or reason(error.get("code"), _MOST_REASON)
                    raise InvalidArgument(f"{why or 'The sandbox does not say why'}.")
                return
            yield message


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of a stream."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        for index, part in enumerate(chunk.split(b"\n")):
            if index:
                if line := b"".join(held).strip():
                    yield line
                held, size = [], 0
            held.append(part)
            size += len(part)
        if size > _MOST_LINE:
            raise Unavailable("The sandbox sent a result that is too large.")


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Unavailable("The sandbox answered with something that makes no sense.")
    return value


def output_of(text: object) -> bytes:
    """What base64 stands for; nothing for what is none."""
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return b""


def ending(end: dict[str, Any]) -> str:
    """How a command ended, "" for exit code 0."""
    code = end.get("exitCode", 0)
    if end.get("exited", True) and isinstance(code, int):
        return f"exit code {code}" if code else ""
    return reason(end.get("status"), 100) or "ended by a signal"
