"""Tags of templates: which build each means."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route

from roost.api.e2b.call import Answer, Call, Endpoints, Shape
from roost.api.e2b.render import moment
from roost.model.errors import InvalidArgument, NotFound
from roost.sandboxes.registry import TemplateRegistry, parse_tag
from roost.sandboxes.templates import SandboxTemplate, TemplateShelf

Names = Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=50)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
_MOST_GROUPS = 100
_ORDERS = ("latest_desc", "latest_asc", "name_asc", "name_desc")


class AssignTags(Shape):
    target: Name
    tags: Names


class DeleteTags(Shape):
    name: Name
    tags: Names


class Tags:
    """Reads the shelf; writes through the registry."""

    def __init__(self, shelf: TemplateShelf, registry: TemplateRegistry) -> None:
        self._shelf = shelf
        self._registry = registry

    def routes(self, endpoints: Endpoints) -> list[Route]:
        tags = "/templates/{template:path}/tags"
        return [
            endpoints.route("POST", "/templates/tags", self.assign),
            endpoints.route("DELETE", "/templates/tags", self.delete),
            endpoints.route("GET", tags, self.list_all),
            endpoints.route("GET", f"{tags}/exists", self.exists),
            endpoints.route("GET", f"{tags}/count", self.count),
            endpoints.route("GET", f"{tags}/groups", self.groups),
            endpoints.route("GET", f"{tags}/{{tag}}/assignments", self.assignments),
        ]

    async def list_all(self, call: Call) -> Answer:
        return [
            {"tag": tag, "buildID": build, "createdAt": moment(created)} for tag, build, created in self._given(call)
        ]

    async def exists(self, call: Call) -> Answer:
        tag = call.query.get("tag", "").lower()
        return {"exists": tag in {name for name, _, _ in self._given(call)}, "normalizedTag": tag}

    async def count(self, call: Call) -> Answer:
        return {"total": len(self._given(call))}

    async def groups(self, call: Call) -> Answer:
        """A page of tags. What a tag meant before is not kept: each has one assignment, the one that holds."""
        order = call.query.get("sort", _ORDERS[0])
        if order not in _ORDERS:
            raise InvalidArgument(f"sort: one of {', '.join(_ORDERS)} is expected.")
        search = call.query.get("search", "").lower()
        found = sorted(
            (each for each in self._given(call) if search in each[0]),
            key=lambda each: (each[0],) if order.startswith("name") else (each[2], each[0]),
            reverse=order.endswith("desc"),
        )
        start = call.number("tagsCursor", 0, most=1 << 20)
        end = start + call.number("tagsLimit", 25, least=1, most=_MOST_GROUPS)
        shows = call.number("assignmentLimit", 6, most=_MOST_GROUPS) > 0
        groups = [
            {"tag": each[0], "assignments": [self._assignment(call, *each)] if shows else [], "hasMore": not shows}
            for each in found[start:end]
        ]
        return {"tags": groups, "nextCursor": str(end) if len(found) > end else None}

    async def assignments(self, call: Call) -> Answer:
        """The one that holds, as in `groups`."""
        for each in self._given(call):
            if each[0] == call.path["tag"].lower():
                return {"data": [self._assignment(call, *each)], "nextCursor": None}
        raise NotFound(f"tag '{call.path['tag'][:128]}' of template '{call.path['template'][:128]}' not found")

    async def assign(self, call: Call) -> Answer:
        asked = call.parse(AssignTags)
        tags = [parse_tag(tag) for tag in asked.tags]
        template = self._shelf.get(asked.target, call.account)
        await self._registry.assign(call.account, template, tags)
        return JSONResponse({"tags": tags, "buildID": template.build}, status_code=201)

    async def delete(self, call: Call) -> Answer:
        asked = call.parse(DeleteTags)
        await self._registry.unassign(call.account, asked.name, [parse_tag(tag) for tag in asked.tags])
        return None

    def _template(self, call: Call) -> SandboxTemplate:
        return self._shelf.get(call.path["template"], call.account)

    def _given(self, call: Call) -> list[tuple[str, str, float]]:
        return [*self._shelf.tags(call.account, self._template(call))]

    def _assignment(self, call: Call, tag: str, build: str, at: float) -> dict[str, Any]:
        template = self._template(call)
        created = {each.build: each.created for each in self._shelf.builds(call.account, template)}.get(build, at)
        return {
            "assignmentId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"roost:{template.id}:{tag}:{build}:{at!r}")),
            "buildId": build,
            "assignedAt": moment(at),
            "buildCreatedAt": moment(created),
            "buildFinishedAt": moment(created),
        }
