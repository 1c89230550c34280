"""Content codings and types of file transfers, as HTTP negotiates them. Pure."""

from __future__ import annotations

import mimetypes
import zlib
from collections.abc import Iterator

GZIP, IDENTITY = "gzip", "identity"
_CHUNK = 256 << 10
#: The standard library's own table: the room's files would be read by the daemon otherwise.
_TYPES = mimetypes.MimeTypes(filenames=())


class NotAcceptable(ValueError):
    """No coding that the client accepts."""


class BadEncoding(ValueError):
    """The body isn't in the coding that was announced."""


def accepted(header: str) -> str:
    """gzip or identity, whichever Accept-Encoding prefers. Raises NotAcceptable."""
    wanted = _weighted(header)
    refused = _identity_refused(wanted)
    for name, quality in sorted(wanted, key=lambda item: -item[1]):
        if quality == 0:
            continue
        if name in (GZIP, IDENTITY):
            return name
        if name == "*":
            return GZIP if refused else IDENTITY
    if refused:
        raise NotAcceptable(f"no acceptable encoding found, supported: [{IDENTITY}, {GZIP}]")
    return IDENTITY


def identity_accepted(header: str) -> bool:
    return not _identity_refused(_weighted(header))


def _weighted(header: str) -> list[tuple[str, float]]:
    found = []
    for item in header.split(",") if header else ():
        name, *parameters = (text.strip().lower() for text in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    continue
        found.append((name, quality))
    return found


def _identity_refused(wanted: list[tuple[str, float]]) -> bool:
    qualities = dict(wanted)
    return qualities.get(IDENTITY, qualities.get("*", 1.0)) == 0


class TooLong(ValueError):
    """More than is taken."""


class Inflater:
    """Undoes the coding of a body, a bounded piece at a time."""

    def __init__(self, header: str) -> None:
        """Raises BadEncoding for a coding other than gzip and identity."""
        coding = header.partition(";")[0].strip().lower() or IDENTITY
        if coding not in (GZIP, IDENTITY):
            raise BadEncoding(f"unsupported Content-Encoding: {header[:100]}, supported: [{GZIP}]")
        self._gzip = coding == GZIP
        self._stream = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises BadEncoding."""
        if not self._gzip:
            yield data
            return
        try:
            while data:
                if self._stream.eof:  # one gzip member after another is one body
                    self._stream = zlib.decompressobj(wbits=31)
                part = self._stream.decompress(data, _CHUNK)
                if part:
                    yield part
                data = self._stream.unconsumed_tail or self._stream.unused_data
        except zlib.error as error:
            raise BadEncoding(f"error decompressing request body: {error}") from None

    def finish(self) -> None:
        """Raises BadEncoding for a body that was cut off."""
        if self._gzip and not self._stream.eof:
            raise BadEncoding("error decompressing request body: unexpected EOF")


def gunzip(data: bytes, limit: int) -> bytes:
    """All of it. Raises BadEncoding, and TooLong when it is more than `limit` bytes."""
    inflater = Inflater(GZIP)
    parts, size = [], 0
    for part in inflater.feed(data):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise TooLong(f"over {limit} bytes when it is unpacked")
    inflater.finish()
    return b"".join(parts)


def content_type(name: str, beginning: bytes) -> str:
    """By the name's ending, else by what the first bytes look like."""
    known = _TYPES.guess_type(name)[0]
    if known is None:
        try:
            beginning[:512].decode()
            known = "application/octet-stream" if b"\0" in beginning[:512] else "text/plain"
        except UnicodeDecodeError as error:
            # A character that the end of the sample cuts is no sign of bytes.
            cut = len(beginning) > 512 and error.start > 508
            known = "text/plain" if cut else "application/octet-stream"
    return f"{known}; charset=utf-8" if known.startswith("text/") else known
