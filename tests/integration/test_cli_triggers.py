"""`roost triggers`, and `[[triggers]]` in roost.toml, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.server import Server

TOML = """
name = "agent"

[[triggers]]
name = "nightly"
type = "timer"
description = "at night"
config = { cronExpression = "0 0 4 * * *", timeZone = "Europe/Berlin", payload = "costs $$5" }

[[triggers]]
name = "hook"
type = "webhook"
config = { authType = "bearer", token = "${HOOK_TOKEN}" }
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(server: Server) -> Run:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ROOST_", "OPENAI_"))}
    program = str(Path(sys.executable).parent / "roost")

    def run(*words: str, text: str = "", **env: str) -> Ended:
        done = subprocess.run(
            [program, *words], env=kept | env | {"ROOST_URL": server.url}, input=text,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def config_of(run: Run, function: str, trigger: str) -> dict[str, object]:
    shown = json.loads(run("triggers", "show", function, trigger, "--json").out)
    return dict(json.loads(shown["triggerConfig"]))


def test_a_trigger_is_made_shown_changed_paused_and_removed(run: Run, server: Server, tmp_path: Path) -> None:
    server.deploy("plain", {"index.py": "def handler(event, context):\n    return event\n"})
    assert run("triggers", "ls", "plain").err == "plain has no triggers.\n"
    every = json.dumps({"cronExpression": "@every 1h", "payload": "\x1b[2Jp"})
    made = run("triggers", "create", "plain", "hourly", "--type", "timer", "--config", every, "--description", "d")
    assert (made.code, made.out) == (0, "Created hourly\n"), made.err
    hook = run("triggers", "create", "plain", "hook", "-t", "webhook", "-c", "@-", text='{"authType": "none"}')
    assert hook.out == f"Created hook at {server.url}/webhooks/default/plain/hook\n"
    rows = [line.split() for line in run("triggers", "ls").out.splitlines()]
    assert [row[:4] for row in rows if row[0] == "plain"] == [
        ["plain", "hook", "webhook", "running"], ["plain", "hourly", "timer", "running"],
    ]  # fmt: skip
    shown = run("triggers", "show", "plain", "hourly").out
    assert "cronExpression" in shown
    assert "\x1b" not in shown

    assert run("triggers", "pause", "plain", "hourly", "hook").out == "Paused hourly\nPaused hook\n"
    assert config_of(run, "plain", "hourly")["enable"] is False
    assert "paused" in run("triggers", "show", "plain", "hook").out
    assert run("triggers", "resume", "plain", "hourly").out == "Resumed hourly\n"
    assert config_of(run, "plain", "hourly") == {**json.loads(every), "enable": True, "catchUp": "last"}
    (tmp_path / "config.json").write_text('{"cronExpression": "@every 2h"}')
    assert run("triggers", "update", "plain", "hourly", "-c", f"@{tmp_path}/config.json").code == 0
    assert config_of(run, "plain", "hourly")["cronExpression"] == "@every 2h"
    listed = json.loads(run("triggers", "ls", "plain", "--json").out)["triggers"]
    assert [(one["triggerName"], one["status"]) for one in listed] == [("hook", "paused"), ("hourly", "running")]
    assert run("triggers", "delete", "plain", "hourly", "hook").out == "Deleted hourly\nDeleted hook\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["create", "any", "t", "-t", "timer", "-c", "{"], 2, "--config: JSON is expected"),
        (["create", "any", "t", "-t", "timer", "-c", "@/none"], 2, "/none can't be read"),
        (["create", "any", "t", "-t", "timer", "-c", "{}"], 1, "triggerConfig.cronExpression: this field is required"),
        (["update", "any", "t"], 2, "Say what to change"),
        (["pause", "any", "t"], 1, "no trigger 't'"),
    ],
)
def test_what_is_wrong_is_said(run: Run, server: Server, words: list[str], code: int, said: str) -> None:
    server.deploy("any", {"index.py": "def handler(event, context):\n    return event\n"})
    ended = run("triggers", *words)
    assert ended.code == code, ended
    assert said in ended.err


def test_deploy_makes_the_triggers_of_the_file_and_brings_them_up_to_date(run: Run, tmp_path: Path) -> None:
    (tmp_path / "index.py").write_text("def handler(event, context):\n    return event\n")
    (tmp_path / "roost.toml").write_text(TOML)
    token = {"HOOK_TOKEN": "a-token-of-the-test"}
    deployed = run("deploy", str(tmp_path), **token)
    assert deployed.code == 0, deployed.err
    wanted = {
        "enable": True, "timeZone": "Europe/Berlin", "cronExpression": "0 0 4 * * *", "payload": "costs $5",
        "catchUp": "last",
    }  # fmt: skip
    assert config_of(run, "agent", "nightly") == wanted
    assert config_of(run, "agent", "hook")["token"] == "***"

    # Somebody pauses one, and makes another by hand: the next deploy leaves both so.
    assert run("triggers", "pause", "agent", "nightly").code == 0
    by_hand = ["create", "agent", "mine", "-t", "timer", "-c", '{"cronExpression": "@every 1h"}']
    assert run("triggers", *by_hand).code == 0
    (tmp_path / "roost.toml").write_text(TOML.replace("0 0 4", "0 0 5"))
    assert run("deploy", str(tmp_path), **token).code == 0
    assert config_of(run, "agent", "nightly") == {**wanted, "cronExpression": "0 0 5 * * *", "enable": False}
    assert config_of(run, "agent", "mine")["enable"] is True

    for change, said in (
        (("0 0 4 * * *", "sometimes"), "trigger nightly: triggerConfig.cronExpression: 'sometimes'"),
        (('type = "timer"', 'type = "webhook"'), "trigger nightly: there is one of type timer"),
    ):
        (tmp_path / "roost.toml").write_text(TOML.replace(*change))
        refused = run("deploy", str(tmp_path), **token)
        assert refused.code == 1
        assert said in refused.err
