"""CloudEvents 1.0 as they come in over HTTP: binary, structured and batch mode. Pure.

An event becomes an object of the JSON event format. What senders leave out is not made up: an event without an id
could not be told from its redelivery.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from roost.model.errors import InvalidArgument

STRUCTURED = "application/cloudevents"
BATCH = "application/cloudevents-batch"
_PREFIX = "ce-"
_NAME = re.compile(r"[a-z0-9]+")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE)
_JSON = re.compile(r"[a-z]+/([a-z0-9.\-]+\+)?json", re.IGNORECASE)
_REQUIRED = ("specversion", "id", "source", "type")

#: An event in the JSON event format: its attributes, and its data.
Attributes = dict[str, Any]


def is_cloudevents(headers: Mapping[str, str]) -> bool:
    """Whether a request carries CloudEvents, well-formed or not. Names of headers are in lower case."""
    return _media_type(headers).startswith(STRUCTURED) or any(name.startswith(_PREFIX) for name in headers)


def read_events(headers: Mapping[str, str], body: bytes) -> list[Attributes]:
    """The events of a request, checked. Raises InvalidArgument that names the attribute."""
    media = _media_type(headers)
    kind, _, form = media.partition("+")
    if not kind.startswith(STRUCTURED):
        return [_checked(_from_binary(headers, body))]
    if form != "json" or kind not in (STRUCTURED, BATCH):
        raise InvalidArgument(f"content-type: CloudEvents are taken as {STRUCTURED}+json or {BATCH}+json, not {media}.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"The body is not valid JSON: {error}.") from error
    if kind == STRUCTURED:
        return [_checked(value)]
    if not isinstance(value, list):
        raise InvalidArgument("The body must be a JSON list of events.")
    return [_checked(one, f"[{number}]") for number, one in enumerate(value)]


def identity(event: Attributes) -> str:
    """What two deliveries of one event share, and no two events."""
    return json.dumps([event["source"], event["id"]])


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _from_binary(headers: Mapping[str, str], body: bytes) -> Attributes:
    event: Attributes = {}
    for name, value in headers.items():
        if name.startswith(_PREFIX):
            attribute = name.removeprefix(_PREFIX)
            if attribute in ("data", "data_base64", "datacontenttype"):
                raise InvalidArgument(f"{attribute}: it is no attribute of a header.")
            try:
                event[attribute] = unquote(value, errors="strict")
            except UnicodeDecodeError as error:
                raise InvalidArgument(f"{attribute}: its value is not UTF-8.") from error
    if content_type := headers.get("content-type"):
        event["datacontenttype"] = content_type
    if body:
        event |= _data(_media_type(headers), body)
    return event


def _data(media: str, body: bytes) -> Attributes:
    """What is JSON stays JSON, what is text becomes a string; all else, and what is not what it claims, base64."""
    try:
        if not media or _JSON.fullmatch(media):
            return {"data": json.loads(body)}
        if media.startswith("text/"):
            return {"data": body.decode()}
    except (ValueError, RecursionError) as error:
        if media:
            raise InvalidArgument(f"data: it is not {media} ({error}).") from error
    return {"data_base64": base64.b64encode(body).decode()}


def _checked(event: Any, where: str = "") -> Attributes:
    if not isinstance(event, dict):
        raise InvalidArgument(f"{where or 'The body'} must be a JSON object.")
    where = f"{where}." if where else ""
    given: Attributes = {name: value for name, value in event.items() if value is not None or name == "data"}
    for name in _REQUIRED:
        if not given.get(name):
            raise InvalidArgument(f"{where}{name}: a CloudEvent needs this attribute.")
    for name, value in given.items():
        if name not in ("data", "data_base64") and (said := _wrong(name, value)):
            raise InvalidArgument(f"{where}{name[:80]}: {said}.")
    if "data_base64" in given:
        if "data" in given:
            raise InvalidArgument(f"{where}data_base64: an event has either this or data.")
        try:
            base64.b64decode(given["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise InvalidArgument(f"{where}data_base64: it is not base64.") from error
    return given


def _wrong(name: str, value: Any) -> str:
    """What is wrong with an attribute, "" if nothing is."""
    if not _NAME.fullmatch(name):
        return "the name of an attribute has lower-case letters and digits only"
    if name in ("id", "source", "type", "specversion", "subject", "time", "datacontenttype", "dataschema"):
        if not isinstance(value, str) or not value:
            return "a string that is not empty is expected"
    elif not isinstance(value, str | bool | int):
        return "a string, a boolean or an integer is expected"
    if name == "specversion" and value != "1.0":
        return f"{value[:40]!r} is not supported, only '1.0'"
    if name == "time" and not _is_time(value):
        return f"{value[:40]!r} is not a time of RFC 3339"
    if name in ("source", "dataschema") and not _is_uri(value, absolute=name == "dataschema"):
        return f"{value[:80]!r} is not a URI"
    return ""


def _is_time(value: str) -> bool:
    if not _TIME.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value.upper())
    except ValueError:
        return False
    return True


def _is_uri(value: str, *, absolute: bool) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return not any(char.isspace() for char in value) and (bool(parts.scheme) or not absolute)
