"""Tags, on functions and layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.paging import limit_of, page, with_token
from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import Shape, Tag
from roost.functions.names import OwnerKind, parse_owner_arn
from roost.functions.parse import parse
from roost.model.errors import InvalidArgument, NotFound

_KINDS: dict[str, OwnerKind] = {
    "function": "function",
    "ALIYUN::FC::FUNCTION": "function",
    "layer": "layer",
    "ALIYUN::FC::LAYER": "layer",
}


class _TagResources(Shape):
    resource_id: Annotated[list[str], Field(alias="ResourceId", min_length=1, max_length=50)]
    resource_type: Annotated[str, Field(alias="ResourceType")]
    tag: Annotated[list[Tag], Field(alias="Tag", min_length=1, max_length=20)]


class Tags:
    def __init__(self, catalog: FunctionCatalog) -> None:
        self._catalog = catalog
        self._tags = catalog.tags

    def routes(self, endpoints: Endpoints) -> list[Route]:
        return [
            endpoints.route("POST", "/tags-v2", self._tag),
            endpoints.route("GET", "/tags-v2", self._list),
            endpoints.route("DELETE", "/tags-v2", self._untag),
        ]

    async def _tag(self, call: Call) -> Answer:
        given = call.parse(_TagResources)
        kind = _kind(given.resource_type)
        names = self._names(call, kind, given.resource_id)
        await self._tags.put(call.account, kind, names, {tag.key: tag.value for tag in given.tag})
        return None

    async def _untag(self, call: Call) -> Answer:
        kind = _kind(call.query.get("ResourceType", ""))
        names = self._names(call, kind, _strings(call, "ResourceId"))
        keys = _strings(call, "TagKey")
        if not names:
            raise InvalidArgument("ResourceId: this field is required.")
        if not keys and not call.query_bool("All"):
            raise InvalidArgument("TagKey: name the tags to remove, or set All to true.")
        await self._tags.remove(call.account, kind, names, keys or None)
        return None

    async def _list(self, call: Call) -> Answer:
        kind = _kind(call.query.get("ResourceType", ""))
        names = self._names(call, kind, _strings(call, "ResourceId"))
        wanted = [parse(Tag, item, "Tag") for item in call.query_list("Tag")]
        owners = [
            (name, tags)
            for name, tags in self._tags.list(call.account, kind)
            if (not names or name in names) and all(_has(tags, tag) for tag in wanted)
        ]
        found, token = page(
            owners,
            lambda owner: owner[0],
            limit=limit_of(call.query),
            token=call.query.get("NextToken", ""),
        )
        rows = [
            {"ResourceId": self._arn(call, kind, name), "ResourceType": kind, "TagKey": key, "TagValue": value}
            for name, tags in found
            for key, value in tags.items()
        ]
        return with_token({"RequestId": call.request_id, "TagResources": rows}, token, "NextToken")

    def _names(self, call: Call, kind: OwnerKind, arns: list[str]) -> list[str]:
        names = []
        for arn in arns:
            account, of_kind, name = parse_owner_arn(arn)
            if of_kind != kind:
                raise InvalidArgument(f"ResourceId: {arn[:200]!r} is not a {kind}.")
            if account not in {call.account, ""}:
                raise NotFound(f"There is no {kind} {name[:80]!r}.", code=f"{kind.capitalize()}NotFound")
            names.append(name)
        return names

    def _arn(self, call: Call, kind: OwnerKind, name: str) -> str:
        return f"acs:fc:{self._catalog.region}:{call.account}:{kind}s/{name}"


def _kind(text: str) -> OwnerKind:
    kind = _KINDS.get(text)
    if kind is None:
        raise InvalidArgument(f"ResourceType: {text[:40]!r} is not one of {', '.join(_KINDS)}.")
    return kind


def _strings(call: Call, name: str) -> list[str]:
    values = call.query_list(name)
    if not all(isinstance(value, str) for value in values):
        raise InvalidArgument(f"{name}: a JSON list of strings is expected.")
    return values


def _has(tags: dict[str, str], wanted: Tag) -> bool:
    return wanted.key in tags and wanted.value in {"", tags[wanted.key]}
