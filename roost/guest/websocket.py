"""RFC 6455, the server's side: handshake and frames. Pure: bytes in, messages out."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

MAX_MESSAGE = 16 << 20
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Op(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class WebSocketError(Exception):
    """The peer broke the protocol; `code` is what the connection is closed with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message or control frame. For CLOSE, `code` and `reason` are set (1005: none was sent)."""

    op: Op
    data: bytes = b""
    code: int = 1005
    reason: str = ""

    @property
    def text(self) -> str:
        return self.data.decode()


def accept_key(key: str) -> str:
    """`sec-websocket-accept` for the client's `sec-websocket-key`. ValueError for a malformed key."""
    if len(base64.b64decode(key, validate=True)) != 16:
        raise ValueError("sec-websocket-key has not 16 bytes")
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def encode(op: Op, data: bytes) -> bytes:
    """One unmasked frame, as a server sends it."""
    size = len(data)
    if size < 126:
        return struct.pack("!BB", 0x80 | op, size) + data
    if size < 1 << 16:
        return struct.pack("!BBH", 0x80 | op, 126, size) + data
    return struct.pack("!BBQ", 0x80 | op, 127, size) + data


def encode_close(code: int, reason: str = "") -> bytes:
    """The reason is cut to what a control frame holds. 1005 (no status) makes an empty frame."""
    if code == 1005:
        return encode(Op.CLOSE, b"")
    text = reason.encode()[:123].decode("utf-8", "ignore").encode()
    return encode(Op.CLOSE, struct.pack("!H", code) + text)


class FrameReader:
    """Bytes from a client in, messages out. Memory is bounded by `limit` for one message."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._op: Op | None = None  # of the message whose fragments are being collected
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yields what is whole. Raises WebSocketError; after that the reader is of no more use."""
        self._buffer += data
        while (frame := self._next_frame()) is not None:
            message = self._on_frame(*frame)
            if message is not None:
                yield message

    def _next_frame(self) -> tuple[bool, Op, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        if first & 0x70:
            raise WebSocketError(1002, "reserved bits are set")
        try:
            op = Op(first & 0x0F)
        except ValueError:
            raise WebSocketError(1002, "unknown opcode") from None
        if not second & 0x80:
            raise WebSocketError(1002, "a client's frame is not masked")
        final, size, at = bool(first & 0x80), second & 0x7F, 2
        if op >= Op.CLOSE and (size > 125 or not final):
            raise WebSocketError(1002, "malformed control frame")
        if size >= 126:
            length, form = (2, "!H") if size == 126 else (8, "!Q")
            if len(buffer) < 2 + length:
                return None
            (size,) = struct.unpack_from(form, buffer, 2)
            at += length
        if size + self._size > self._limit:
            raise WebSocketError(1009, "the message is too large")
        if len(buffer) < at + 4 + size:
            return None
        payload = _unmask(bytes(buffer[at + 4 : at + 4 + size]), bytes(buffer[at : at + 4]))
        del buffer[: at + 4 + size]
        return final, op, payload

    def _on_frame(self, final: bool, op: Op, payload: bytes) -> Message | None:
        if op is Op.CLOSE:
            return _parse_close(payload)
        if op >= Op.CLOSE:
            return Message(op, payload)
        if (op is Op.CONTINUATION) != (self._op is not None):
            raise WebSocketError(1002, "unexpected fragment")
        if op is not Op.CONTINUATION:
            self._op = op
        self._parts.append(payload)
        self._size += len(payload)
        if not final or self._op is None:
            return None
        message = Message(self._op, b"".join(self._parts))
        self._op, self._parts, self._size = None, [], 0
        if message.op is Op.TEXT:
            _check_text(message.data)
        return message


def _unmask(data: bytes, mask: bytes) -> bytes:
    """One exclusive-or of two long numbers: byte by byte would be a hundred times slower."""
    size = len(data)
    if not size:
        return data
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def _check_text(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        raise WebSocketError(1007, "text is not UTF-8") from None


def _parse_close(payload: bytes) -> Message:
    if not payload:
        return Message(Op.CLOSE)
    if len(payload) == 1:
        raise WebSocketError(1002, "malformed close frame")
    (code,) = struct.unpack_from("!H", payload)
    if not ((1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999):
        raise WebSocketError(1002, "invalid close code")
    _check_text(payload[2:])
    return Message(Op.CLOSE, b"", code, payload[2:].decode())
