"""What proves the sender of a webhook. Pure; comparisons take the same time wherever they fail."""

from __future__ import annotations

import base64
import hashlib
import hmac

from roost.functions.triggers.webhook import WebhookSettings
from roost.model.errors import Unauthenticated


class WrongCredentials(Unauthenticated):
    status = 401


def check_token(settings: WebhookSettings, authorization: str) -> None:
    """Raises WrongCredentials where a bearer token is asked for, and not given."""
    if settings.token is None:
        return
    scheme, _, given = authorization.partition(" ")
    right = hmac.compare_digest(given.strip().encode(), settings.token.encode())
    if scheme.lower() != "bearer" or not right:
        raise WrongCredentials("This webhook needs 'Authorization: Bearer <token>'.", code="AuthenticationRequired")


def check_signature(settings: WebhookSettings, given: str, content: bytes) -> None:
    """`given` is the signature header's value. Raises WrongCredentials where the body has to be signed, and is not."""
    if settings.secret is None:
        return
    digest = hmac.new(settings.secret.encode(), content, hashlib.sha256).digest()
    if settings.signature_encoding == "hex":
        right = digest.hex()
        given = given[: len(settings.signature_prefix)] + given[len(settings.signature_prefix) :].lower()
    else:
        right = base64.b64encode(digest).decode()
    if not hmac.compare_digest(given.encode(), (settings.signature_prefix + right).encode()):
        raise WrongCredentials(
            f"{settings.signature_header} is not the body's HMAC-SHA256 with the secret of this webhook.",
            code="SignatureNotMatch",
        )
