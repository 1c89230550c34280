"""`network` of a session: what its room may reach, and what its requests are given on their way (FC's Session API)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from roost.functions.definition import Shape, Text
from roost.isolation.egress.injection import parse_headers
from roost.isolation.egress.rules import parse_rules
from roost.model.errors import InvalidArgument
from roost.model.function import FunctionSpec, IsolationMode

#: Shown in place of a value; sent back, the value stays as it is.
MASK = "***"

Hosts = Annotated[list[Text], Field(max_length=1000)]


class _Replacement(Shape):
    placeholder: str
    value: str


class _Transform(Shape):
    headers: dict[str, str] | None = None
    header_value_replacements: Annotated[list[_Replacement], Field(max_length=50)] | None = None


class _Rule(Shape):
    transform: _Transform | None = None


class NetworkUpdate(Shape):
    """What is left out stays as it is."""

    allow_out: Hosts | None = None
    deny_out: Hosts | None = None
    rules: dict[Text, Annotated[list[_Rule], Field(max_length=20)]] | None = None
    egress_mb: Annotated[int | None, Field(alias="egressMB", ge=1, le=1 << 24)] = None  # these two are Roost's own
    egress_connections: Annotated[int, Field(ge=1, le=128)] | None = None


class Network(NetworkUpdate):
    allow_public_traffic: bool | None = None
    mask_request_host: str | None = None


def network_config(
    given: NetworkUpdate | None, internet: bool | None, spec: FunctionSpec, before: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields `network` and `allowInternetAccess` that are kept of a session, `before` being those it has.

    Raises InvalidArgument.
    """
    if given is None and internet is None:
        return {}
    if spec.isolation_mode is IsolationMode.SHARE:
        raise InvalidArgument(
            "network, allowInternetAccess: sessions that share instances share what they may reach; use "
            "SESSION_EXCLUSIVE isolation, or the function's own rules."
        )
    if isinstance(given, Network) and (given.allow_public_traffic or given.mask_request_host):
        raise InvalidArgument("network: no port of a session is reached from outside.")
    kept: dict[str, Any] = {}
    if internet is not None:
        kept["allowInternetAccess"] = internet
    if given is not None:
        network = {**before.get("network", {}), **given.to_json()}
        network["rules"] = _unmasked(network.get("rules") or {}, before.get("network", {}).get("rules") or {})
        parse_rules([*network.get("allowOut", ()), *network.get("denyOut", ())])
        parse_headers(network["rules"])
        kept["network"] = network
    return kept


def shown_network(config: Mapping[str, Any]) -> dict[str, Any]:
    """As the API tells it: without values that stand behind placeholders."""
    shown = {key: config[key] for key in ("allowInternetAccess", "network") if key in config}
    if "network" in shown:
        rules = {
            host: [_masked(rule) for rule in listed] for host, listed in (shown["network"].get("rules") or {}).items()
        }
        shown["network"] = {**shown["network"], "rules": rules}
    return shown


def _replacements(rule: Mapping[str, Any]) -> list[dict[str, str]]:
    return (rule.get("transform") or {}).get("headerValueReplacements") or []


def _masked(rule: Mapping[str, Any]) -> Mapping[str, Any]:
    if not (replacements := _replacements(rule)):
        return rule
    masked = [{**one, "value": MASK} for one in replacements]
    return {**rule, "transform": {**rule["transform"], "headerValueReplacements": masked}}


def _unmasked(rules: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Raises InvalidArgument for a mask where there was nothing."""
    known = {
        (host, one["placeholder"]): one["value"]
        for host, listed in before.items()
        for rule in listed
        for one in _replacements(rule)
    }

    def value(host: str, one: Mapping[str, str]) -> str:
        if one["value"] != MASK:
            return one["value"]
        if (host, one["placeholder"]) not in known:
            raise InvalidArgument(f"network.rules: {host[:100]!r} has no value yet for this placeholder.")
        return str(known[host, one["placeholder"]])

    found: dict[str, Any] = {}
    for host, listed in rules.items():
        found[host] = []
        for rule in listed:
            if replacements := _replacements(rule):
                real = [{**one, "value": value(host, one)} for one in replacements]
                rule = {**rule, "transform": {**rule["transform"], "headerValueReplacements": real}}  # noqa: PLW2901
            found[host].append(rule)
    return found
