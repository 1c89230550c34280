"""Sends the contents of a file, as a whole or a part of it, compressed or not."""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import stat
import zlib
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import quote

from roost.guest.async_server import Exchange
from roost.guest.http1 import Head
from roost.guest.sandbox import encodings
from roost.guest.sandbox.encodings import NotAcceptable
from roost.guest.sandbox.ranges import BadRange, Multipart, Range, parse_ranges
from roost.guest.sandbox.replies import Refused
from roost.guest.sandbox.uploads import told

CHUNK = 256 << 10
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_QUOTABLE = re.compile(r"[ !#-\[\]-~]+")
_CONDITIONAL = ("range", "if-modified-since", "if-none-match", "if-range")


class Interrupted(Exception):
    """The file can't be read to its end, of which the beginning has been sent."""


def open_file(path: str) -> int:
    """A descriptor of the caller's. Raises Refused."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise Refused(400, f"path '{path}' is a directory")
        # A FIFO or a device could keep the daemon waiting, and never ends.
        if not stat.S_ISREG(mode):
            raise Refused(400, f"path '{path}' is not a regular file")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(404, f"path '{path}' does not exist") from None
    except OSError as error:
        raise Refused(500, told(f"error opening file '{path}'", error)) from None


async def send_file(exchange: Exchange, fd: int, path: str) -> None:
    """The file, or the part of it that was asked for. Raises Refused before anything is sent, later Interrupted."""
    head = exchange.head
    found = os.fstat(fd)
    try:
        coding = encodings.accepted(head.get("accept-encoding"))
    except NotAcceptable as error:
        raise Refused(406, f"error parsing Accept-Encoding: {error}") from None
    if any(head.get(name) for name in _CONDITIONAL):
        if not encodings.identity_accepted(head.get("accept-encoding")):
            raise Refused(406, "identity encoding not acceptable for Range or conditional request")
        coding = encodings.IDENTITY
    first = _read_first(fd, path)
    name = posixpath.basename(path)
    fields = [
        ("content-disposition", f"inline; {_filename(name)}"),
        ("content-type", encodings.content_type(name, first)),
        ("last-modified", formatdate(found.st_mtime, usegmt=True)),
        ("vary", "Accept-Encoding"),
    ]
    if coding == encodings.GZIP:
        await _send_gzip(exchange, fd, first, [*fields, ("content-encoding", "gzip")])
    elif found.st_size == 0 and first:  # of /proc: nobody knows how long it is
        exchange.start(200, fields)
        while first:
            await exchange.write(first)
            first = _read(fd, CHUNK)
        await exchange.end()
    elif _unchanged(head, int(found.st_mtime)):
        await exchange.whole(304, fields, b"")
    else:
        await _send_plain(exchange, fd, found.st_size, [*fields, ("accept-ranges", "bytes")])


async def _send_plain(exchange: Exchange, fd: int, size: int, fields: list[tuple[str, str]]) -> None:
    ranges: list[Range] = []
    # If-Range names a state of the file that can only be a date here; without an equal one the whole file goes out.
    condition = exchange.head.get("if-range")
    if not condition or condition == dict(fields)["last-modified"]:
        try:
            ranges = parse_ranges(exchange.head.get("range"), size)
        except BadRange as error:
            told_size = [] if error.overlaps else [("content-range", f"bytes */{size}")]
            await exchange.whole(416, [*fields, *told_size], str(error).encode())
            return
    if len(ranges) > 1:
        await _send_parts(exchange, fd, Multipart(ranges, size, dict(fields)["content-type"]), fields)
        return
    part, status = Range(0, size), 200
    if ranges:
        part, status = ranges[0], 206
        fields = [*fields, ("content-range", part.told(size))]
    length = part.end - part.first
    if length <= CHUNK:
        data = _read_at(fd, length, part.first) if length else b""
        if len(data) == length:
            await exchange.whole(status, fields, data)
            return
    exchange.start(status, [*fields, ("content-length", str(length))])
    await _send_part(exchange, fd, part)
    await exchange.end()


async def _send_parts(exchange: Exchange, fd: int, body: Multipart, fields: list[tuple[str, str]]) -> None:
    kept = [field for field in fields if field[0] != "content-type"]
    exchange.start(206, [*kept, ("content-type", body.content_type), ("content-length", str(body.length))])
    for head, part in body.parts:
        await exchange.write(head)
        await _send_part(exchange, fd, part)
    await exchange.write_last(body.last)


async def _send_part(exchange: Exchange, fd: int, part: Range) -> None:
    """Less of it, when the file has become shorter meanwhile."""
    at = part.first
    while at < part.end and (data := _read_at(fd, min(CHUNK, part.end - at), at)):
        at += len(data)
        await exchange.write(data)
        await asyncio.sleep(0)  # a fast reader would keep all others waiting


async def _send_gzip(exchange: Exchange, fd: int, data: bytes, fields: list[tuple[str, str]]) -> None:
    # The fastest level: one core serves the whole room.
    stream = zlib.compressobj(1, zlib.DEFLATED, 31)
    following = _read(fd, CHUNK) if data else b""
    if not following:
        await exchange.whole(200, fields, stream.compress(data) + stream.flush())
        return
    exchange.start(200, fields)
    while data:
        await exchange.write(stream.compress(data))
        await asyncio.sleep(0)
        data, following = following, _read(fd, CHUNK) if following else b""
    await exchange.write_last(stream.flush())


def _filename(name: str) -> str:
    """The parameter of Content-Disposition, in the simplest form that can say it."""
    if _TOKEN.fullmatch(name):
        return f"filename={name}"
    if _QUOTABLE.fullmatch(name):
        return f'filename="{name}"'
    return f"filename*=utf-8''{quote(os.fsencode(name))}"


def _read(fd: int, size: int) -> bytes:
    """Raises Interrupted."""
    try:
        return os.read(fd, size)
    except BlockingIOError:  # a file of /proc that would wait for something to happen
        return b""
    except OSError as error:
        raise Interrupted from error


def _read_at(fd: int, size: int, offset: int) -> bytes:
    """Raises Interrupted."""
    try:
        return os.pread(fd, size, offset)
    except OSError as error:
        raise Interrupted from error


def _read_first(fd: int, path: str) -> bytes:
    """Raises Refused."""
    try:
        return os.read(fd, CHUNK)
    except BlockingIOError:
        return b""
    except OSError as error:
        raise Refused(500, told(f"error reading file '{path}'", error)) from None


def _unchanged(head: Head, mtime: int) -> bool:
    try:
        since = parsedate_to_datetime(head.get("if-modified-since"))
        return mtime <= int(since.timestamp())
    except (ValueError, TypeError, OverflowError):
        return False
