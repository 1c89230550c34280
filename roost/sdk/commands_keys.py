"""`roost keys`: who may use the server."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from roost.sdk import tables
from roost.sdk.commands_functions import connect
from roost.sdk.commands_watch import AsJson, console
from roost.sdk.terminal import clean

API = "/roost/keys"
Account = Annotated[str | None, typer.Option("--account", help="Whose [default: the account of the key that is used].")]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    role: Annotated[str, typer.Option("--role", help="admin, developer, invoker or viewer.")] = "developer",
    grants: Annotated[
        list[str] | None,
        typer.Option("--for", help="What it is for alone: tool:NAME of MCP, function:NAME to invoke. Any number."),
    ] = None,
    account: Account = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is shown this once."""
    asked: dict[str, Any] = {"name": name, "role": role}
    if grants:
        asked["grants"] = grants
    if account is not None:
        asked["account"] = account
    with connect() as client:
        made = client.send_json("POST", API, asked)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    typer.echo(f"ROOST_ACCESS_KEY_ID={clean(str(made.get('id', '')))}")
    typer.echo(f"ROOST_ACCESS_KEY_SECRET={clean(str(made.get('secret', '')))}")
    typer.echo("The secret is not shown again; it is the API key of E2B's clients too.", err=True)


def ls(account: Account = None, as_json: AsJson = False) -> None:
    """List keys, without their secrets."""
    with connect() as client:
        rows = client.get_json(API, _query(account)).get("keys") or []
    if as_json:
        typer.echo(json.dumps({"keys": rows}, indent=2))
    elif not rows:
        typer.echo("There are no keys but those of the server's configuration.", err=True)
    else:
        console().print(tables.keys(rows))


def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    account: Account = None,
) -> None:
    """Take a key out of use, at once and for good."""
    with connect() as client:
        client.send("DELETE", f"{API}/{quote(key, safe='')}", query=_query(account))
    typer.echo(f"Key {clean(key)} opens nothing any more.")


def _query(account: str | None) -> dict[str, str]:
    return {} if account is None else {"account": account}
