"""The settings of triggers: what is kept, what is shown, what is refused and in which words."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from roost.functions.triggers.kinds import check_config, is_enabled, visible_config
from roost.functions.triggers.settings import MASK, SourceSettings, checked, masked_url, shown
from roost.model.errors import InvalidArgument
from tests.support.triggers import record

EVERY = {"cronExpression": "@every 1m"}


class Queue(SourceSettings):
    """As the settings of a broker are."""

    SECRETS: ClassVar = ("key",)
    URLS: ClassVar = ("url", "servers")

    url: str = "redis://localhost"
    servers: Annotated[list[str], Field(max_length=3)] | None = None
    key: str | None = None


def keep(given: dict[str, Any], kept: dict[str, Any] | None = None) -> dict[str, Any]:
    return checked(Queue, json.dumps(given), kept)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user:secret@host/0", "redis://user:***@host/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("amqp://user:p%40ss@host:5672/v?x=a@b", "amqp://user:***@host:5672/v?x=a@b"),
        ("amqp://user:a@b@host", "amqp://user:***@host"),
        ("nats://token@host", "nats://***@host"),
        ("postgresql://user:secret@host/base?host=a:b@c", "postgresql://user:***@host/base?host=a:b@c"),
        ("no address", "no address"),
    ],
)
def test_passwords_of_addresses_are_masked(url: str, masked: str) -> None:
    assert masked_url(url) == masked
    assert masked_url(masked) == masked


def test_secrets_are_kept_used_and_never_shown() -> None:
    kept = keep({"url": "redis://u:secret@h", "servers": ["nats://tok@a", "nats://b"], "key": "the key"})
    assert kept == {
        "enable": True,
        "url": "redis://u:secret@h",
        "servers": ["nats://tok@a", "nats://b"],
        "key": "the key",
    }
    visible = shown(Queue, kept)
    assert visible == {"enable": True, "url": "redis://u:***@h", "servers": ["nats://***@a", "nats://b"], "key": MASK}
    # What is shown can be sent back, with whatever else was changed.
    assert keep({**visible, "enable": False}, kept) == {**kept, "enable": False}
    # Servers may change places; a new one comes with its own password.
    turned = keep({**visible, "servers": ["nats://b", "nats://***@a", "nats://new@c"]}, kept)
    assert turned["servers"] == ["nats://b", "nats://tok@a", "nats://new@c"]
    assert keep({**visible, "key": "another"}, kept)["key"] == "another"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "redis://u:***@elsewhere"}, "triggerConfig.url: give the password anew"),
        ({"servers": ["nats://***@elsewhere"]}, "triggerConfig.servers: give the password anew"),
        ({"key": MASK}, r"triggerConfig.key: \*\*\* stands for a secret"),
    ],
)
def test_a_mask_never_sends_a_secret_to_another_address(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        keep(given, {"url": "redis://u:secret@h", "servers": ["nats://tok@a"]})


def test_pausing_is_a_setting_and_function_computes_name_is_taken_for_it() -> None:
    assert check_config("timer", '{"cronExpression": "@every 1m"}')["enable"] is True
    paused = check_config("timer", '{"cronExpression": "@every 1m", "triggerEnable": false}')
    assert paused["enable"] is False
    assert not is_enabled(record("timer", paused))
    assert is_enabled(record("http", {"authType": "anonymous"}))


def test_kept_settings_can_be_kept_again() -> None:
    for type, config in (
        ("timer", {"cronExpression": "@every 1m", "timeZone": "Asia/Tokyo", "catchUp": "all"}),
        ("webhook", {"authType": "hmac", "secret": "a-secret", "filters": [{"exact": {"type": "a"}}]}),
        ("http", {"methods": ["GET"], "enable": False}),
    ):
        kept = check_config(type, json.dumps(config))
        visible = visible_config(record(type, kept))
        assert "a-secret" not in json.dumps(visible)
        assert check_config(type, json.dumps(visible), kept) == json.loads(json.dumps(kept))


@pytest.mark.parametrize(
    ("type", "config", "said"),
    [
        ("log", {}, "triggerType: 'log' is not supported; there are 'http', 'timer'"),
        ("timer", "nonsense", "triggerConfig: a string with a JSON object"),
        ("timer", "[]", "triggerConfig must be a JSON object"),
        ("timer", "9" * 5000, "triggerConfig"),
        ("timer", {}, "triggerConfig.cronExpression: this field is required."),
        ("timer", {"cronExpression": 5}, "triggerConfig.cronExpression: Input should be a valid string"),
        ("timer", {"cronExpression": "x" * 300}, "triggerConfig.cronExpression: .*256"),
        ("timer", {**EVERY, "cron": 1}, "triggerConfig.cron: unknown field."),
        ("timer", {**EVERY, "enable": "yes"}, "triggerConfig.enable: Input should be a valid"),
        ("timer", {**EVERY, "enable": True, "triggerEnable": True}, "triggerConfig.triggerEnable: unknown"),
        ("timer", {**EVERY, "catchUp": "some"}, "triggerConfig.catchUp: .*'none', 'last' or 'all'"),
        ("timer", {**EVERY, "payload": "x" * 70000}, "triggerConfig.payload: .*65536"),
        ("timer", {"cronExpression": "@daily"}, "triggerConfig.cronExpression: '@daily' is not"),
        ("timer", {"cronExpression": "0 0 4 * * *", "timeZone": "Nowhere"}, "there is no time zone 'Nowhere'"),
        ("webhook", {}, "triggerConfig.authType: this field is required."),
        ("webhook", {"authType": "basic"}, "triggerConfig.authType: .*'none', 'bearer' or 'hmac'"),
        ("webhook", {"authType": "hmac"}, "secret is needed with authType 'hmac'"),
        ("webhook", {"authType": "bearer"}, "token is needed with authType 'bearer'"),
        ("webhook", {"authType": "none", "token": "12345678"}, "token is of no use without authType 'bearer'"),
        ("webhook", {"authType": "hmac", "secret": "short"}, "triggerConfig.secret: .*8 characters"),
        ("webhook", {"authType": "none", "signatureHeader": "a b"}, "triggerConfig.signatureHeader"),
        ("webhook", {"authType": "none", "idHeader": "x:\r\ny"}, "triggerConfig.idHeader"),
        ("webhook", {"authType": "none", "maxBytes": 0}, "triggerConfig.maxBytes"),
        ("webhook", {"authType": "none", "maxBytes": 1 << 30}, "triggerConfig.maxBytes"),
        ("webhook", {"authType": "none", "maxBytes": True}, "triggerConfig.maxBytes"),
        ("webhook", {"authType": "none", "filters": [{}]}, r"triggerConfig.filters\[0\]: one of exact"),
        ("webhook", {"authType": "none", "filters": [{"exact": {}}]}, r"triggerConfig.filters\[0\].exact"),
        ("webhook", {"authType": "none", "filters": [{"any": []}]}, r"triggerConfig.filters\[0\].any: unknown field"),
        ("http", {"methods": ["GET"], "enable": 1}, "triggerConfig.enable"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(type: str, config: dict[str, Any] | str, said: str) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    with pytest.raises(InvalidArgument, match=said) as caught:
        check_config(type, text)
    assert len(caught.value.message) < 500
    assert caught.value.message.endswith(".")
