"""The tools of the whole server: sandboxes are made, listed, killed."""

from __future__ import annotations

from typing import Any

from roost.api.e2b.terms import Terms
from roost.api.mcp import arguments as args
from roost.api.mcp.arguments import Arguments
from roost.api.mcp.text import Reply, table
from roost.api.mcp.toolbox import Tool
from roost.model.errors import InvalidArgument
from roost.model.sandbox import Sandbox, SandboxState
from roost.sandboxes.fleet import Order, SandboxFleet

MOST_LISTED = 1000


class ServerTools:
    """Sandboxes themselves: made, listed, killed."""

    def __init__(self, fleet: SandboxFleet, terms: Terms) -> None:
        self._fleet = fleet
        self._terms = terms

    def tools(self) -> list[Tool[Any]]:
        return [
            Tool(
                name="create_sandbox",
                description="Make a new sandbox, a small Linux computer, and return its id. It ends when its time is "
                "over.",
                shape=args.CreateSandbox,
                run=self._create,
                of_sandbox=False,
                action="api.change",
            ),
            Tool(
                name="list_sandboxes",
                description="List the sandboxes there are, running and paused.",
                shape=args.ListSandboxes,
                run=self._list,
                of_sandbox=False,
            ),
            Tool(
                name="kill_sandbox",
                description="End a sandbox and delete its files.",
                shape=args.KillSandbox,
                run=self._kill,
                action="api.change",
            ),
        ]

    async def _create(self, account: str, sandbox: str, given: args.CreateSandbox) -> Reply:
        timeout = self._terms.timeout_s if given.timeout is None else given.timeout
        if timeout > self._terms.max_timeout_s:
            raise InvalidArgument(f"timeout: at most {self._terms.max_timeout_s} seconds are allowed here.")
        order = Order(
            account=account,
            template=given.template,
            timeout_s=timeout,
            metadata=given.metadata,
            public=self._terms.public,
        )
        made = await self._fleet.create(order, "")
        return Reply.of(table([_shown(made)]))

    async def _list(self, account: str, sandbox: str, given: Arguments) -> Reply:
        every = sorted(self._fleet.of_account(account), key=lambda one: -one.created)
        cut = f"[{len(every) - MOST_LISTED} older ones were cut here]" if len(every) > MOST_LISTED else ""
        return Reply.of(table(_shown(one) for one in every[:MOST_LISTED]) or "(none)", cut)

    async def _kill(self, account: str, sandbox: str, given: Arguments) -> Reply:
        await self._fleet.kill(account, sandbox)
        return Reply.of(f"Killed {sandbox}.")


def _shown(sandbox: Sandbox) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "sandbox": sandbox.id,
        "template": sandbox.alias or sandbox.template,
        "state": sandbox.state.value,
        "metadata": dict(sandbox.metadata),
    }
    if sandbox.state is SandboxState.PAUSED:
        shown["reason"] = sandbox.reason
    return shown
