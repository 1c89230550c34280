"""Triggers of a whole server, with the official SDK as the client."""

from __future__ import annotations

import json
import time
from typing import Any

from alibabacloud_fc20230330 import models as fc

from tests.support.sdk import Sdk
from tests.support.server import Server

#: Appends each event to a volume that the test reads.
NOTES = """
import os
def handler(event, context):
    with open("/mnt/notes/events", "ab") as file:
        file.write(event.replace(b"\\n", b" ") + b"\\n")
"""


def create(sdk: Sdk, function: str, name: str, type: str, config: dict[str, Any], **fields: Any) -> Any:
    body = fc.CreateTriggerInput(trigger_name=name, trigger_type=type, trigger_config=json.dumps(config), **fields)
    return sdk.client.create_trigger(function, fc.CreateTriggerRequest(body=body)).body


def test_a_timer_starts_its_function(sdk: Sdk, roost: Server) -> None:
    sdk.create("timed", {"index.py": "def handler(event, context):\n    return event\n"})
    made = create(sdk, "timed", "every", "timer", {"cronExpression": "@every 1s", "payload": "hi", "enable": True})
    print(made)
    time.sleep(4)
    got = sdk.client.get_trigger("timed", "every").body
    print(got)
    tasks = sdk.client.list_async_tasks("timed", fc.ListAsyncTasksRequest(include_payload=True)).body
    print(tasks)
    assert len(tasks.tasks) >= 3
