"""`roost labels`: where data came from, and who says that it does not matter any more."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import quote

import typer

from roost.sdk import tables
from roost.sdk.commands_functions import connect
from roost.sdk.commands_watch import AsJson, console
from roost.sdk.terminal import clean

API = "/roost/labels"


def ls(as_json: AsJson = False) -> None:
    """List what has labels: sandboxes, instances, folders of volumes."""
    with connect() as client:
        rows = client.get_json(API).get("labels") or []
    if as_json:
        typer.echo(json.dumps({"labels": rows}, indent=2))
    elif not rows:
        typer.echo("Nothing has labels.", err=True)
    else:
        console().print(tables.labels(rows))


def clear(
    holder: Annotated[str, typer.Argument(metavar="HOLDER", help="As `ls` names it, for example sandbox/ID.")],
) -> None:
    """Take the labels away from what lies there: you have looked at it, and it does no harm."""
    with connect() as client:
        client.send("DELETE", f"{API}/{quote(holder)}")
    typer.echo(f"{clean(holder)} has no labels any more.")
