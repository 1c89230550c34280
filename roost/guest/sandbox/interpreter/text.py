"""Cuts the bytes of a stream into pieces of text for a client. Pure."""

from __future__ import annotations

import codecs

#: A piece without a line's end waits so long for the rest: `print` writes the end by itself.
HOLD_S = 0.1
_ENOUGH = 32 << 10  # is sent at once


class Pieces:
    """One stream. Characters cut in two by the reads are put together again; what is no UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._deadline: float | None = None

    @property
    def deadline(self) -> float | None:
        """When `take` is to be called although nothing came."""
        return self._deadline

    def feed(self, data: bytes, now: float) -> str:
        """A piece that is to be sent at once, or nothing."""
        self._text += self._decoder.decode(data)
        if self._text.endswith(("\n", "\r")) or len(self._text) >= _ENOUGH:
            return self.take()
        if self._text and self._deadline is None:
            self._deadline = now + HOLD_S
        return ""

    def take(self) -> str:
        """What is held back."""
        text, self._text = self._text, ""
        self._deadline = None
        return text

    def finish(self) -> str:
        """What is held back at the end of a cell, with what is left of a character."""
        text = self.take() + self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
