"""What the settings of all types but http have in common, and how their secrets stay secret.

A secret is kept as it was given, for it has to be used, and shown as MASK; so is the password of a URL. Settings that
come back with the mask in them keep the secret that was there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from roost.functions.definition import Shape
from roost.functions.parse import parse
from roost.model.errors import InvalidArgument
from roost.store.triggers import TriggerRecord

MASK = "***"
_WHERE = "triggerConfig"
_USER = re.compile(r"(?<=://)([^/?#@\s]*:)?[^/?#\s]*@")  # with a password behind the colon, or all of it one


class SourceSettings(Shape):
    """`enable` false: the trigger is paused. Names of fields in `SECRETS` and `URLS` are those of the API."""

    SECRETS: ClassVar[tuple[str, ...]] = ()  # shown as MASK
    URLS: ClassVar[tuple[str, ...]] = ()  # a URL or a list of them, shown without their passwords

    enable: bool = True

    @model_validator(mode="before")
    @classmethod
    def _take_trigger_enable(cls, value: Any) -> Any:
        """What Function Compute calls `enable` in some types."""
        if isinstance(value, dict) and "triggerEnable" in value and "enable" not in value:
            value = {**value, "enable": value["triggerEnable"]}
            del value["triggerEnable"]
        return value


S = TypeVar("S", bound=SourceSettings)


def wrong(message: str) -> PydanticCustomError:
    """What a validator of settings raises: one sentence without its full stop, behind the name of the field."""
    return PydanticCustomError("wrong", "{message}", {"message": message})


def settings_of(shape: type[S], record: TriggerRecord) -> S:
    """The settings of a kept trigger."""
    return parse(shape, record.config, _WHERE)


def checked(shape: type[SourceSettings], text: str, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A `triggerConfig` as it is to be kept; `kept` is what the trigger has now. Raises InvalidArgument."""
    try:
        given = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{_WHERE}: a string with a JSON object in it is expected ({error}).") from error
    if isinstance(given, dict):
        given = _unmasked(shape, given, kept or {})
    return parse(shape, given, _WHERE).to_json()


def shown(shape: type[SourceSettings], config: Mapping[str, Any]) -> dict[str, Any]:
    """Kept settings without their secrets."""
    visible = dict(config)
    for name in shape.SECRETS:
        if visible.get(name):
            visible[name] = MASK
    for name in shape.URLS:
        if name in visible:
            visible[name] = _each(visible[name], masked_url)
    return visible


def masked_url(text: str) -> str:
    """With MASK for the password; also for a text with URLs in it, such as a client's error."""
    return _USER.sub(lambda match: f"{match[1] or ''}{MASK}@", text)


def _unmasked(shape: type[SourceSettings], given: dict[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    full = dict(given)
    for name in shape.SECRETS:
        if full.get(name) == MASK:
            if name not in kept:
                raise InvalidArgument(f"{_WHERE}.{name}: {MASK} stands for a secret that is kept, and none is.")
            full[name] = kept[name]
    for name in shape.URLS:
        if name in full:
            full[name] = _each(full[name], partial(_unmasked_url, name, _listed(kept.get(name))))
    return full


def _unmasked_url(name: str, kept: list[str], url: str) -> str:
    match = _USER.search(url)
    if match is None or not match[0].endswith(f"{MASK}@"):
        return url
    for known in kept:
        if masked_url(known) == url:
            return known
    # Whoever may change an address does not by that get to see its password: a new one comes without the old.
    raise InvalidArgument(f"{_WHERE}.{name}: give the password anew; {MASK} is for an address that stays the same.")


def _listed(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [change(one) if isinstance(one, str) else one for one in value]
    return change(value) if isinstance(value, str) else value
