"""What may be said of a session's network, what is kept of it, and what is shown."""

from __future__ import annotations

from typing import Any

import pytest

from roost.functions.parse import parse
from roost.functions.session_network import MASK, Network, NetworkUpdate, network_config, shown_network
from roost.model.errors import InvalidArgument
from roost.model.function import FunctionSpec, IsolationMode, Runtime

OWN = FunctionSpec(
    account="a",
    name="f",
    version="LATEST",
    revision="r",
    runtime=Runtime.PYTHON,
    isolation_mode=IsolationMode.SESSION_EXCLUSIVE,
)
SHARED = FunctionSpec(account="a", name="f", version="LATEST", revision="r", runtime=Runtime.PYTHON)


def rules(value: str = "real-value", placeholder: str = "FAKE") -> dict[str, Any]:
    transform = {"headers": {"x-a": "b"}, "headerValueReplacements": [{"placeholder": placeholder, "value": value}]}
    return {"api.test": [{"transform": transform}]}


def made(given: dict[str, Any], internet: bool | None = None) -> dict[str, Any]:
    return network_config(parse(Network, given), internet, OWN, {})


def test_nothing_said_is_nothing_kept() -> None:
    assert network_config(None, None, OWN, {}) == {}
    assert network_config(None, None, SHARED, {}) == {}
    assert network_config(None, False, OWN, {}) == {"allowInternetAccess": False}


def test_values_are_kept_and_not_shown() -> None:
    kept = made({"allowOut": ["api.test"], "rules": rules()}, internet=True)
    assert kept["network"] == {"allowOut": ["api.test"], "rules": rules()}
    shown = shown_network(kept)
    assert shown == {"allowInternetAccess": True, "network": {"allowOut": ["api.test"], "rules": rules(MASK)}}
    assert kept["network"]["rules"] == rules()  # showing changes nothing


def test_a_change_keeps_what_it_does_not_name() -> None:
    kept = made({"allowOut": ["api.test"], "denyOut": ["*"], "rules": rules()})

    def changed(given: dict[str, Any]) -> dict[str, Any]:
        return dict(network_config(parse(NetworkUpdate, given), None, OWN, kept)["network"])

    assert changed({"egressMB": 5, "egressConnections": 2})["egressMB"] == 5
    assert changed({"denyOut": []}) == {"allowOut": ["api.test"], "denyOut": [], "rules": rules()}
    assert changed({"rules": {}})["rules"] == {}
    assert changed({"rules": rules(MASK)})["rules"] == rules()
    assert changed({"rules": rules("other-value")})["rules"] == rules("other-value")
    with pytest.raises(InvalidArgument, match="has no value yet"):
        changed({"rules": rules(MASK, "UNKNOWN")})


@pytest.mark.parametrize(
    "given",
    [
        {"allowOut": ["not a rule"]},
        {"rules": {"10.0.0.0/8": []}},
        {"rules": rules("a\nb")},
        {"rules": rules(placeholder="abc")},
        {"rules": {"api.test": [{"transform": {"headers": {"Host": "b"}}}]}},
        {"allowPublicTraffic": True},
        {"maskRequestHost": "a"},
        {"unknown": 1},
        {"rules": {"api.test": [{"transform": {"body": "x"}}]}},
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        made(given)


def test_sessions_that_share_instances_have_none() -> None:
    with pytest.raises(InvalidArgument, match="SESSION_EXCLUSIVE"):
        network_config(parse(Network, {}), None, SHARED, {})
