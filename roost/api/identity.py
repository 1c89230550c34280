"""Who sends a request to the control plane: its credentials, handed to the one place that judges them.

The gateway is the only client of the control plane, and says where a request comes from.
"""

from __future__ import annotations

from starlette.requests import Request

from roost.model.errors import Unauthenticated
from roost.model.role import Caller, Role
from roost.tenants.identity import Identity

API_KEY = "x-api-key"
#: Where a request's scope has its Caller, for who looks at it later.
CALLER = "roost.caller"


def source_of(request: Request) -> str:
    """The address of whoever connected to the gateway, "" where there is none."""
    return request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()


def signer(identity: Identity, request: Request, least: Role) -> Caller:
    """Of an ACS3 signature. Its body is compared later. Raises Unauthenticated, AccessDenied, Throttled."""
    scope = request.scope
    caller = scope[CALLER] = identity.signed(
        method=request.method,
        path=scope["raw_path"].decode("ascii", "replace"),
        query=scope["query_string"].decode("ascii", "replace"),
        headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
        body_sha256=None,
        source=source_of(request),
        least=least,
    )
    return caller


def signer_or_bearer(identity: Identity, request: Request, least: Role) -> Caller:
    """Of a signature, or of a key's secret as a bearer (for scrapers)."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return signer(identity, request, least)
    caller = request.scope[CALLER] = identity.shown(secret.strip(), source=source_of(request), least=least)
    return caller


def key_holder(identity: Identity, request: Request, least: Role, thing: str = "") -> Caller:
    """Of a key's secret as X-API-KEY, or as a bearer; `thing` as in `Identity.signed`."""
    given = given_key(request)
    if identity.asked and not given:
        raise Unauthenticated("An API key is needed, in the header X-API-KEY.")
    caller = request.scope[CALLER] = identity.shown(given, source=source_of(request), least=least, thing=thing)
    return caller


def given_key(request: Request) -> str:
    """As the caller showed it; "" for none."""
    if given := request.headers.get(API_KEY, ""):
        return given
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
