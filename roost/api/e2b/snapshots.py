"""`/sandboxes/{id}/snapshots`, `/sandboxes/{id}/fork` and `/snapshots`: copies of a sandbox's files; of a fork, of what
its contexts have in memory too.

What a copy has not is told: in the header `x-roost-left-behind`, and in `leftBehind` of the body; `notCopied` says why
a fork has not the memory of a context, and `memory` how it came along: `contexts`, `room` or `none`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route

from roost.api.e2b.call import NEXT_TOKEN, Answer, Call, Endpoints, Shape, error_body
from roost.api.e2b.render import created
from roost.api.e2b.terms import Terms
from roost.model.errors import InvalidArgument, RoostError
from roost.model.sandbox import Sandbox
from roost.sandboxes.copies import Copied
from roost.sandboxes.snapshots import MOST_FORKS, Snapshot, Snapshots, page

LEFT_BEHIND = "x-roost-left-behind"
MOST_LISTED = 100


class TakeSnapshot(Shape):
    name: Annotated[str, Field(max_length=256)] = ""
    memory: bool = True  # what can't be kept is told, not refused: clients ask for it by default


class Fork(Shape):
    count: Annotated[int, Field(ge=1, le=MOST_FORKS)] = 1
    timeout: Annotated[int, Field(ge=0)] | None = None
    checkpoint_id: Annotated[str, Field(alias="checkpointID", min_length=1, max_length=64)] = ""  # the present


class SnapshotRoutes:
    """`domain` is known once the server listens."""

    def __init__(self, snapshots: Snapshots, terms: Terms, domain: Callable[[], str]) -> None:
        self._snapshots = snapshots
        self._terms = terms
        self._domain = domain

    def routes(self, endpoints: Endpoints) -> list[Route]:
        return [
            endpoints.route("POST", "/sandboxes/{id}/snapshots", self.take),
            endpoints.route("POST", "/sandboxes/{id}/fork", self.fork),
            endpoints.route("GET", "/snapshots", self.listed),
        ]

    async def take(self, call: Call) -> Answer:
        asked = call.parse(TakeSnapshot)
        snapshot, copied = await self._snapshots.take(call.account, call.path["id"], asked.name)
        body = {**_shown(snapshot), "leftBehind": list(copied.left_behind)}
        return JSONResponse(body, status_code=201, headers=left_behind(copied))

    async def listed(self, call: Call) -> Answer:
        found = self._snapshots.of_account(
            call.account, sandbox=call.query.get("sandboxID", ""), name=call.query.get("name", "")
        )
        limit = call.number("limit", MOST_LISTED, least=1, most=MOST_LISTED)
        shown, token = page(found, limit, call.query.get("nextToken", ""))
        headers = {NEXT_TOKEN: token} if token else {}
        return JSONResponse([_shown(snapshot) for snapshot in shown], headers=headers)

    async def fork(self, call: Call) -> Answer:
        asked = call.parse(Fork)
        timeout = self._terms.timeout(asked.timeout)
        forks, copied = await self._snapshots.fork(
            call.account,
            call.path["id"],
            count=asked.count,
            timeout_s=timeout,
            checkpoint=asked.checkpoint_id,
            now=is_now(call),
        )
        body = [self._forked(fork, copied) for fork in forks]
        return JSONResponse(body, status_code=201, headers=left_behind(copied))

    def _forked(self, fork: Sandbox | RoostError, copied: Copied) -> dict[str, Any]:
        if isinstance(fork, RoostError):
            return {"error": error_body(fork)}
        return {
            "sandbox": {
                **created(fork, self._domain()),
                "leftBehind": list(copied.left_behind),
                "notCopied": list(copied.lost),
                "memory": copied.memory,
            }
        }


def is_now(call: Call) -> bool:
    """`when=now`: cells that run are interrupted, not waited for. Raises InvalidArgument."""
    when = call.query.get("when", "")
    if when not in ("", "now"):
        raise InvalidArgument(f"when: 'now' is expected, not {when[:40]!r}.")
    return when == "now"


def left_behind(copied: Copied) -> dict[str, str]:
    """As a header."""
    return {LEFT_BEHIND: ", ".join(copied.left_behind)} if copied.left_behind else {}


def _shown(snapshot: Snapshot) -> dict[str, Any]:
    return {"snapshotID": snapshot.id, "names": list(snapshot.names)}
