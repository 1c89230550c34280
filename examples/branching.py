"""A live E2B sandbox that branches, on a Roost server: checkpoints, rollbacks and forks of checkpoints.

E2B's SDK speaks to Roost as it is; these few operations are Roost's own, and are plain HTTP beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from e2b_code_interpreter import Sandbox

Node = Mapping[str, Any]


class NotDone(Exception):
    """What the server said."""


class Branching:
    """The checkpoints of one sandbox. `now=True` interrupts cells that run, instead of waiting for them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._http = httpx.Client(
            base_url=os.environ.get("E2B_API_URL", "http://127.0.0.1:8700"),
            headers={"x-api-key": os.environ.get("E2B_API_KEY", "any")},
            timeout=90,
        )

    def checkpoint(self, label: str = "", *, now: bool = False) -> str:
        """Keep variables and files as they are; the checkpoint's id."""
        return str(self._ask("POST", "/checkpoints", {"label": label}, now=now)["checkpointID"])

    def rollback(self, checkpoint: str, *, now: bool = False) -> Node:
        """Have the sandbox as it was. It is the same one: `sandbox` goes on being used."""
        made: Node = self._ask("POST", "/rollback", {"checkpointID": checkpoint}, now=now)
        return made

    def fork(self, count: int = 1, checkpoint: str = "", *, timeout: int = 300, now: bool = False) -> list[Sandbox]:
        """New sandboxes as this one is, or was. Raises NotDone unless all were made."""
        body: dict[str, Any] = {"count": count, "timeout": timeout}
        if checkpoint:
            body["checkpointID"] = checkpoint
        made = self._ask("POST", "/fork", body, now=now)
        forks = [Sandbox.connect(one["sandbox"]["sandboxID"]) for one in made if "sandbox" in one]
        if len(forks) < count:
            for fork in forks:
                fork.kill()
            raise NotDone(next(one["error"]["message"] for one in made if "error" in one))
        return forks

    def forget(self, checkpoint: str) -> None:
        """It is wanted no more."""
        self._ask("DELETE", f"/checkpoints/{checkpoint}")

    def tree(self) -> list[Node]:
        """All checkpoints, the oldest first; `parentID` says where each came from."""
        found: list[Node] = self._ask("GET", "/checkpoints")
        return found

    def close(self) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, now: bool = False) -> Any:
        reply = self._http.request(
            method, f"/sandboxes/{self.sandbox.sandbox_id}{path}", json=body, params={"when": "now"} if now else {}
        )
        if reply.is_error:
            raise NotDone(f"{method} {path} was answered with {reply.status_code}: {reply.text}")
        return reply.json() if reply.content else None


def value(sandbox: Sandbox, code: str) -> str:
    """The text of a cell's last expression. Raises RuntimeError for a cell that fails."""
    execution = sandbox.run_code(code)
    if execution.error is not None:
        raise RuntimeError(f"{execution.error.name}: {execution.error.value}")
    return execution.text or ""


def drawn(nodes: list[Node], parent: str | None = None, indent: str = "") -> Iterator[str]:
    """The tree, a line for each checkpoint."""
    children = [node for node in nodes if node["parentID"] == parent]
    for child in children:
        last = child is children[-1]
        branch, below = ("", "") if parent is None else ("└── ", "    ") if last else ("├── ", "│   ")
        yield f"{indent}{branch}{child['label']}{' *' if child['current'] else ''}"
        yield from drawn(nodes, child["checkpointID"], indent + below)
