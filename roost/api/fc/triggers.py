"""Triggers: what starts a function, and how it is doing."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from pydantic import Field
from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.paging import limit_of, page, with_token
from roost.api.fc.render import iso
from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import Shape
from roost.functions.names import function_arn
from roost.functions.triggers.http import HTTP
from roost.functions.triggers.kinds import OBJECTS, TIMER, WEBHOOK, is_enabled, visible_config
from roost.functions.triggers.settings import settings_of
from roost.functions.triggers.timer import TimerSettings
from roost.model.errors import AccessDenied
from roost.model.function import LATEST
from roost.store.triggers import TriggerRecord
from roost.triggers.status import Statuses, TriggerStatus, state_of

Text = Annotated[str, Field(max_length=1024)]


class _UpdateTrigger(Shape):
    """`invocationRole` and `sourceArn` have no meaning here: they are kept and shown, as clients send them."""

    description: Annotated[str, Field(max_length=256)] | None = None
    qualifier: Text | None = None
    trigger_config: str | None = None
    invocation_role: Text | None = None


class _CreateTrigger(_UpdateTrigger):
    trigger_name: str
    trigger_type: str
    trigger_config: str = "{}"
    source_arn: Text | None = None


class Triggers:
    def __init__(self, catalog: FunctionCatalog, statuses: Statuses) -> None:
        self._catalog = catalog
        self._statuses = statuses
        self._triggers = catalog.triggers

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/functions/{name}/triggers"
        return [
            endpoints.route("POST", path, self._create),
            endpoints.route("GET", path, self._list),
            endpoints.route("GET", path + "/{trigger}", self._get),
            endpoints.route("PUT", path + "/{trigger}", self._update),
            endpoints.route("DELETE", path + "/{trigger}", self._delete),
        ]

    async def _create(self, call: Call) -> Answer:
        given = call.parse(_CreateTrigger)
        if given.trigger_type == OBJECTS and not call.operator:
            raise AccessDenied("The object store of this server is its own account's.")
        record = await self._triggers.create(
            call.account,
            call.params["name"],
            given.trigger_name,
            type=given.trigger_type,
            qualifier=given.qualifier,
            config=given.trigger_config,
            description=given.description or "",
            source_arn=given.source_arn or "",
            invocation_role=given.invocation_role or "",
        )
        return self._json(call, record)

    async def _get(self, call: Call) -> Answer:
        return self._json(call, self._triggers.get(call.account, call.params["name"], call.params["trigger"]))

    async def _list(self, call: Call) -> Answer:
        found, token = page(
            self._triggers.list(call.account, call.params["name"]),
            lambda record: record.name,
            limit=limit_of(call.query),
            token=call.query.get("nextToken", ""),
            prefix=call.query.get("prefix", ""),
        )
        return with_token({"triggers": [self._json(call, record) for record in found]}, token)

    async def _update(self, call: Call) -> Answer:
        given = call.parse(_UpdateTrigger)
        record = await self._triggers.update(
            call.account,
            call.params["name"],
            call.params["trigger"],
            qualifier=given.qualifier,
            config=given.trigger_config,
            description=given.description,
            invocation_role=given.invocation_role,
        )
        return self._json(call, record)

    async def _delete(self, call: Call) -> Answer:
        await self._triggers.delete(call.account, call.params["name"], call.params["trigger"])
        return None

    def _json(self, call: Call, record: TriggerRecord) -> dict[str, Any]:
        status = self._statuses.find(record)
        shown: dict[str, Any] = {
            "triggerId": record.id,
            "triggerName": record.name,
            "triggerType": record.type,
            "qualifier": record.qualifier,
            "description": record.description,
            "triggerConfig": json.dumps(visible_config(record)),
            "sourceArn": record.source_arn,
            "invocationRole": record.invocation_role,
            "targetArn": function_arn(self._catalog.region, record.account, record.function),
            "status": state_of(record, status),
            "createdTime": iso(record.created),
            "lastModifiedTime": iso(record.modified),
        }
        if record.type == HTTP:
            suffix = "" if record.qualifier == LATEST else f":{record.qualifier}"
            # Short addresses are those of the server's own account.
            owner = "" if call.operator else f"/~{record.account}"
            url = f"{call.base_url}{owner}/{record.function}{suffix}/"
            shown["httpTrigger"] = {"urlInternet": url, "urlIntranet": url}
        else:
            shown["roost"] = _extension(record, status)
        if record.type == WEBHOOK:
            url = f"{call.base_url}/webhooks/{record.account}/{record.function}/{record.name}"
            shown["httpTrigger"] = {"urlInternet": url, "urlIntranet": url}
        return shown


def _extension(record: TriggerRecord, status: TriggerStatus) -> dict[str, Any]:
    """What Function Compute has no fields for. Counts are since the server's start."""
    shown: dict[str, Any] = {
        "delivered": status.delivered_count,
        "enqueued": status.enqueued_count,
        "failed": status.failed_count,
        "deadLettered": status.dead_lettered_count,
    }
    if status.last_success:
        shown["lastSuccessTime"] = iso(status.last_success)
    if status.last_error:
        shown |= {"lastError": status.last_error, "lastErrorTime": iso(status.last_error_at)}
    if record.type == TIMER and is_enabled(record):
        shown["nextTime"] = iso(settings_of(TimerSettings, record).schedule(record).after(time.time()))
    return shown
