"""Where the server connects to for accounts other than its own."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from roost.functions.outbound import Outbound
from roost.isolation.egress.rules import Reach, parse_networks
from roost.model.errors import InvalidArgument, Unavailable
from roost.store.triggers import TriggerRecord

NAMES = {
    "good.test": ["93.184.215.14"],
    "six.test": ["2606:2800:21f:cb07::1"],
    "inside.test": ["10.0.0.7"],
    "mixed.test": ["93.184.215.14", "127.0.0.1"],
    "lan.test": ["10.9.0.1"],
}


async def resolve(name: str, port: int) -> list[Any]:
    if name not in NAMES:
        raise socket.gaierror(-2, "unknown")
    return [ipaddress.ip_address(text) for text in NAMES[name]]


OUTBOUND = Outbound("own", Reach(private=parse_networks(["10.9.0.0/16"])), resolve)


@pytest.mark.parametrize(
    ("url", "admitted"),
    [
        ("https://good.test/hook?a=b", "https://good.test/hook?a=b"),  # TLS proves the name
        ("rediss://:p@good.test/1", "rediss://:p@good.test/1"),
        ("redis://u:p%40@good.test:7000/1", "redis://u:p%40@93.184.215.14:7000/1"),
        ("amqp://good.test/%2f?routing_key=k", "amqp://93.184.215.14/%2f?routing_key=k"),
        ("nats://six.test", "nats://[2606:2800:21f:cb07::1]"),
        ("mqtt://lan.test?topic=t", "mqtt://10.9.0.1?topic=t"),  # the operator opened it
        ("redis://93.184.215.14/", "redis://93.184.215.14/"),
        (
            "postgresql://u:p@good.test/db?sslmode=require",
            "postgresql://u:p@good.test/db?sslmode=require&hostaddr=93.184.215.14",
        ),
    ],
)
async def test_what_was_looked_at_is_what_is_dialled(url: str, admitted: str) -> None:
    assert await OUTBOUND.address("tenant", url) == admitted


@pytest.mark.parametrize(
    "url",
    [
        "http://good.test/",
        "https://inside.test/",
        "https://mixed.test/",
        "https://127.0.0.1:8700/",
        "https://[::1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://2130706433/",
        "https://[::ffff:127.0.0.1]/",
        "redis://localhost.:6379",
        "redis://inside.test",
        "rediss://inside.test",
        "postgresql:///db",
        "postgresql://%2Fvar%2Frun/db",
        "postgresql://good.test,inside.test/db",
        "postgresql://good.test/db?host=/var/run",
        "postgresql://good.test/db?hostaddr=127.0.0.1",
        "postgresql://good.test/db?service=x",
        "postgresql://good.test/db?passfile=/etc/shadow",
        "postgresql://good.test/db?sslkey=/etc/x",
    ],
)
async def test_no_way_leads_inside(url: str) -> None:
    with pytest.raises(InvalidArgument):
        await OUTBOUND.address("tenant", url)


async def test_a_name_without_an_address_may_have_one_later() -> None:
    with pytest.raises(Unavailable):
        await OUTBOUND.address("tenant", "https://unknown.test/")


async def test_the_operator_s_own_addresses_are_as_they_are() -> None:
    for url in ("http://127.0.0.1:1/", "redis://localhost", "postgresql:///db"):
        assert await OUTBOUND.address("own", url) == url


async def test_triggers_are_served_from_admitted_addresses() -> None:
    def record(account: str, type: str, config: dict[str, Any]) -> TriggerRecord:
        return TriggerRecord(
            account=account, function="f", name="t", id="i", type=type, qualifier="LATEST", config=config,
            description="", created=0.0, modified=0.0,
        )  # fmt: skip

    queue = {"endpoint": "redis://good.test", "stream": "s"}
    assert (await OUTBOUND.trigger(record("tenant", "redis", queue))).config["endpoint"] == "redis://93.184.215.14"
    assert (await OUTBOUND.trigger(record("own", "redis", queue))).config == queue
    timer = record("tenant", "timer", {"cronExpression": "@every 1m"})
    assert await OUTBOUND.trigger(timer) is timer
    with pytest.raises(InvalidArgument):
        await OUTBOUND.trigger(record("tenant", "redis", {"endpoint": "redis://inside.test", "stream": "s"}))
