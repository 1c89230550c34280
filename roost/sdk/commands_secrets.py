"""`roost secrets`: values that the server keeps, and puts into requests of rooms to the hosts they are for."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from roost.sdk import tables
from roost.sdk.commands_functions import connect
from roost.sdk.commands_watch import AsJson, console
from roost.sdk.errors import Failed, UsageError
from roost.sdk.sandbox_api import SandboxApi
from roost.sdk.terminal import clean

Name = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.")]


def put(
    name: Name,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            help="Where it may go, by https: NAME, *.NAME, NAME:PORT. As often as needed [default: as it was].",
        ),
    ] = None,
) -> None:
    """Keep a secret, or give it a new value. The value is asked for, or read from standard input."""
    value = _value()
    metadata = None if host is None else {"hosts": " ".join(host)}
    with connect() as client:
        api = SandboxApi(client)
        asked: dict[str, Any] = {"value": value} | ({} if metadata is None else {"metadata": metadata})
        try:
            kept = api.change_secret(name, asked)
        except Failed as error:
            if error.status != 404:
                raise
            kept = api.create_secret({"name": name, **asked})
    shown = clean(str(kept.get("name", name)))
    hosts = clean(str((kept.get("metadata") or {}).get("hosts", "")))
    typer.echo(f"{shown} is kept, version {kept.get('currentVersion')}; it goes to {hosts or 'no host by itself'}.")
    typer.echo(f'In rooms it is ${{e2b.secrets.{shown}}}; in roost.toml, under [secrets], KEY = "{shown}".', err=True)


def ls(as_json: AsJson = False) -> None:
    """List secrets, without their values."""
    with connect() as client:
        rows = SandboxApi(client).secrets()
    if as_json:
        typer.echo(json.dumps({"secrets": rows}, indent=2))
    elif not rows:
        typer.echo("There are no secrets; `roost secrets put NAME --host HOST` keeps one.", err=True)
    else:
        console().print(tables.secrets(rows))


def rm(name: Name) -> None:
    """Forget a secret. What needs it gets no more of it, at once."""
    with connect() as client:
        SandboxApi(client).delete_secret(name)
    typer.echo(f"{clean(name)} is forgotten.")


def _value() -> str:
    """Raises UsageError for none."""
    if sys.stdin.isatty():
        value: str = typer.prompt("Value", hide_input=True)
    else:
        value = sys.stdin.read().removesuffix("\n")
    if not value:
        raise UsageError("A secret needs a value, on standard input.")
    return value
