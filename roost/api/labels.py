"""`/roost/labels`: what is known of where data came from, and the one way to say that it is of no matter any more.

GET    /roost/labels             {"labels": [{"holder": "sandbox/<id>", "labels": ["private", "untrusted"]}, ...]}
DELETE /roost/labels/<holder>    what lies there has none any more: {"cleared": [...]}

Both are of the caller's own account. Nothing that a room says or sends comes here.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from roost.api.e2b.call import error_response
from roost.api.identity import signer_or_bearer
from roost.instances.labels import LabelBook
from roost.model.audit import Audit, AuditEvent
from roost.model.errors import NotFound, RoostError
from roost.tenants.identity import Identity
from roost.tenants.roles import needed

_ALL, _ONE = "/roost/labels", "/roost/labels/{holder:path}"


class LabelsApi:
    """Routes for the control plane's application."""

    def __init__(self, book: LabelBook, identity: Identity, audit: Audit) -> None:
        self._book = book
        self._identity = identity
        self._audit = audit

    def routes(self) -> list[Route]:
        return [
            Route(_ALL, self._list, methods=["GET"]),
            Route(_ONE, self._clear, methods=["DELETE"]),
        ]

    async def _list(self, request: Request) -> Response:
        try:
            caller = signer_or_bearer(self._identity, request, needed("GET", _ALL))
        except RoostError as error:
            return error_response(error)
        shown = [_shown(holder, labels) for holder, labels in self._book.listed(caller.account).items()]
        return JSONResponse({"labels": shown})

    async def _clear(self, request: Request) -> Response:
        holder = request.path_params["holder"]
        try:
            caller = signer_or_bearer(self._identity, request, needed("DELETE", _ONE))
            gone = await self._book.clear(f"{caller.account}/{holder}")
            if not gone:
                raise NotFound(f"{holder[:200]!r} has no labels.", code="LabelsNotFound")
        except RoostError as error:
            return error_response(error)
        self._audit(
            AuditEvent(
                action="taint.clear",
                account=caller.account,
                actor=caller.key,
                target=holder[:500],
                outcome="allowed",
                detail={"labels": ", ".join(sorted(gone))},
            )
        )
        return JSONResponse({"cleared": sorted(gone)})


def _shown(holder: str, labels: frozenset[str]) -> dict[str, Any]:
    return {"holder": holder, "labels": sorted(labels)}
