"""`roost triggers`: what starts functions, listed, shown, made, changed, paused and removed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from roost.sdk import tables
from roost.sdk.client import Client, function_path
from roost.sdk.commands_functions import Name, connect
from roost.sdk.commands_watch import AsJson, console, function_names
from roost.sdk.errors import UsageError
from roost.sdk.terminal import clean, clock

Trigger = Annotated[str, typer.Argument(metavar="TRIGGER", help="The trigger's name.")]
Config = Annotated[
    str | None, typer.Option("--config", "-c", help="Its settings, JSON; @FILE reads a file, @- standard input.")
]
Qualifier = Annotated[str | None, typer.Option("--qualifier", help="The version or alias that it starts.")]
Description = Annotated[str | None, typer.Option("--description", help="A note for people.")]


def ls(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A function [default: all].")] = None,
    as_json: AsJson = False,
) -> None:
    """List triggers, of one function or of all."""
    with connect() as client:
        names = function_names(client) if name is None else [name]
        rows = [
            {"functionName": one, **row}
            for one in names
            for row in client.list_all(function_path(one, "/triggers"), "triggers")
        ]
    if as_json:
        typer.echo(json.dumps({"triggers": rows}, indent=2))
    elif not rows:
        typer.echo(f"{name or 'This server'} has no triggers.", err=True)
    else:
        console().print(tables.triggers(rows))


def show(name: Name, trigger: Trigger, as_json: AsJson = False) -> None:
    """Show one: its settings, its state, its last error."""
    with connect() as client:
        row = client.get_json(_path(name, trigger))
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    more = row.get("roost") or {}
    lines: Sequence[tuple[str, object]] = (
        ("trigger", row.get("triggerName")),
        ("type", row.get("triggerType")),
        ("status", row.get("status")),
        ("qualifier", row.get("qualifier")),
        ("description", row.get("description")),
        ("address", (row.get("httpTrigger") or {}).get("urlInternet")),
        ("config", row.get("triggerConfig")),
        ("next time", more.get("nextTime") and clock(more["nextTime"])),
        ("delivered", more.get("delivered")),
        ("enqueued", more.get("enqueued")),
        ("failed", more.get("failed")),
        ("dead letters", more.get("deadLettered")),
        ("last success", more.get("lastSuccessTime") and clock(more["lastSuccessTime"])),
        ("last error", more.get("lastError")),
        ("at", more.get("lastErrorTime") and clock(more["lastErrorTime"])),
    )
    for label, value in lines:
        if value not in (None, ""):
            typer.echo(f"{label + ':':<14}{clean(str(value))}")


def create(
    name: Name,
    trigger: Trigger,
    *,
    type: Annotated[str, typer.Option("--type", "-t", help="timer, webhook, http, or another that the server has.")],
    config: Config = None,
    qualifier: Qualifier = None,
    description: Description = None,
) -> None:
    """Make a trigger; for a webhook its address is printed."""
    body = {"triggerName": trigger, "triggerType": type, **_fields(config, qualifier, description)}
    with connect() as client:
        made = client.send_json("POST", function_path(name, "/triggers"), body)
    address = (made.get("httpTrigger") or {}).get("urlInternet")
    typer.echo(f"Created {clean(trigger)}" + (f" at {clean(str(address))}" if address else ""))


def update(
    name: Name,
    trigger: Trigger,
    *,
    config: Config = None,
    qualifier: Qualifier = None,
    description: Description = None,
) -> None:
    """Change a trigger: all of its settings, its qualifier, its description."""
    body = _fields(config, qualifier, description)
    if not body:
        raise UsageError("Say what to change: --config, --qualifier or --description.")
    with connect() as client:
        client.send_json("PUT", _path(name, trigger), body)
    typer.echo(f"Updated {clean(trigger)}")


def delete(name: Name, triggers: Annotated[list[str], typer.Argument(metavar="TRIGGER...")]) -> None:
    """Remove triggers. What they have enqueued goes on."""
    with connect() as client:
        for trigger in triggers:
            client.send("DELETE", _path(name, trigger))
            typer.echo(f"Deleted {clean(trigger)}")


def pause(name: Name, triggers: Annotated[list[str], typer.Argument(metavar="TRIGGER...")]) -> None:
    """Start nothing any more, until it is resumed."""
    _enable(name, triggers, False)


def resume(name: Name, triggers: Annotated[list[str], typer.Argument(metavar="TRIGGER...")]) -> None:
    """Go on after a pause."""
    _enable(name, triggers, True)


def _enable(name: str, triggers: Sequence[str], enable: bool) -> None:
    with connect() as client:
        for trigger in triggers:
            set_enabled(client, name, trigger, enable)
            typer.echo(f"{'Resumed' if enable else 'Paused'} {clean(trigger)}")


def set_enabled(client: Client, name: str, trigger: str, enable: bool) -> None:
    """Its other settings stay: the server knows the secrets that it shows as masks."""
    config = json.loads(client.get_json(_path(name, trigger)).get("triggerConfig") or "{}")
    client.send_json("PUT", _path(name, trigger), {"triggerConfig": json.dumps({**config, "enable": enable})})


def _path(name: str, trigger: str) -> str:
    return function_path(name, f"/triggers/{quote(trigger, safe='')}")


def _fields(config: str | None, qualifier: str | None, description: str | None) -> Mapping[str, Any]:
    given = {
        "triggerConfig": None if config is None else _config(config),
        "qualifier": qualifier,
        "description": description,
    }
    return {key: value for key, value in given.items() if value is not None}


def _config(text: str) -> str:
    """Settings as JSON text. Raises UsageError."""
    if text.startswith("@"):
        try:
            text = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--config: {text[1:]} can't be read: {error}.") from error
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--config: JSON is expected ({error}).") from error
    if not isinstance(value, dict):
        raise UsageError("--config: a JSON object is expected.")
    return text
