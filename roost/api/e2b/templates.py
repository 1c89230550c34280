"""`/templates`: what sandboxes can be made from, by name, and the tags of its builds."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route

from roost.api.e2b.call import NEXT_TOKEN, Answer, Call, Endpoints, Shape
from roost.api.e2b.render import cpu_count, moment
from roost.model.errors import InvalidArgument, NotFound
from roost.sandboxes.templates import ENVD_VERSION, SandboxTemplate, TemplateShelf

_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
Tags = Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=50)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class AssignTags(Shape):
    target: Name
    tags: Tags


class DeleteTags(Shape):
    name: Name
    tags: Tags


class Templates:
    """Reads the shelf; writes tags to it."""

    def __init__(self, shelf: TemplateShelf) -> None:
        self._shelf = shelf

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
        ]

    async def list(self, call: Call) -> Answer:
        return [shown(template) for template in self._shelf.list()]

    async def list_pages(self, call: Call) -> Answer:
        limit = call.number("limit", 100, least=1, most=100)
        start = call.number("nextToken", 0, most=1 << 20)
        found = self._shelf.list()
        headers = {NEXT_TOKEN: str(start + limit)} if len(found) > start + limit else {}
        return JSONResponse([shown(template) for template in found[start : start + limit]], headers=headers)

    async def alias(self, call: Call) -> Answer:
        template = self._template(call)
        return {"templateID": template.id, "public": template.builtin}

    async def get(self, call: Call) -> Answer:
        template = self._template(call)
        build = {
            "buildID": build_id(template),
            "status": "ready",
            "createdAt": moment(template.created),
            "updatedAt": moment(template.created),
            "finishedAt": moment(template.created),
            "cpuCount": cpu_count(template.limits),
            "memoryMB": template.limits.memory_mb,
            "diskSizeMB": template.limits.disk_mb,
            "envdVersion": ENVD_VERSION,
        }
        return {**shown(template), "builds": [build]}

    async def tags(self, call: Call) -> Answer:
        template = self._template(call)
        return [
            {"tag": tag, "buildID": build_id(template), "createdAt": moment(created)}
            for tag, created in self._shelf.tags(call.account, template)
        ]

    async def tag_exists(self, call: Call) -> Answer:
        template, tag = self._template(call), call.query.get("tag", "").lower()
        known = tag in {name for name, _ in self._shelf.tags(call.account, template)}
        return {"exists": known, "normalizedTag": tag}

    async def count_tags(self, call: Call) -> Answer:
        return {"total": len(self._shelf.tags(call.account, self._template(call)))}

    async def assign_tags(self, call: Call) -> Answer:
        asked = call.parse(AssignTags)
        tags = [_tag(tag) for tag in asked.tags]
        template = self._shelf.get(asked.target, call.account)
        await self._shelf.assign(call.account, template, build_id(template), tags)
        return JSONResponse({"tags": tags, "buildID": build_id(template)}, status_code=201)

    async def delete_tags(self, call: Call) -> Answer:
        asked = call.parse(DeleteTags)
        template = self._shelf.get(asked.name.partition(":")[0])
        known = {name for name, _ in self._shelf.tags(call.account, template)}
        unknown = sorted({_tag(tag) for tag in asked.tags} - known)
        if unknown:
            raise NotFound(f"tag '{unknown[0]}' of template '{template.id}' not found")
        await self._shelf.unassign(call.account, template, [_tag(tag) for tag in asked.tags])
        return None

    def _template(self, call: Call) -> SandboxTemplate:
        return self._shelf.get(call.path["template"], call.account)


def build_id(template: SandboxTemplate) -> str:
    """A root file system is built once, as a whole: the build is named after it and its time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"roost:{template.id}:{template.created!r}"))


def shown(template: SandboxTemplate) -> dict[str, Any]:
    """One template of a listing."""
    return {
        "templateID": template.id,
        "buildID": build_id(template),
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


def _tag(tag: str) -> str:
    name = tag.lower()
    if not _TAG.fullmatch(name):
        raise InvalidArgument(f"tags: {tag[:80]!r} is no tag: letters, digits, '.', '_' and '-' are expected.")
    return name
