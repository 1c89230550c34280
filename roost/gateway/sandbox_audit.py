"""What the audit is told of a request to a sandbox: what it starts, and the files it reads or changes. Pure."""

from __future__ import annotations

from urllib.parse import parse_qs

from roost.gateway.head import RequestHead
from roost.gateway.sandbox_routes import ENVD_PORT, INTERPRETER_PORT
from roost.model.audit import AuditEvent
from roost.model.role import ANONYMOUS
from roost.model.sandbox import Sandbox

_ACTIONS = {
    (ENVD_PORT, "POST", b"/process.Process/Start"): "process.start",
    (ENVD_PORT, "POST", b"/filesystem.Filesystem/MakeDir"): "file.write",
    (ENVD_PORT, "POST", b"/filesystem.Filesystem/Move"): "file.write",
    (ENVD_PORT, "POST", b"/filesystem.Filesystem/Remove"): "file.write",
    (ENVD_PORT, "GET", b"/files"): "file.read",
    (ENVD_PORT, "POST", b"/files"): "file.write",
    (INTERPRETER_PORT, "POST", b"/execute"): "process.start",
}


def event_of(sandbox: Sandbox, port: int, head: RequestHead, *, refused: bool) -> AuditEvent | None:
    """None for what is not told. Who has a sandbox's token is not known by name."""
    path, _, query = head.target.partition(b"?")
    action = _ACTIONS.get((port, head.method, path))
    if action is None:
        return None
    detail: dict[str, str | int | bool] = {"call": path.decode("latin-1")}
    if path == b"/files":
        try:
            named = parse_qs(query.decode("latin-1"), max_num_fields=50).get("path", [""])[0]
        except ValueError:
            named = ""
        if named:
            detail["path"] = named
    return AuditEvent(
        action=action,
        account=sandbox.account,
        actor=ANONYMOUS if refused else "token",
        target=f"sandbox/{sandbox.id}",
        outcome="denied" if refused else "allowed",
        detail=detail,
    )
