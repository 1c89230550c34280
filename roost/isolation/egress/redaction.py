"""Secrets taken out of what comes back to a room, while it streams. Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

#: What is shorter is found in any text, and is no secret.
LEAST = 6
_MASK = b"*"


def forms(value: str) -> frozenset[bytes]:
    """What a server that repeats a value may make of it: as it is, in JSON, in a URL, in base64."""
    raw = value.encode()
    if len(raw) < LEAST:
        return frozenset()
    texts = (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value, safe=""))
    return frozenset({*(text.encode() for text in (*texts, quote_plus(value))), base64.b64encode(raw)})


class Redactor:
    """Each occurrence becomes as many asterisks, so that lengths which were said stay true."""

    def __init__(self, needles: Iterable[bytes]) -> None:
        self._needles = sorted(set(needles), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._needles)) or b"(?!)")
        self._kept = b""

    def whole(self, data: bytes) -> bytes:
        """Of something that is there in one piece."""
        return self._pattern.sub(lambda match: _MASK * len(match[0]), data)

    def feed(self, data: bytes) -> bytes:
        """What may go on; a tail that could be the beginning of a secret stays until more is known."""
        masked = self.whole(self._kept + data)
        cut = self._suspect(masked)
        self._kept = masked[cut:]
        return masked[:cut]

    def end(self) -> bytes:
        """The rest."""
        rest, self._kept = self._kept, b""
        return rest

    def _suspect(self, data: bytes) -> int:
        """Where the longest tail begins that is the beginning of a needle."""
        earliest = len(data)
        for needle in self._needles:
            at = data.find(needle[:1], max(0, len(data) - len(needle) + 1))
            while 0 <= at < earliest:
                if needle.startswith(data[at:]):
                    earliest = at
                    break
                at = data.find(needle[:1], at + 1)
        return earliest
