"""The name in a TLS ClientHello (RFC 8446, 6066), from the first bytes of a connection. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _HOST_NAME = 0, 0
#: Encrypted ClientHello (RFC 9849): the name that counts is hidden in it.
_ENCRYPTED = 0xFE0D
#: A hello may be in several records; with keys of the largest kind it has some 2 KiB.
MOST = 16 << 10


class NoHello(Exception):
    """It is not the beginning of TLS."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """`name` is "" without one."""

    name: str
    encrypted: bool


class _Cut(Exception):
    """There is more to come."""


class _Reader:
    def __init__(self, data: bytes, *, whole: bool) -> None:
        self._data = data
        self._at = 0
        self._whole = whole

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise NoHello if self._whole else _Cut
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)), whole=True)


def read(data: bytes) -> Hello | None:
    """None while there is too little of it. Raises NoHello."""
    try:
        return _hello(_handshake(_Reader(data, whole=False)))
    except _Cut:
        if len(data) > MOST:
            raise NoHello from None
        return None


def _handshake(records: _Reader) -> _Reader:
    """The body of the ClientHello, from as many records as it is in."""
    message = b""
    while True:
        kind, version, _ = records.number(1), records.number(1), records.number(1)
        if kind != _HANDSHAKE or version != 3:
            raise NoHello
        message += records.take(records.number(2))
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                raise NoHello
            length = int.from_bytes(message[1:4], "big")
            if length > MOST:
                raise NoHello
            if len(message) >= 4 + length:
                return _Reader(message[4 : 4 + length], whole=True)


def _hello(body: _Reader) -> Hello:
    body.take(2 + 32)  # version, random
    body.vector(1)  # session
    body.vector(2)  # ciphers
    body.vector(1)  # compressions
    names: list[str] = []
    encrypted = False
    if body.left:
        extensions = body.vector(2)
        while extensions.left:
            kind, content = extensions.number(2), extensions.vector(2)
            if kind == _SERVER_NAME:
                names += _names(content)
            encrypted = encrypted or kind == _ENCRYPTED
    if len(names) > 1:
        raise NoHello
    return Hello(name=names[0] if names else "", encrypted=encrypted)


def _names(content: _Reader) -> list[str]:
    listed = content.vector(2)
    names = []
    while listed.left:
        kind, name = listed.number(1), listed.vector(2)
        if kind == _HOST_NAME:
            names.append(name.take(name.left).decode("latin-1").lower())
    return names
