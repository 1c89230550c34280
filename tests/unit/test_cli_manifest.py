"""roost.toml: what it becomes, and what is refused with the key's name."""

import json
import tomllib
from pathlib import Path

import pytest

from roost.sdk import manifest, refusals
from roost.sdk.errors import UsageError


def function_of(text: str, environment: dict[str, str] | None = None) -> dict:
    parsed = tomllib.loads(text)
    manifest.validate(parsed)
    return manifest.to_function(parsed, environment or {})


def test_an_agent_with_all_that_there_is() -> None:
    function = function_of(
        """
        name = "chat-agent"
        description = "talks"
        handler = "agent.handler"
        memory = 512
        cpu = 0.5
        disk = 1024
        timeout = 300
        concurrency = 4
        template = "host"
        packages = ["pypi"]
        pids = 64
        open_files = 128
        model_calls = 100
        egress_mb = 7
        egress_connections = 3
        volume_quota = 10
        [env]
        KEY = "${KEY}"
        EMPTY = "${NONE:-}"
        PRICE = "$$5"
        [taint]
        mode = "block"
        trusted = ["*.wikipedia.org"]
        volumes = ["notes"]
        [session]
        affinity = "header"
        header = "X-Chat"
        exclusive = true
        ttl = 3600
        idle_timeout = 60
        reuse_id = false
        [initializer]
        handler = "agent.begin"
        timeout = 9
        [pre_stop]
        command = ["true"]
        [scaling]
        min = 1
        max = 7
        [idle]
        freeze_after = 0.5
        stop_after = 60
        [[volumes]]
        name = "notes"
        path = "/{user}"
        target = "/mnt/notes"
        read_only = true
        """,
        {"KEY": "v"},
    )
    assert function["runtime"] == "python3.12"
    assert function["environmentVariables"] == {"KEY": "v", "EMPTY": "", "PRICE": "$5"}
    assert (function["memorySize"], function["cpu"], function["diskSize"]) == (512, 0.5, 1024)
    assert (function["timeout"], function["instanceConcurrency"]) == (300, 4)
    assert (function["sessionAffinity"], function["instanceIsolationMode"]) == ("HEADER_FIELD", "SESSION_EXCLUSIVE")
    assert json.loads(function["sessionAffinityConfig"]) == {
        "affinityHeaderFieldName": "X-Chat",
        "sessionTTLInSeconds": 3600,
        "sessionIdleTimeoutInSeconds": 60,
        "disableSessionIdReuse": True,
    }
    assert function["instanceLifecycleConfig"] == {
        "initializer": {"handler": "agent.begin", "timeout": 9},
        "preStop": {"command": ["true"]},
    }
    assert function["roost"] == {
        "template": "host",
        "packages": ["pypi"],
        "pids": 64,
        "openFiles": 128,
        "modelCalls": 100,
        "egressMB": 7,
        "egressConnections": 3,
        "taint": {"mode": "block", "trusted": ["*.wikipedia.org"], "volumes": ["notes"]},
        "volumeQuotaMB": 10,
        "freezeAfter": 0.5,
        "idleTimeout": 60.0,
        "maxInstances": 7,
    }
    assert function["ossMountConfig"] == {
        "mountPoints": [{"bucketName": "notes", "bucketPath": "/{user}", "mountDir": "/mnt/notes", "readOnly": True}]
    }


def test_a_web_server_of_any_language() -> None:
    function = function_of('name = "web"\nruntime = "custom"\ncommand = ["node", "server.js"]\nport = 3000')
    assert function["runtime"] == "custom.debian12"
    assert function["customRuntimeConfig"] == {"command": ["node", "server.js"], "port": 3000}
    assert function["sessionAffinity"] == "NONE"


def test_sessions_by_header_have_a_default_header() -> None:
    function = function_of('[session]\naffinity = "header"')
    assert json.loads(function["sessionAffinityConfig"]) == {"affinityHeaderFieldName": "x-roost-session"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("memroy = 1", "memroy"),
        ("memory = '1'", "`memory` has to be an integer"),
        ("memory = true", "`memory` has to be an integer"),
        ("packages = [1]", "list of strings"),
        ("session = 3", "[session]"),
        ("[session]\nlength = 3", "session.length"),
        ("[session]\naffinity = 'ip'", "session.affinity"),
        ("[session]\nheader = 'x-a'", "session.header"),
        ("[session]\nexclusive = true", "session.exclusive"),
        ("[env]\nA = 1", "env.A"),
        ("[secrets]\nA = 1", "secrets.A"),
        ("[secrets]\nA = 'No Name'", "the name of a secret"),
        ("[env]\nA = 'b'\n[secrets]\nA = 'b'", "in both"),
        ("name = '9lives'", "9lives"),
        ("[initializer]\ntimeout = 1", "initializer"),
        ("[initializer]\nhandler = 'a.b'\ncommand = ['c']", "initializer"),
        ("volumes = 1", "[[volumes]]"),
        ("[[volumes]]\nname = 'a'\ntarget = 'mnt'", "target"),
        ("[env]\nA = '${MISSING}'", "MISSING"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        function_of(text)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no roost\.toml"):
        manifest.load(tmp_path)
    (tmp_path / "roost.toml").write_text("name = ")
    with pytest.raises(UsageError, match=r"roost\.toml"):
        manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("memorySize: Input should be more (got '1').", "`memory`: Input should be more (got '1')."),
        ("roost.packages[0]: Input should be 'pypi'.", "`packages`: Input should be 'pypi'."),
        ("ossMountConfig.mountPoints[0].mountDir: /etc is no place.", "`volumes`: /etc is no place."),
        ("instanceLifecycleConfig.preStop.timeout: too long.", "`pre_stop.timeout`: too long."),
        ("roost.taint.trusted: 'x y' is no rule.", "`taint.trusted`: 'x y' is no rule."),
        ("There is no template 'x'.", "There is no template 'x'."),
        ("tags: what roost.toml has no key for.", "tags: what roost.toml has no key for."),
    ],
)
def test_a_refusal_names_the_key_of_the_file(said: str, shown: str) -> None:
    assert refusals.in_words_of_the_file(said) == shown


def test_every_key_that_refusals_name_is_one_of_the_file() -> None:
    named = set(refusals.KEYS.values())
    tables = {table for table in manifest.KEYS if table}
    keys = {f"{table}.{key}" if table else key for table, keys in manifest.KEYS.items() for key in keys}
    assert named <= keys | tables
    assert set(manifest.KEYS[""]) <= named


def test_how_tasks_are_treated() -> None:
    text = """
        [async]
        retries = 0
        max_age = 60
        delivery = "at-most-once"
        on_success = "next"
        on_failure = "acs:fc:local:default:functions/mend"
        """
    parsed = tomllib.loads(text)
    manifest.validate(parsed)
    assert manifest.to_async_config(parsed) == {
        "maxAsyncRetryAttempts": 0,
        "maxAsyncEventAgeInSeconds": 60,
        "roost": {"delivery": "atMostOnce"},
        "destinationConfig": {
            "onSuccess": {"destination": "next"},
            "onFailure": {"destination": "acs:fc:local:default:functions/mend"},
        },
    }
    assert manifest.to_async_config({"async": {}}) == {}
    assert manifest.to_async_config({}) is None
    for wrong in ('delivery = "never"', "retries = true", "tries = 1"):
        with pytest.raises(UsageError, match="async"):
            manifest.validate(tomllib.loads(f"[async]\n{wrong}"))


def test_triggers_become_what_the_api_takes() -> None:
    parsed = tomllib.loads(
        """
        [[triggers]]
        name = "hook"
        type = "webhook"
        qualifier = "prod"
        description = "d"
        enable = false
        config = { authType = "hmac", secret = "${SECRET}", filters = [{ exact = { type = "$$" } }], maxBytes = 9 }
        [[triggers]]
        name = "tick"
        type = "timer"
        """
    )
    manifest.validate(parsed)
    assert manifest.to_triggers(parsed, {"SECRET": "s"}) == [
        {
            "triggerName": "hook",
            "triggerType": "webhook",
            "qualifier": "prod",
            "description": "d",
            "triggerConfig": {
                "authType": "hmac", "secret": "s", "filters": [{"exact": {"type": "$"}}], "maxBytes": 9,
                "enable": False,
            },
        },
        {"triggerName": "tick", "triggerType": "timer", "triggerConfig": {}},
    ]  # fmt: skip
    assert manifest.to_triggers({}, {}) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("triggers = 1", "[[triggers]]"),
        ("[triggers]\nname = 't'", "[[triggers]]"),
        ("[[triggers]]\nname = 't'", "`type`"),
        ("[[triggers]]\ntype = 'timer'", "`name`"),
        ("[[triggers]]\nname = 't'\ntype = 'timer'\ncron = 'x'", "triggers.cron"),
        ("[[triggers]]\nname = 't'\ntype = 'timer'\nconfig = 'x'", "`triggers.config` has to be a table"),
        ("[[triggers]]\nname = 't'\ntype = 'a'\n[[triggers]]\nname = 't'\ntype = 'a'", "two of the same"),
        ("[[triggers]]\nname = 't'\ntype = 'a'\nconfig = { at = 2026-01-01 }", "`triggers.config` has 2026-01-01"),
        ("[[triggers]]\nname = 't'\ntype = 'a'\nconfig = { a = ['${MISSING}'] }", "MISSING"),
    ],
)
def test_what_is_wrong_with_triggers_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed = tomllib.loads(text)
        manifest.validate(parsed)
        manifest.to_triggers(parsed, {})
    assert named in str(caught.value)


def test_secrets_become_placeholders() -> None:
    function = function_of("[env]\nA = 'b'\n[secrets]\nKEY = 'github'")
    assert function["environmentVariables"] == {"A": "b", "KEY": "${e2b.secrets.github}"}
