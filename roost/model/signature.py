"""`ACS3-HMAC-SHA256`: how the official SDKs sign a request, and how a signature is checked. Pure; time is an argument.

    Authorization: ACS3-HMAC-SHA256 Credential=<key id>,SignedHeaders=<a;b;c>,Signature=<hex>

The signature covers method, path, query, the named headers and the SHA-256 of the body. `host`, `x-acs-date` and
`x-acs-content-sha256` must be among the named ones, or a signature could be moved to another time or body.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from calendar import timegm
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import strptime
from urllib.parse import parse_qsl, quote

from roost.model.errors import Unauthenticated
from roost.model.role import Role

ALGORITHM = "ACS3-HMAC-SHA256"
#: How far `x-acs-date` may be from this server's clock, in seconds.
MAX_SKEW_S = 15 * 60
REQUIRED_HEADERS = frozenset({"host", "x-acs-date", "x-acs-content-sha256"})

_AUTHORIZATION = re.compile(
    ALGORITHM + r"\s+Credential=([^,\s]{1,128}),\s*SignedHeaders=([a-z0-9;_-]{1,4096}),\s*Signature=([0-9a-f]{64})"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class AccessKey:
    """A key, the account it acts for, and how much it may there."""

    id: str
    secret: str = field(repr=False)
    account: str
    role: Role = Role.ADMIN
    strong: bool = False  # its secret was made by this server: 256 random bits
    grants: frozenset[str] = frozenset()  # what it is for alone; empty: all that its role may


class Keys:
    """The keys that this server accepts, in memory. While none are asked for, all belongs to the default account.

    `asked` never goes back to False: who revokes the last key does not open the server.
    """

    def __init__(self, keys: Iterable[AccessKey] = (), *, default_account: str = "default") -> None:
        self._keys: dict[str, AccessKey] = {}
        self._digests: dict[bytes, str] = {}  # SHA-256 of a secret -> id
        self._listeners: list[Callable[[], None]] = []
        self.asked = False
        self.default_account = default_account
        for key in keys:
            self.add(key)

    @classmethod
    def of(cls, secrets: Mapping[str, str], account: str) -> Keys:
        """Keys of one account, from key id -> secret."""
        found = [AccessKey(id=key, secret=secret, account=account) for key, secret in secrets.items()]
        return cls(found, default_account=account)

    def __bool__(self) -> bool:
        return self.asked

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change."""
        self._listeners.append(listener)

    def add(self, key: AccessKey) -> None:
        self.asked = True
        self._keys[key.id] = key
        # Of two keys with one secret the first stays the secret's.
        self._digests.setdefault(_digest(key.secret), key.id)
        self._changed()

    def remove(self, key_id: str) -> None:
        """From now on it opens nothing."""
        key = self._keys.pop(key_id, None)
        if key is not None:
            digest = _digest(key.secret)
            if self._digests.get(digest) == key_id:
                del self._digests[digest]
                for other in self._keys.values():
                    if _digest(other.secret) == digest:
                        self._digests.setdefault(digest, other.id)
            self._changed()

    def lookup(self, key_id: str) -> AccessKey | None:
        return self._keys.get(key_id)

    def of_secret(self, secret: str) -> AccessKey | None:
        """The key whose secret this is. What the time tells is how a digest compares, which nobody can steer."""
        return self._keys.get(self._digests.get(_digest(secret), ""))

    def of_account(self, account: str, least: Role = Role.VIEWER) -> list[AccessKey]:
        """Those that may at least so much."""
        return [key for key in self._keys.values() if key.account == account and key.role >= least]

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an Authorization header says, before it is checked."""

    key_id: str
    signed_headers: tuple[str, ...]
    signature: str


def parse_authorization(value: str) -> Claim:
    """Raise Unauthenticated unless `value` has the form above."""
    match = _AUTHORIZATION.fullmatch(value.strip())
    if match is None:
        raise Unauthenticated(
            f"The Authorization header is not of the form '{ALGORITHM} Credential=...,SignedHeaders=...,Signature=...'."
        )
    names = tuple(match[2].split(";"))
    if list(names) != sorted(set(names)):
        raise Unauthenticated("SignedHeaders must be sorted and name each header once.")
    return Claim(key_id=match[1], signed_headers=names, signature=match[3])


def canonical_query(query: str) -> str:
    """Sorted by key, each part percent-encoded with only RFC 3986's unreserved characters kept."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return "&".join(f"{quote(key, safe='~')}={quote(value, safe='~')}" for key, value in sorted(pairs))


def canonical_request(
    *,
    method: str,
    path: str,
    query: str,
    headers: Iterable[tuple[str, str]],
    signed: Iterable[str],
    body_sha256: str,
) -> str:
    """The text that is hashed and signed. `path` and `query` are as they came on the wire, still encoded."""
    names = sorted(signed)
    values: dict[str, list[str]] = {name: [] for name in names}
    for name, value in headers:
        if name.lower() in values:
            values[name.lower()].append(value.strip())
    lines = "".join(f"{name}:{','.join(sorted(values[name]))}\n" for name in names)
    return "\n".join([method.upper(), path or "/", canonical_query(query), lines, ";".join(names), body_sha256])


def compute(secret: str, canonical: str) -> str:
    """The signature, as hex."""
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return hmac.new(secret.encode(), f"{ALGORITHM}\n{digest}".encode(), hashlib.sha256).hexdigest()


def verify(
    *,
    method: str,
    path: str,
    query: str,
    headers: Iterable[tuple[str, str]],
    body_sha256: str | None,
    lookup: Callable[[str], AccessKey | None],
    now: float,
) -> AccessKey:
    """The key that signed this request.

    `path` and `query` as on the wire (encoded). `body_sha256`: hex digest of the body as received, or None when it is
    streamed and the caller compares `x-acs-content-sha256` itself later, or lets it pass. `now`: Unix seconds.

    Raises Unauthenticated: no or a malformed Authorization, unknown key, wrong time, wrong body, wrong signature.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    first = dict(reversed(pairs))
    if not first.get("authorization"):
        raise Unauthenticated("The request is not signed: it has no Authorization header.", code="MissingAuthorization")
    claim = parse_authorization(first["authorization"])
    missing = (REQUIRED_HEADERS - set(claim.signed_headers)) | (set(claim.signed_headers) - set(first))
    if missing:
        raise Unauthenticated(f"These headers must be present and signed: {', '.join(sorted(missing))}.")
    _check_date(first["x-acs-date"], now)
    claimed = first["x-acs-content-sha256"]
    if not _SHA256.fullmatch(claimed):
        raise Unauthenticated("x-acs-content-sha256 is not a SHA-256 digest in lower-case hex.")
    if body_sha256 is not None and not hmac.compare_digest(claimed, body_sha256):
        raise Unauthenticated("x-acs-content-sha256 is not the digest of the body that arrived.")
    key = lookup(claim.key_id)
    if key is None:
        raise Unauthenticated("No such access key ID.", code="InvalidAccessKeyID")
    canonical = canonical_request(
        method=method, path=path, query=query, headers=pairs, signed=claim.signed_headers, body_sha256=claimed
    )
    if not hmac.compare_digest(claim.signature, compute(key.secret, canonical)):
        raise Unauthenticated("The signature does not match the request; check the access key secret.")
    return key


def _check_date(value: str, now: float) -> None:
    try:
        moment = timegm(strptime(value, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        raise Unauthenticated("x-acs-date must look like 2026-01-31T23:59:59Z.") from None
    if abs(moment - now) > MAX_SKEW_S:
        raise Unauthenticated(
            "x-acs-date is more than 15 minutes from this server's clock.", code="RequestTimeTooSkewed"
        )
