"""Layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.downloads import Downloads
from roost.api.fc.functions import package_body_limit
from roost.api.fc.paging import limit_of, page, page_numbers, with_token
from roost.api.fc.render import layer_json
from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import InputCode, Shape
from roost.model.errors import InvalidArgument
from roost.store.layers import LayerRecord

Text = Annotated[str, Field(max_length=256)]


class _CreateLayer(Shape):
    code: InputCode
    compatible_runtime: Annotated[list[Text], Field(max_length=20)] = Field(default_factory=list)
    description: Text = ""
    license: Text = ""


class Layers:
    def __init__(self, catalog: FunctionCatalog, downloads: Downloads) -> None:
        self._catalog = catalog
        self._layers = catalog.layers
        self._downloads = downloads

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/layers/{name}/versions"
        return [
            endpoints.route("POST", path, self._create, body_limit=package_body_limit(self._catalog)),
            endpoints.route("GET", path, self._list_versions),
            endpoints.route("GET", path + "/{version:int}", self._get),
            endpoints.route("DELETE", path + "/{version:int}", self._delete),
            endpoints.route("PUT", "/layers/{name}/acl", self._put_acl),
            endpoints.route("GET", "/layers", self._list),
            endpoints.route("GET", "/layerarn/{arn:path}", self._get_by_arn),
        ]

    async def _create(self, call: Call) -> Answer:
        given = call.parse(_CreateLayer)
        if not given.code.zip_file:
            raise InvalidArgument("code.zipFile: a zip archive in base64 is required.")
        async with self._catalog.packages.adding_base64(given.code.zip_file, given.code.checksum) as package:
            record = await self._layers.publish(
                call.account,
                call.params["name"],
                package,
                description=given.description,
                license=given.license,
                runtimes=given.compatible_runtime,
            )
        return self._json(record, call)

    async def _get(self, call: Call) -> Answer:
        record = self._layers.get(call.account, call.params["name"], int(call.params["version"]))
        return self._json(record, call)

    async def _get_by_arn(self, call: Call) -> Answer:
        return self._json(self._layers.find(call.params["arn"], call.account), call)

    async def _list_versions(self, call: Call) -> Answer:
        found, token = page_numbers(
            self._layers.list_versions(call.account, call.params["name"]),
            lambda record: record.version,
            limit=limit_of(call.query),
            token=call.query.get("startVersion", ""),
        )
        body: dict[str, object] = {"layers": [self._json(record) for record in found]}
        return {**body, "nextVersion": int(token)} if token else body

    async def _list(self, call: Call) -> Answer:
        # There are no official layers on a machine of one's own.
        official = call.query_bool("official")
        records = [] if official else self._layers.list(call.account, public=call.query_bool("public"))
        found, token = page(
            records,
            lambda record: record.name,
            limit=limit_of(call.query),
            token=call.query.get("nextToken", ""),
            prefix=call.query.get("prefix", ""),
        )
        return with_token({"layers": [self._json(record) for record in found]}, token)

    async def _put_acl(self, call: Call) -> Answer:
        public = call.query_bool("public")
        acl = call.query.get("acl", "")
        if public is None and acl not in {"0", "1"}:
            raise InvalidArgument("acl: '1' (public) or '0' (private) is expected.")
        await self._layers.set_public(call.account, call.params["name"], acl == "1" if public is None else public)
        return None

    async def _delete(self, call: Call) -> Answer:
        await self._layers.delete(call.account, call.params["name"], int(call.params["version"]))
        return None

    def _json(self, record: LayerRecord, call: Call | None = None) -> dict[str, object]:
        location = self._downloads.url(call, record.code_digest) if call else ""
        public = self._layers.is_public(record.account, record.name)
        return layer_json(record, self._layers.arn(record), public=public, location=location)
