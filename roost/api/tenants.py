"""`/roost/keys` and `/roost/quotas`: who may use this server, and how much of it.

GET    /roost/keys?account=           {"keys": [...]}, without secrets
POST   /roost/keys                    {"name", "role", "account"?, "grants"?}: the key; its secret is told this once
DELETE /roost/keys/<id>?account=      204; it opens nothing from now on
GET    /roost/quota                   what the caller's account may use
GET    /roost/quotas                  {"usual": {...}, "accounts": {...}}
PUT    /roost/quotas/<account>        replaces them
DELETE /roost/quotas/<account>        204; the usual ones again

An admin has the keys of the own account. The server's own account has those of every account, and quotas.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from roost.api.fc.body import Body
from roost.api.fc.call import SMALL_BODY, error_response, parse_object
from roost.api.fc.render import iso
from roost.api.identity import signer_or_bearer
from roost.api.mcp.arguments import TOOLS
from roost.model.errors import InvalidArgument, NotFound, RoostError, Unauthenticated
from roost.model.role import ROLES, TOOL, Caller
from roost.store.access_keys import KeyRecord
from roost.tenants.identity import Identity
from roost.tenants.keybook import ACCOUNT, KeyBook
from roost.tenants.quotas import Quotas
from roost.tenants.roles import needed

logger = logging.getLogger("roost.api.tenants")
Handler = Callable[[Request, Caller, Body], Awaitable[Response]]


class Tenants:
    """Routes for the control plane's application."""

    def __init__(self, keys: KeyBook, quotas: Quotas, identity: Identity) -> None:
        self._keys = keys
        self._quotas = quotas
        self._identity = identity

    def routes(self) -> list[Route]:
        return [
            self._route("GET", "/roost/keys", self._list),
            self._route("POST", "/roost/keys", self._create),
            self._route("DELETE", "/roost/keys/{id}", self._revoke),
            self._route("GET", "/roost/quota", self._quota),
            self._route("GET", "/roost/quotas", self._all),
            self._route("PUT", "/roost/quotas/{account}", self._put),
            self._route("DELETE", "/roost/quotas/{account}", self._delete),
        ]

    def _route(self, method: str, path: str, handler: Handler) -> Route:
        least = needed(method, path)

        async def endpoint(request: Request) -> Response:
            id, body = str(uuid.uuid4()), Body(request)
            try:
                response = await handler(request, signer_or_bearer(self._identity, request, least), body)
            except ClientDisconnect:
                return Response(status_code=499)
            except RoostError as error:
                response = error_response(error, id)
            except Exception:
                logger.exception("Request %s failed: %s %s", id, method, path)
                response = error_response(RoostError("An internal error occurred; see the server's log."), id)
            await body.discard()
            return response

        return Route(path, endpoint, methods=[method])

    # --- keys ----------------------------------------------------------------------------------------------------

    async def _list(self, request: Request, caller: Caller, body: Body) -> Response:
        account = _account(request.query_params.get("account", ""), caller)
        return JSONResponse({"keys": [_shown(record) for record in self._keys.of_account(account)]})

    async def _create(self, request: Request, caller: Caller, body: Body) -> Response:
        given = await _read(request, body)
        if unknown := sorted(set(given) - {"name", "role", "account", "grants"}):
            raise InvalidArgument(
                f"{unknown[0][:64]}: there is no such field; there are name, role, account and grants."
            )
        grants = given.pop("grants", [])
        if not isinstance(grants, list) or not all(isinstance(one, str) for one in grants):
            raise InvalidArgument("grants: a list of strings is expected.")
        if unknown := [one for one in grants if one.startswith(TOOL) and one.removeprefix(TOOL) not in TOOLS]:
            raise InvalidArgument(f"grants: there is no tool {unknown[0][:64]!r}; there are {', '.join(TOOLS)}.")
        if not all(isinstance(value, str) for value in given.values()):
            raise InvalidArgument("name, role and account are strings.")
        role = ROLES.get(given.get("role", ""))
        if role is None:
            raise InvalidArgument(f"role: one of {', '.join(ROLES)} is expected.")
        account = _account(given.get("account", ""), caller)
        record, secret = await self._keys.create(account, given.get("name", ""), role, grants)
        what = f"{record.role.name.lower()} of {account}{' for ' if grants else ''}{' '.join(record.grants)}"
        self._identity.changed(caller, f"key/{record.id}", what)
        return JSONResponse({**_shown(record), "secret": secret}, status_code=201)

    async def _revoke(self, request: Request, caller: Caller, body: Body) -> Response:
        account = _account(request.query_params.get("account", ""), caller)
        id = request.path_params["id"]
        await self._keys.revoke(account, id)
        self._identity.changed(caller, f"key/{id}", "revoked")
        return Response(status_code=204)

    # --- quotas --------------------------------------------------------------------------------------------------

    async def _quota(self, request: Request, caller: Caller, body: Body) -> Response:
        limits = asdict(self._quotas.of(caller.account))
        today = {
            "egress_bytes_today": self._quotas.egress_of(caller.account),
            "model_calls_today": self._quotas.model_calls_of(caller.account),
        }
        return JSONResponse({**limits, **today})

    async def _all(self, request: Request, caller: Caller, body: Body) -> Response:
        _operator(caller)
        own = {account: asdict(quota) for account, quota in sorted(self._quotas.own().items())}
        return JSONResponse({"usual": asdict(self._quotas.usual), "accounts": own})

    async def _put(self, request: Request, caller: Caller, body: Body) -> Response:
        account = _named(request, caller)
        quota = await self._quotas.put(account, await _read(request, body))
        self._identity.changed(caller, f"quota/{account}", "set")
        return JSONResponse(asdict(quota))

    async def _delete(self, request: Request, caller: Caller, body: Body) -> Response:
        account = _named(request, caller)
        await self._quotas.delete(account)
        self._identity.changed(caller, f"quota/{account}", "removed")
        return Response(status_code=204)


def _account(asked: str, caller: Caller) -> str:
    """Whose keys are meant. Raises NotFound, whether there is such an account or not."""
    if asked in ("", caller.account):
        return caller.account
    if not caller.operator:
        raise NotFound(f"There is no account {asked[:64]}.", code="AccountNotFound")
    if not ACCOUNT.fullmatch(asked):
        raise InvalidArgument("account: 1 to 64 letters, digits, '_' or '-' are expected.")
    return asked


def _operator(caller: Caller) -> None:
    if not caller.operator:
        raise NotFound("There is nothing here.")


def _named(request: Request, caller: Caller) -> str:
    _operator(caller)
    return _account(request.path_params["account"], caller)


async def _read(request: Request, incoming: Body) -> dict[str, Any]:
    """As it was signed, if it was. Raises InvalidArgument, Unauthenticated, PayloadTooLarge."""
    body = await incoming.read(SMALL_BODY)
    claimed = request.headers.get("x-acs-content-sha256", "")
    if claimed and not hmac.compare_digest(claimed.encode(), hashlib.sha256(body).hexdigest().encode()):
        raise Unauthenticated("x-acs-content-sha256 is not the digest of the body that arrived.")
    return parse_object(body)


def _shown(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "account": record.account,
        "name": record.name,
        "role": record.role.name.lower(),
        "grants": list(record.grants),
        "created": iso(record.created),
        "lastUsed": iso(record.used) if record.used else None,
        "revoked": iso(record.revoked) if record.revoked else None,
    }
