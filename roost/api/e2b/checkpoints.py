"""`/sandboxes/{id}/checkpoints` and `/sandboxes/{id}/rollback`: a sandbox as it was. Roost's own, in the manner of the
API around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route

from roost.api.e2b.call import Answer, Call, Endpoints, Shape
from roost.api.e2b.render import created, moment
from roost.api.e2b.snapshots import is_now, left_behind
from roost.sandboxes.checkpoints import Checkpoints, Shown


class TakeCheckpoint(Shape):
    label: Annotated[str, Field(max_length=200)] = ""


class Rollback(Shape):
    checkpoint_id: Annotated[str, Field(alias="checkpointID", min_length=1, max_length=64)]


class CheckpointRoutes:
    """`domain` is known once the server listens."""

    def __init__(self, checkpoints: Checkpoints, domain: Callable[[], str]) -> None:
        self._checkpoints = checkpoints
        self._domain = domain

    def routes(self, endpoints: Endpoints) -> list[Route]:
        one = "/sandboxes/{id}"
        return [
            endpoints.route("GET", f"{one}/checkpoints", self.tree),
            endpoints.route("POST", f"{one}/checkpoints", self.take),
            endpoints.route("DELETE", f"{one}/checkpoints/{{checkpoint}}", self.remove),
            endpoints.route("POST", f"{one}/rollback", self.rollback),
        ]

    async def tree(self, call: Call) -> Answer:
        return [_shown(one) for one in await self._checkpoints.tree(call.account, call.path["id"])]

    async def take(self, call: Call) -> Answer:
        asked = call.parse(TakeCheckpoint)
        taken = await self._checkpoints.take(call.account, call.path["id"], asked.label, now=is_now(call))
        return JSONResponse(_shown(taken), status_code=201)

    async def remove(self, call: Call) -> Answer:
        await self._checkpoints.remove(call.account, call.path["id"], call.path["checkpoint"])
        return None

    async def rollback(self, call: Call) -> Answer:
        asked = call.parse(Rollback)
        sandbox, copied = await self._checkpoints.rollback(
            call.account, call.path["id"], asked.checkpoint_id, now=is_now(call)
        )
        body = {
            **created(sandbox, self._domain()),
            "checkpointID": asked.checkpoint_id,
            "leftBehind": list(copied.left_behind),
            "notCopied": list(copied.lost),
            "memory": copied.memory,
        }
        return JSONResponse(body, headers=left_behind(copied))


def _shown(shown: Shown) -> dict[str, Any]:
    one = shown.checkpoint
    return {
        "checkpointID": one.id,
        "label": one.label,
        "parentID": one.parent or None,
        "createdAt": moment(one.created),
        "current": shown.current,
        "contexts": list(one.contexts),
        "leftBehind": list(one.left_behind),
        "notCopied": list(one.lost),
        "memory": shown.memory,
        "memoryBytes": shown.memory_bytes,
        "diskBytes": shown.disk_bytes,
    }
