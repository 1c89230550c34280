"""Client side of `ACS3-HMAC-SHA256`, Function Compute 3.0's request signature. Pure: time and nonce are arguments."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

ALGORITHM = "ACS3-HMAC-SHA256"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """An access key. The secret is kept out of `repr`."""

    id: str
    secret: str = field(repr=False)


def sign(
    keys: Keys,
    *,
    method: str,
    path: str,
    query: Mapping[str, str],
    host: str,
    body: bytes,
    timestamp: str,
    nonce: str,
) -> dict[str, str]:
    """Headers to add to a request so that it is signed.

    `path` is as sent (percent-encoded); `query` is decoded; `timestamp` is UTC, `2006-01-02T15:04:05Z`.
    """
    payload = hashlib.sha256(body).hexdigest()
    signed = {
        "host": host,
        "x-acs-content-sha256": payload,
        "x-acs-date": timestamp,
        "x-acs-signature-nonce": nonce,
    }
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        [
            method,
            path or "/",
            "&".join(f"{key}={quote(query[key], safe='~')}" for key in sorted(query)),
            "".join(f"{name}:{signed[name]}\n" for name in sorted(signed)),
            names,
            payload,
        ]
    )
    to_sign = f"{ALGORITHM}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(keys.secret.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
    del signed["host"]
    signed["authorization"] = f"{ALGORITHM} Credential={keys.id},SignedHeaders={names},Signature={signature}"
    return signed
