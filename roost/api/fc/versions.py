"""Versions and aliases."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.paging import limit_of, page, page_numbers, with_token
from roost.api.fc.render import alias_json, version_json
from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import Shape
from roost.model.errors import InvalidArgument

Description = Annotated[str, Field(max_length=256)]
Weights = Annotated[dict[str, float], Field(max_length=10)]


class _Publish(Shape):
    description: Description = ""


class _CreateAlias(Shape):
    alias_name: str
    version_id: str
    additional_version_weight: Weights = Field(default_factory=dict)
    description: Description = ""


class _UpdateAlias(Shape):
    version_id: str | None = None
    additional_version_weight: Weights | None = None
    description: Description | None = None


class Versions:
    def __init__(self, catalog: FunctionCatalog) -> None:
        self._versions = catalog.versions

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/functions/{name}/versions"
        return [
            endpoints.route("POST", path, self._publish),
            endpoints.route("GET", path, self._list),
            endpoints.route("DELETE", path + "/{version}", self._delete),
        ]

    async def _publish(self, call: Call) -> Answer:
        given = call.parse(_Publish)
        return version_json(await self._versions.publish(call.account, call.params["name"], given.description))

    async def _list(self, call: Call) -> Answer:
        direction = call.query.get("direction") or "BACKWARD"
        if direction not in {"BACKWARD", "FORWARD"}:
            raise InvalidArgument("direction: BACKWARD (newest first) or FORWARD is expected.")
        found, token = page_numbers(
            self._versions.list(call.account, call.params["name"]),
            lambda record: record.version,
            limit=limit_of(call.query),
            token=call.query.get("nextToken", ""),
            descending=direction == "BACKWARD",
        )
        return with_token({"versions": [version_json(record) for record in found], "direction": direction}, token)

    async def _delete(self, call: Call) -> Answer:
        await self._versions.delete(call.account, call.params["name"], call.params["version"])
        return None


class Aliases:
    def __init__(self, catalog: FunctionCatalog) -> None:
        self._aliases = catalog.aliases

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/functions/{name}/aliases"
        return [
            endpoints.route("POST", path, self._create),
            endpoints.route("GET", path, self._list),
            endpoints.route("GET", path + "/{alias}", self._get),
            endpoints.route("PUT", path + "/{alias}", self._update),
            endpoints.route("DELETE", path + "/{alias}", self._delete),
        ]

    async def _create(self, call: Call) -> Answer:
        given = call.parse(_CreateAlias)
        record = await self._aliases.create(
            call.account,
            call.params["name"],
            given.alias_name,
            version=given.version_id,
            weights=given.additional_version_weight,
            description=given.description,
        )
        return alias_json(record)

    async def _get(self, call: Call) -> Answer:
        return alias_json(self._aliases.get(call.account, call.params["name"], call.params["alias"]))

    async def _list(self, call: Call) -> Answer:
        found, token = page(
            self._aliases.list(call.account, call.params["name"]),
            lambda record: record.name,
            limit=limit_of(call.query),
            token=call.query.get("nextToken", ""),
            prefix=call.query.get("prefix", ""),
        )
        return with_token({"aliases": [alias_json(record) for record in found]}, token)

    async def _update(self, call: Call) -> Answer:
        given = call.parse(_UpdateAlias)
        record = await self._aliases.update(
            call.account,
            call.params["name"],
            call.params["alias"],
            version=given.version_id,
            weights=given.additional_version_weight,
            description=given.description,
        )
        return alias_json(record)

    async def _delete(self, call: Call) -> Answer:
        await self._aliases.delete(call.account, call.params["name"], call.params["alias"])
        return None
