"""The triggers of a roost.toml: made or brought up to date after their function."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from roost.sdk.client import Client, function_path
from roost.sdk.errors import Failed


def put_triggers(client: Client, function: str, wanted: Sequence[Mapping[str, Any]]) -> None:
    """Bring about what `manifest.to_triggers` says; triggers that it does not name stay. Raises Failed."""
    if not wanted:
        return
    path = function_path(function, "/triggers")
    present = {str(one.get("triggerName")): one for one in client.list_all(path, "triggers")}
    for trigger in wanted:
        name = trigger["triggerName"]
        try:
            _put(client, path, trigger, present.get(name))
        except Failed as error:
            raise Failed(f"trigger {name}: {error}", status=error.status, code=error.code) from error


def _put(client: Client, path: str, trigger: Mapping[str, Any], present: Mapping[str, Any] | None) -> None:
    config = dict(trigger["triggerConfig"])
    if present is None:
        client.send_json("POST", path, {**trigger, "triggerConfig": json.dumps(config)})
        return
    if present.get("triggerType") != trigger["triggerType"]:
        raise Failed(
            f"there is one of type {present.get('triggerType')}, and a type does not change; delete it first with "
            "`roost triggers delete`."
        )
    if "enable" not in config and (paused := json.loads(present.get("triggerConfig") or "{}").get("enable")) is False:
        config["enable"] = paused  # somebody paused it, and the file does not mind
    changes = {"qualifier": trigger.get("qualifier", "LATEST"), "description": trigger.get("description", "")}
    name = quote(trigger["triggerName"], safe="")
    client.send_json("PUT", f"{path}/{name}", {**changes, "triggerConfig": json.dumps(config)})
