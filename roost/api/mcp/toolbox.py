"""Tools: what a model is told of them, how they are called, and how it learns that one failed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic

from roost.api.mcp import arguments as args
from roost.api.mcp.arguments import A
from roost.api.mcp.text import Reply
from roost.model.audit import Audit, AuditEvent
from roost.model.errors import InvalidArgument, RoostError
from roost.sandboxes.fleet import Gone

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


class _Refused(InvalidArgument):
    """The tool takes no such arguments: nothing was done."""


class Toolbox:
    """Tools of one sandbox, or of the whole server: there those of a sandbox take its id. `only`: the names of those
    that are offered, where not all are."""

    def __init__(
        self,
        tools: list[Tool[Any]],
        *,
        whole: bool,
        audit: Audit = lambda event: None,
        only: Collection[str] = (),
    ) -> None:
        self._audit = audit
        tools = [tool for tool in tools if not only or tool.name in only]
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

    def refuse(self, account: str, sandbox: str, name: object, *, actor: str) -> None:
        """Tell the audit of a tool that was called, and is not offered."""
        self._tell("tool.call", account, sandbox, str(name)[:100], outcome="denied", actor=actor)

    async def call(self, account: str, sandbox: str, name: str, given: object, *, actor: str) -> Reply:
        """What goes wrong is told as the tool's result, so that a model can mend it. `actor` is who the audit names."""
        tool = self._tools[name]
        if self._whole and tool.of_sandbox and isinstance(given, dict):
            sandbox = str(given.get("sandbox", ""))[:100]
        try:
            values = self._arguments(tool, given)
            reply = await tool.run(account, sandbox, values)
            outcome = "failed" if reply.error else "allowed"
        except _Refused as error:
            reply, outcome = Reply.of(error.message, error=True), "denied"
        except Gone as error:
            reply, outcome = Reply.of(error.message, error=True), "failed" if error.paused else "denied"
        except RoostError as error:
            reply, outcome = Reply.of(error.message, error=True), "failed"
        if tool.action or outcome == "denied":
            self._tell(tool.action or "tool.call", account, sandbox, name, outcome=outcome, actor=actor)
        return reply

    def _tell(self, action: str, account: str, sandbox: str, name: str, *, outcome: str, actor: str) -> None:
        self._audit(
            AuditEvent(
                action=action,
                account=account,
                actor=actor,
                target=f"sandbox/{sandbox}" if sandbox else "sandbox",
                outcome=outcome,
                detail={"tool": name},
            )
        )

    def _arguments(self, tool: Tool[Any], given: object) -> Any:
        """Raises _Refused."""
        if given is not None and not isinstance(given, dict):
            raise _Refused("arguments: an object is expected.")
        values = dict(given or {})
        if self._whole and tool.of_sandbox:
            named = values.pop("sandbox", None)
            if not isinstance(named, str) or not named:
                raise _Refused("sandbox: the id of a sandbox is expected.")
        try:
            return args.parse(tool.shape, values)
        except InvalidArgument as error:
            raise _Refused(error.message) from error
