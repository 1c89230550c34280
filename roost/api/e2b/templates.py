"""`/templates`: what sandboxes can be made from, by name, and the tags of its builds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route

from roost.api.e2b.call import NEXT_TOKEN, Answer, Call, Endpoints, Shape
from roost.api.e2b.render import cpu_count, moment
from roost.sandboxes.registry import TemplateRegistry, parse_tag
from roost.sandboxes.templates import ENVD_VERSION, SandboxTemplate, TemplateShelf

Tags = Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=50)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class AssignTags(Shape):
    target: Name
    tags: Tags


class DeleteTags(Shape):
    name: Name
    tags: Tags


class Templates:
    """Reads the shelf; writes tags, and removes, through the registry."""

    def __init__(self, shelf: TemplateShelf, registry: TemplateRegistry) -> None:
        self._shelf = shelf
        self._registry = registry

    def routes(self, endpoints: Endpoints) -> list[Route]:
        one = "/templates/{template:path}"
        return [
            endpoints.route("GET", "/templates", self.list),
            endpoints.route("GET", "/v2/templates", self.list_pages),
            endpoints.route("POST", "/templates/tags", self.assign_tags),
            endpoints.route("DELETE", "/templates/tags", self.delete_tags),
            endpoints.route("GET", "/templates/aliases/{template:path}", self.alias),
            endpoints.route("GET", f"{one}/tags", self.tags),
            endpoints.route("GET", f"{one}/tags/exists", self.tag_exists),
            endpoints.route("GET", f"{one}/tags/count", self.count_tags),
            endpoints.route("GET", one, self.get),
            endpoints.route("DELETE", one, self.remove),
        ]

    async def list(self, call: Call) -> Answer:
        return [shown(template) for template in self._shelf.list(call.account)]

    async def list_pages(self, call: Call) -> Answer:
        limit = call.number("limit", 100, least=1, most=100)
        start = call.number("nextToken", 0, most=1 << 20)
        found = self._shelf.list(call.account)
        headers = {NEXT_TOKEN: str(start + limit)} if len(found) > start + limit else {}
        return JSONResponse([shown(template) for template in found[start : start + limit]], headers=headers)

    async def alias(self, call: Call) -> Answer:
        template = self._template(call)
        return {"templateID": template.id, "public": template.builtin}

    async def get(self, call: Call) -> Answer:
        template = self._template(call)
        builds = [_build(build) for build in self._shelf.builds(call.account, template)]
        return {**shown(template), "buildCount": len(builds), "builds": builds}

    async def tags(self, call: Call) -> Answer:
        return [
            {"tag": tag, "buildID": build, "createdAt": moment(created)}
            for tag, build, created in self._shelf.tags(call.account, self._template(call))
        ]

    async def tag_exists(self, call: Call) -> Answer:
        template, tag = self._template(call), call.query.get("tag", "").lower()
        known = tag in {name for name, _, _ in self._shelf.tags(call.account, template)}
        return {"exists": known, "normalizedTag": tag}

    async def count_tags(self, call: Call) -> Answer:
        return {"total": len(self._shelf.tags(call.account, self._template(call)))}

    async def assign_tags(self, call: Call) -> Answer:
        asked = call.parse(AssignTags)
        tags = [parse_tag(tag) for tag in asked.tags]
        template = self._shelf.get(asked.target, call.account)
        await self._registry.assign(call.account, template, tags)
        return JSONResponse({"tags": tags, "buildID": template.build}, status_code=201)

    async def delete_tags(self, call: Call) -> Answer:
        asked = call.parse(DeleteTags)
        await self._registry.unassign(call.account, asked.name, [parse_tag(tag) for tag in asked.tags])
        return None

    async def remove(self, call: Call) -> Answer:
        """A snapshot too."""
        await self._registry.remove(call.account, call.path["template"])
        return None

    def _template(self, call: Call) -> SandboxTemplate:
        return self._shelf.get(call.path["template"], call.account)


def _build(build: SandboxTemplate) -> dict[str, Any]:
    return {
        "buildID": build.build,
        "status": "ready",
        "createdAt": moment(build.created),
        "updatedAt": moment(build.created),
        "finishedAt": moment(build.created),
        "cpuCount": cpu_count(build.limits),
        "memoryMB": build.limits.memory_mb,
        "diskSizeMB": build.limits.disk_mb,
        "envdVersion": ENVD_VERSION,
    }


def shown(template: SandboxTemplate) -> dict[str, Any]:
    """One template of a listing."""
    return {
        "templateID": template.id,
        "buildID": template.build,
        "cpuCount": cpu_count(template.limits),
        "memoryMB": template.limits.memory_mb,
        "diskSizeMB": template.limits.disk_mb,
        "public": template.builtin,
        "aliases": list(template.names),
        "names": list(template.names),
        "createdAt": moment(template.created),
        "updatedAt": moment(template.created),
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": ENVD_VERSION,
        "buildStatus": "ready",
        "isDefault": template.builtin,
    }
