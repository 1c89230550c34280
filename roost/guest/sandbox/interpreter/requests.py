"""What clients ask for, checked. Refusals have the form in which E2B's server gives them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

_SHORT = {"js": "javascript", "ts": "typescript"}
PYTHON = "python"
_MOST_LABEL = 200


class Invalid(ValueError):
    """The body is not what it must be; `detail` says where and why."""

    def __init__(self, detail: dict[str, Any]) -> None:
        super().__init__(detail["msg"])
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Execute:
    """A cell to run: in the context `context_id`, else in the one that belongs to `language`."""

    code: str
    context_id: str = ""
    language: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Create:
    """A context to make. An empty `cwd` means the usual one."""

    language: str = PYTHON
    cwd: str = ""


def parse_execute(body: bytes) -> Execute:
    """Raises Invalid."""
    fields = _object(body)
    if "code" not in fields:
        raise _invalid("missing", ["code"], "Field required", fields)
    code = _string(fields, "code")
    if code is None:
        raise _invalid("string_type", ["code"], "Input should be a valid string", None)
    return Execute(
        code=code,
        context_id=_string(fields, "context_id") or "",
        language=_string(fields, "language") or "",
        env=_variables(fields),
    )


def parse_create(body: bytes) -> Create:
    """Raises Invalid."""
    fields = _object(body)
    cwd = _string(fields, "cwd") or ""
    if "\0" in cwd or len(cwd) > 4000:
        raise _invalid("value_error", ["cwd"], "Input should be a path", cwd[:200])
    return Create(language=normalize(_string(fields, "language") or ""), cwd=cwd)


def parse_label(body: bytes) -> str:
    """What a checkpoint is called, if anything. Raises Invalid."""
    label = _string(_object(body), "label") or "" if body else ""
    if len(label) > _MOST_LABEL:
        raise _invalid(
            "string_too_long", ["label"], f"String should have at most {_MOST_LABEL} characters", label[:200]
        )
    return label


def parse_rollback(body: bytes) -> str:
    """The checkpoint to go back to. Raises Invalid."""
    fields = _object(body)
    checkpoint = _string(fields, "checkpoint")
    if not checkpoint:
        raise _invalid("missing", ["checkpoint"], "Field required", fields)
    return checkpoint[:_MOST_LABEL]


def normalize(language: str) -> str:
    """The full name of a language; Python for none."""
    language = language.lower().strip()
    return _SHORT.get(language, language) or PYTHON


def parse_when(target: str) -> bool:
    """Whether a cell that runs is interrupted: `?when=now` of a path. Raises Invalid."""
    given = parse_qs(target.partition("?")[2], keep_blank_values=True).get("when", [])
    if given in ([], ["now"]):
        return bool(given)
    detail = {"type": "literal_error", "loc": ["query", "when"], "msg": "Input should be 'now'", "input": given[-1]}
    raise Invalid(detail)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(body)
    except UnicodeDecodeError as error:
        raise _bad_json(error.start, error.reason) from None
    except json.JSONDecodeError as error:
        raise _bad_json(error.pos, error.msg) from None
    except RecursionError:
        raise _bad_json(0, "nested too deeply") from None
    if not isinstance(fields, dict):
        raise _invalid("model_attributes_type", [], "Input should be a valid dictionary", fields)
    return fields


def _string(fields: Mapping[str, Any], name: str, *inside: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _invalid("string_type", [*inside, name], "Input should be a valid string", value)
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no text
        raise _invalid("string_unicode", [*inside, name], "Input should be valid Unicode", None) from None
    return value


def _variables(fields: Mapping[str, Any]) -> dict[str, str]:
    variables = fields.get("env_vars")
    if variables is None:
        return {}
    if not isinstance(variables, dict):
        raise _invalid("dict_type", ["env_vars"], "Input should be a valid dictionary", variables)
    for name in variables:
        value = _string(variables, name, "env_vars")
        if value is None:
            raise _invalid("string_type", ["env_vars", name], "Input should be a valid string", None)
        if not name or "=" in name or "\0" in name + value or not name.isprintable():
            raise _invalid("value_error", ["env_vars", name], "Input should be the name of a variable", name)
    return dict(variables)


def _invalid(kind: str, where: list[str], message: str, found: Any) -> Invalid:
    return Invalid({"type": kind, "loc": ["body", *where], "msg": message, "input": found})


def _bad_json(position: int, reason: str) -> Invalid:
    detail = {"type": "json_invalid", "loc": ["body", position], "msg": "JSON decode error", "input": {}}
    return Invalid({**detail, "ctx": {"error": reason}})
