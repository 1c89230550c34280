"""The instances of a function, and the one region there is."""

from __future__ import annotations

from typing import Any

from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.paging import limit_of
from roost.api.fc.ports import Instances as Fleet
from roost.api.fc.ports import InstanceView
from roost.functions.catalog import FunctionCatalog
from roost.model.errors import InvalidArgument
from roost.model.function import LATEST


class Instances:
    def __init__(self, catalog: FunctionCatalog, fleet: Fleet) -> None:
        self._catalog = catalog
        self._fleet = fleet

    def routes(self, endpoints: Endpoints) -> list[Route]:
        return [
            endpoints.route("GET", "/functions/{name}/instances", self._list),
            endpoints.route("GET", "/regions", self._regions),
        ]

    async def _list(self, call: Call) -> Answer:
        name = call.params["name"]
        entry = self._catalog.get(call.account, name)
        version = None if call.qualifier is None else entry.version_of(call.qualifier)
        ids, statuses = call.query_list("instanceIds"), call.query_list("instanceStatus")
        begin, end = _milliseconds(call, "startTimeMs"), _milliseconds(call, "endTimeMs")
        alive_only = call.query_bool("withAllActive")
        start = call.query.get("startKey", "")
        found = [
            view
            for view in sorted(self._fleet.list_instances(call.account, name), key=lambda view: view.instance_id)
            if version in {None, view.version}
            and (not ids or view.instance_id in ids)
            and (not statuses or view.state in statuses)
            and (begin is None or (view.destroyed or view.created) * 1000 >= begin)
            and (end is None or view.created * 1000 <= end)
            and not (alive_only and view.destroyed is not None)
            and view.instance_id >= start
        ]
        limit = limit_of(call.query, default=100, most=1000)
        return {"instances": [_json(view) for view in found[:limit]], "requestId": call.request_id}

    async def _regions(self, call: Call) -> Answer:
        region = self._catalog.region
        return {"Regions": {"Region": [{"RegionId": region, "LocalName": region}]}}


def _json(view: InstanceView) -> dict[str, Any]:
    body: dict[str, Any] = {
        "instanceId": view.instance_id,
        "status": view.state,
        # The API's own way to say LATEST here.
        "versionId": "0" if view.version == LATEST else view.version,
        "qualifier": view.qualifier,
        "createdTimeMs": int(view.created * 1000),
    }
    return body if view.destroyed is None else {**body, "destroyedTimeMs": int(view.destroyed * 1000)}


def _milliseconds(call: Call, name: str) -> int | None:
    text = call.query.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidArgument(f"{name}: a time in milliseconds since 1970 is expected, not {text[:40]!r}.")
    return int(text)
