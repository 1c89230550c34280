"""Parts of records that several tables keep as JSON. What an older or newer Roost wrote and this one does not know is
left out, not fatal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from roost.model.function import Limits
from roost.model.sandbox import Foundation
from roost.model.taint import parse_taint


def encode_limits(limits: Limits) -> dict[str, Any]:
    return {field.name: getattr(limits, field.name) for field in fields(Limits)}


def decode_limits(values: Mapping[str, Any]) -> Limits:
    return Limits(**{field.name: values[field.name] for field in fields(Limits) if field.name in values})


def encode_foundation(foundation: Foundation) -> dict[str, Any]:
    values = {field.name: getattr(foundation, field.name) for field in fields(Foundation)}
    lists = {"layers": list(foundation.layers), "labels": list(foundation.labels)}
    return {**values, **lists, "environment": dict(foundation.environment), "taint": asdict(foundation.taint)}


def decode_foundation(values: Mapping[str, Any]) -> Foundation:
    known = {field.name: values[field.name] for field in fields(Foundation) if field.name in values}
    lists = {name: tuple(known.get(name, ())) for name in ("layers", "labels")}
    return Foundation(**{**known, **lists, "taint": parse_taint(known.get("taint", {}))})
