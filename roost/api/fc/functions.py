"""Functions, their code, and whether they may be invoked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.routing import Route

from roost.api.fc.call import SMALL_BODY, Answer, Call, Endpoints
from roost.api.fc.downloads import Downloads
from roost.api.fc.paging import limit_of, page, with_token
from roost.api.fc.render import function_json, has_package
from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import FunctionConfig, InputCode, Shape, Tag
from roost.functions.entry import FunctionEntry
from roost.functions.parse import parse
from roost.model.errors import InvalidArgument, NotFound


class _CreateFunction(FunctionConfig):
    function_name: str
    code: InputCode | None = None
    tags: Annotated[list[Tag], Field(max_length=20)] | None = None


class _Disable(Shape):
    reason: Annotated[str, Field(max_length=256)] = ""
    abort_ongoing_request: bool | None = None


class Functions:
    def __init__(self, catalog: FunctionCatalog, downloads: Downloads) -> None:
        self._catalog = catalog
        self._downloads = downloads

    def routes(self, endpoints: Endpoints) -> list[Route]:
        route = endpoints.route
        large = package_body_limit(self._catalog)
        return [
            route("POST", "/functions", self._create, body_limit=large),
            route("GET", "/functions", self._list),
            route("GET", "/functions/{name}", self._get),
            route("PUT", "/functions/{name}", self._update, body_limit=large),
            route("DELETE", "/functions/{name}", self._delete),
            route("GET", "/functions/{name}/code", self._code),
            route("POST", "/functions/{name}/invoke/disable", self._disable),
            route("POST", "/functions/{name}/invoke/enable", self._enable),
        ]

    async def _create(self, call: Call) -> Answer:
        body = call.json()
        given = parse(_CreateFunction, body)
        own = {"functionName", "code", "tags"}
        config = parse(FunctionConfig, {key: value for key, value in body.items() if key not in own})
        tags = {tag.key: tag.value for tag in given.tags or ()}
        entry = await self._catalog.create(call.account, given.function_name, config, given.code, tags)
        return self._json(call, entry, None)

    async def _get(self, call: Call) -> Answer:
        return self._json(call, self._catalog.get(call.account, call.params["name"]), call.qualifier)

    async def _list(self, call: Call) -> Answer:
        wanted = call.query
        tags = [parse(Tag, item, "tags") for item in call.query_list("tags")]

        def matches(entry: FunctionEntry) -> bool:
            config = entry.snapshots["LATEST"].config
            of_entry = self._catalog.tags.get(call.account, "function", entry.record.name)
            return (
                wanted.get("functionName") in {None, "", entry.record.name}
                and wanted.get("runtime") in {None, "", config.runtime}
                and wanted.get("description", "") in (config.description or "")
                and not wanted.get("gpuType")
                and wanted.get("fcVersion") in {None, "", "v3"}
                and all(of_entry.get(tag.key) == tag.value for tag in tags)
            )

        found, token = page(
            [entry for entry in self._catalog.list(call.account) if matches(entry)],
            lambda entry: entry.record.name,
            limit=limit_of(wanted),
            token=wanted.get("nextToken", ""),
            prefix=wanted.get("prefix", ""),
        )
        return with_token({"functions": [self._json(call, entry, None) for entry in found]}, token)

    async def _update(self, call: Call) -> Answer:
        body = call.json()
        name = call.params["name"]
        code = body.pop("code", None)
        if body.pop("functionName", None) not in {None, name}:
            raise InvalidArgument("functionName: a function can't be renamed.")
        given = None if code is None else parse(InputCode, code, "code")
        return self._json(call, await self._catalog.update(call.account, name, body, given), None)

    async def _delete(self, call: Call) -> Answer:
        await self._catalog.delete(call.account, call.params["name"])
        return None

    async def _code(self, call: Call) -> Answer:
        snapshot = self._catalog.snapshot(call.account, call.params["name"], call.qualifier)
        if not has_package(snapshot):
            raise NotFound("This function was made of an image; it has no package.", code="CodeNotFound")
        return {"url": self._downloads.url(call, snapshot.code_digest), "checksum": snapshot.code_checksum}

    async def _disable(self, call: Call) -> Answer:
        given = call.parse(_Disable)
        if given.abort_ongoing_request:
            raise InvalidArgument("abortOngoingRequest: not supported; requests that run are let finish.")
        await self._catalog.restrict(call.account, call.params["name"], given.reason)
        return {"success": True}

    async def _enable(self, call: Call) -> Answer:
        await self._catalog.restrict(call.account, call.params["name"], None)
        return {"success": True}

    def _json(self, call: Call, entry: FunctionEntry, qualifier: str | None) -> dict[str, object]:
        version = entry.version_of(qualifier)
        tags = self._catalog.tags.get(call.account, "function", entry.record.name)
        return function_json(entry, entry.snapshots[version], entry.specs[version], tags, self._catalog.region)


def package_body_limit(catalog: FunctionCatalog) -> int:
    """Bytes of a JSON body that carries a package in base64."""
    return catalog.packages.limits.compressed * 4 // 3 + SMALL_BODY
