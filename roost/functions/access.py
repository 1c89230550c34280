"""Who may send HTTP requests to a function, from its http trigger."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

ALL_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"})


class HttpAuth(StrEnum):
    ANONYMOUS = "anonymous"
    BEARER = "bearer"


@dataclass(frozen=True, kw_only=True)
class HttpAccess:
    """`key_hashes`: SHA-256 in hex of each bearer key that is let in."""

    auth: HttpAuth
    key_hashes: frozenset[str] = frozenset()
    methods: frozenset[str] = ALL_METHODS

    @cached_property
    def keyed(self) -> bool:
        """Whether a bearer key is asked for."""
        return self.auth is HttpAuth.BEARER

    def admits(self, bearer: str) -> bool:
        """Whether a request with this bearer key ("" for none) may pass. Constant time in the key."""
        if not self.keyed:
            return True
        given = hash_key(bearer)
        # No early exit: how long it takes must not tell which key came near.
        return sum(hmac.compare_digest(given, known) for known in self.key_hashes) > 0


#: Everybody may.
OPEN = HttpAccess(auth=HttpAuth.ANONYMOUS)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
