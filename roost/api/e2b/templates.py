"""`/templates`: what sandboxes can be made from, by name."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse
from starlette.routing import Route

from roost.api.e2b.call import NEXT_TOKEN, Answer, Call, Endpoints, Shape
from roost.api.e2b.render import cpu_count, moment
from roost.model.errors import InvalidArgument
from roost.sandboxes.registry import TemplateRegistry
from roost.sandboxes.templates import ENVD_VERSION, SandboxTemplate, TemplateShelf


class UpdateTemplate(Shape):
    public: bool = False


class Templates:
    """Reads the shelf; removes through the registry."""

    def __init__(self, shelf: TemplateShelf, registry: TemplateRegistry) -> None:
        self._shelf = shelf
        self._registry = registry

    def routes(self, endpoints: Endpoints) -> list[Route]:
        one = "/templates/{template:path}"
        return [
            endpoints.route("GET", "/templates", self.list),
            endpoints.route("GET", "/v2/templates", self.list_pages),
            endpoints.route("GET", "/default-templates", self.list_builtin),
            endpoints.route("GET", "/templates/aliases/{template:path}", self.alias),
            endpoints.route("GET", one, self.get),
            endpoints.route("PATCH", one, self.update),
            endpoints.route("PATCH", f"/v2{one}", self.update),
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

    async def list_builtin(self, call: Call) -> Answer:
        return [shown(template) for template in self._shelf.list(call.account) if template.builtin]

    async def alias(self, call: Call) -> Answer:
        template = self._template(call)
        return {"templateID": template.id, "public": template.builtin}

    async def get(self, call: Call) -> Answer:
        template = self._template(call)
        builds = [_build(build) for build in self._shelf.builds(call.account, template)]
        return {**shown(template), "buildCount": len(builds), "builds": builds}

    async def update(self, call: Call) -> Answer:
        if call.parse(UpdateTemplate).public:
            raise InvalidArgument("public: a template of this server belongs to one account and is shared with none.")
        record = self._shelf.own(call.account, call.path["template"])
        return {"names": [record.name] if record.name else []}

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
