"""Tools: what a model is told of them, how they are called, and how it learns that one failed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic

from roost.api.mcp import arguments as args
from roost.api.mcp.arguments import A
from roost.api.mcp.text import Reply
from roost.model.audit import Audit, AuditEvent
from roost.model.errors import InvalidArgument, RoostError

_SANDBOX = {
    "sandbox": {"type": "string", "description": "The sandbox's id, as create_sandbox or list_sandboxes tell it."}
}


@dataclass(frozen=True, kw_only=True)
class Tool(Generic[A]):
    """`run` gets the account, the sandbox ("" for a tool of the server's own) and the arguments. `action` is what the
    audit calls it, "" for what it is not told."""

    name: str
    description: str
    shape: type[A]
    run: Callable[[str, str, A], Awaitable[Reply]]
    of_sandbox: bool = True
    action: str = ""

    async def call(self, account: str, sandbox: str, given: object) -> Reply:
        """Raises InvalidArgument for bad arguments, RoostError for what could not be done."""
        return await self.run(account, sandbox, args.parse(self.shape, given))


class Toolbox:
    """Tools of one sandbox, or of the whole server: there those of a sandbox take its id."""

    def __init__(self, tools: list[Tool[Any]], *, whole: bool, audit: Audit | None = None) -> None:
        self._audit = audit
        self._tools = {tool.name: tool for tool in tools}
        self._whole = whole
        self.listing = [
            {
                "name": tool.name,
                "description": tool.description,
                "inputSchema": args.schema(tool.shape, _SANDBOX if whole and tool.of_sandbox else None),
            }
            for tool in tools
        ]

    def knows(self, name: object) -> bool:
        return isinstance(name, str) and name in self._tools

    async def call(self, account: str, sandbox: str, name: str, given: object, *, actor: str) -> Reply:
        """What goes wrong is told as the tool's result, so that a model can mend it. `actor` is who the audit names."""
        tool = self._tools[name]
        if self._whole and tool.of_sandbox and isinstance(given, dict):
            sandbox = str(given.get("sandbox", ""))
        reply = await self._call(tool, account, sandbox, given)
        if self._audit is not None and tool.action:
            event = AuditEvent(
                action=tool.action,
                account=account,
                actor=actor,
                target=f"sandbox/{sandbox}" if sandbox else "sandbox",
                outcome="failed" if reply.error else "allowed",
                detail={"tool": name},
            )
            self._audit(event)
        return reply

    async def _call(self, tool: Tool[Any], account: str, sandbox: str, given: object) -> Reply:
        try:
            if given is not None and not isinstance(given, dict):
                raise InvalidArgument("arguments: an object is expected.")
            values = dict(given or {})
            if self._whole and tool.of_sandbox:
                named = values.pop("sandbox", None)
                if not isinstance(named, str) or not named:
                    raise InvalidArgument("sandbox: the id of a sandbox is expected.")
            return await tool.call(account, sandbox, values)
        except RoostError as error:
            return Reply.of(error.message, error=True)
