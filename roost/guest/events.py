"""Event handlers and HTTP: requests to events, results to replies, in Function Compute's shapes. Pure."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quote
from typing import Any
from urllib.parse import parse_qsl, unquote

from roost.guest.framing import FRAMING
from roost.guest.http1 import Head, Shape

BINARY = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class BadReply(TypeError):
    """The handler returned what cannot be sent: not serialisable, or a reply with wrong parts."""


@dataclass(slots=True)
class Reply:
    """Status, headers (without framing) and body."""

    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


def to_bytes(result: object) -> tuple[bytes, str]:
    """A result as (body, content type): bytes as they are, text as UTF-8, None as nothing, the rest as JSON."""
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result), BINARY
    if isinstance(result, str):
        return result.encode("utf-8", "surrogatepass"), TEXT
    if result is None:
        return b"", BINARY
    try:
        return json.dumps(result, ensure_ascii=False).encode(), JSON
    except (TypeError, ValueError, RecursionError) as error:
        raise BadReply(f"The handler's result is not serialisable: {error}") from None


def invoke_reply(result: object) -> Reply:
    body, content_type = to_bytes(result)
    return Reply(headers=[("content-type", content_type)], body=body)


def http_reply(result: object) -> Reply:
    """Map `{statusCode, headers, isBase64Encoded, body}`; anything else is the body of a 200."""
    parts = reply_parts(result)
    if parts is None:
        return invoke_reply(result)
    reply = head_of(parts)
    content = parts.get("body")
    body, content_type = to_bytes(content)
    if parts.get("isBase64Encoded"):
        try:
            body = base64.b64decode(body, validate=True)
        except ValueError as error:
            raise BadReply(f"The reply's body is not base64: {error}") from None
    reply.body = body
    if content is not None and not any(name == "content-type" for name, _ in reply.headers):
        reply.headers.append(("content-type", content_type))
    return reply


def reply_parts(result: object) -> Mapping[str, Any] | None:
    """`result` if it is an HTTP reply in parts: a dict with a `statusCode`, also as JSON text."""
    if isinstance(result, str | bytes) and len(result) > 1 and result[0] in ("{", 0x7B):
        try:
            result = json.loads(result)
        except ValueError:
            return None
    return result if isinstance(result, dict) and "statusCode" in result else None


def head_of(parts: Mapping[str, Any]) -> Reply:
    """Status and headers of a reply in parts. Raises BadReply."""
    status = parts["statusCode"]
    if isinstance(status, str) and status.isdigit():
        status = int(status)
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise BadReply(f"statusCode is not a status: {parts['statusCode']!r}")
    headers = parts.get("headers")
    headers = {} if headers is None else headers
    if not isinstance(headers, dict):
        raise BadReply("headers is not an object")
    fields = [
        (str(name).lower(), str(value))
        for name, values in headers.items()
        for value in (values if isinstance(values, list | tuple) else (values,))
    ]
    return Reply(status=status, headers=[item for item in fields if item[0] not in FRAMING])


def http_event(head: Head, body: bytes, account: str) -> bytes:
    """The `event` of an HTTP trigger, version v1."""
    path, _, query = head.target.partition("?")
    text, encoded = _body_text(body)
    headers, domain, client = _common_parts(head.shape)
    now = time.time()
    event = (
        f'{{"version": "v1", "rawPath": {_quote(path)}, "headers": {headers}, '
        f'"queryParameters": {json.dumps(_query(query)) if query else "{}"}, '
        f'"body": {_quote(text)}, "isBase64Encoded": {"true" if encoded else "false"}, '
        f'"requestContext": {{"accountId": {_quote(account)}, {domain}, '
        f'"http": {{"method": {_quote(head.method)}, "path": {_quote(unquote(path))}, '
        f'"protocol": "HTTP/{head.version}", {client}}}, "requestId": {_quote(head.request_id)}, '
        f'"time": "{_second(int(now))}", "timeEpoch": "{int(now * 1000)}"}}}}'
    )
    return event.encode("ascii")


@lru_cache(64)
def _common_parts(shape: Shape) -> tuple[str, str, str]:
    """What the events of all requests of this shape have in common, as JSON: the headers, and fields of the context."""
    headers = shape.all()
    host = headers.get("host", "")
    domain = {"domainName": host, "domainPrefix": host.partition(".")[0].partition(":")[0]}
    client = {
        "sourceIp": headers.get("x-forwarded-for", "").partition(",")[0].strip(),
        "userAgent": headers.get("user-agent", ""),
    }
    told = {name.title(): value for name, value in headers.items() if not name.startswith("x-fc-")}
    return json.dumps(told), json.dumps(domain)[1:-1], json.dumps(client)[1:-1]


@lru_cache(1)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _query(query: str) -> dict[str, str]:
    """Of repeated parameters all values, joined with commas."""
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        values[name] = f"{values[name]},{value}" if name in values else value
    return values


def _body_text(body: bytes) -> tuple[str, bool]:
    """Text stays readable; what is no UTF-8 is encoded."""
    try:
        return body.decode(), False
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), True
