"""Tells the audit what was asked of the control plane: all that changes something, and files that were read."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roost.api.identity import CALLER
from roost.model.audit import Audit, AuditEvent
from roost.model.role import ANONYMOUS, Caller

_CHANGES = ("POST", "PUT", "PATCH", "DELETE")
_READS = ("GET",)
#: The first that fits a request says what it is; "" is told by what answers it, which knows more.
_ACTIONS = (
    (_CHANGES, r"/roost/(keys|quotas|labels)(/.*)?", ""),
    (_CHANGES, r"/roost/mcp|/sandboxes/[^/]+/mcp", ""),
    (_CHANGES, r"/webhooks/.*", "event.take"),
    (_CHANGES, r"/roost/objects/.*|/volumecontent/.*|/templates/files/.*", "file.write"),
    (_READS, r"/roost/objects/[^/]+/.+|/volumecontent/[^/]+/file|/2023-03-30/functions/[^/]+/code", "file.read"),
    (_READS, r"/2023-03-30/packages/.*", "file.read"),
    (_CHANGES, r"/sandboxes/[^/]+/network|/secrets(/.*)?", "policy.change"),
    (_CHANGES, r"/2023-03-30/functions/[^/]+/(triggers(/.*)?|invoke/(disable|enable))", "policy.change"),
    (_CHANGES, r"/2023-03-30/layers/[^/]+/acl", "policy.change"),
    (_CHANGES, r"/.*", "api.change"),
)
_TABLE = tuple((methods, re.compile(pattern), action) for methods, pattern, action in _ACTIONS)
_DENIED = (401, 403, 429)


def action_of(method: str, path: str) -> str:
    """What a request is in the audit; "" for what is not told there, or elsewhere."""
    return next((action for methods, known, action in _TABLE if method in methods and known.fullmatch(path)), "")


class Audited:
    """An ASGI application around the control plane's."""

    def __init__(self, app: ASGIApp, audit: Audit) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        action = action_of(scope["method"], scope["path"]) if scope["type"] == "http" else ""
        if not action:
            await self._app(scope, receive, send)
            return
        status = 0  # none was sent: the caller went away, or the server failed

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            self._audit(_event(action, scope, status))


def _event(action: str, scope: Scope, status: int) -> AuditEvent:
    caller: Caller | None = scope.get(CALLER)
    outcome = "allowed" if 0 < status < 400 else "denied" if status in _DENIED else "failed"
    return AuditEvent(
        action=action,
        account=caller.account if caller is not None else "",
        actor=caller.key if caller is not None else ANONYMOUS,
        target=scope["path"],
        outcome=outcome,
        detail={"method": scope["method"], "status": status},
    )
