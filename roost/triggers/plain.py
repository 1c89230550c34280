"""A webhook that is no CloudEvent, in the shape of Function Compute's HTTP events. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from roost.store.triggers import TriggerRecord

#: What proves the sender to this server, or belongs to the connection, is not the function's.
_HIDDEN = frozenset({"authorization", "proxy-authorization", "cookie", "connection", "transfer-encoding"})
_OURS = ("x-fc-", "x-roost-", "x-acs-")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request. Names of headers are in lower case; `at` is Unix seconds."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    content: bytes
    request_id: str
    at: float


def http_event(record: TriggerRecord, sent: Sent) -> bytes:
    """What the function gets."""
    headers, host = sent.headers, sent.headers.get("host", "")
    told = {
        name.title(): value
        for name, value in headers.items()
        if name not in _HIDDEN and not name.startswith(_OURS)
    }  # fmt: skip
    event = {
        "version": "v1",
        "rawPath": sent.path,
        "headers": told,
        "queryParameters": dict(sent.query),
        **_body(sent.content),
        "requestContext": {
            "accountId": record.account,
            "domainName": host,
            "domainPrefix": host.partition(".")[0].partition(":")[0],
            "http": {
                "method": "POST",
                "path": sent.path,
                "protocol": "HTTP/1.1",
                "sourceIp": headers.get("x-forwarded-for", "").rpartition(",")[2].strip(),
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": sent.request_id,
            "time": datetime.fromtimestamp(sent.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "timeEpoch": str(int(sent.at * 1000)),
            "triggerName": record.name,
        },
    }
    return json.dumps(event).encode()


def _body(content: bytes) -> dict[str, object]:
    """As it is where JSON can hold it, else in base64."""
    try:
        return {"body": content.decode(), "isBase64Encoded": False}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(content).decode(), "isBase64Encoded": True}
