"""Commands that look at what runs: ps, top, sessions, logs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from roost.sdk import tables
from roost.sdk.client import API, Client, function_path
from roost.sdk.commands_functions import Name, Qualifier, connect
from roost.sdk.errors import Failed
from roost.sdk.terminal import clean, clock

_PIPE_WIDTH = 1000

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def function_names(client: Client) -> list[str]:
    return [str(one.get("functionName", "")) for one in client.list_all(f"{API}/functions", "functions")]


def console() -> Console:
    """A pipe has no width: what reads it wants whole lines."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def ps(as_json: AsJson = False) -> None:
    """List functions and their live instances."""
    with connect() as client:
        rows = client.get_json("/roost/instances").get("instances") or []
        names = function_names(client)
    if as_json:
        typer.echo(json.dumps({"functions": names, "instances": rows}, indent=2))
    elif not rows and not names:
        typer.echo("No functions yet; `roost deploy DIR` makes one.", err=True)
    else:
        console().print(tables.instances(rows, names, time.time()))


def top(
    interval: Annotated[float, typer.Option("--interval", min=0.2, max=60, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Watch instances: memory, leases, state. Ctrl-C ends; in a pipe, one look."""
    screen = console()
    with connect() as client:

        def look() -> Table:
            rows = client.get_json("/roost/instances").get("instances") or []
            return tables.instances(rows, function_names(client), time.time())

        if not screen.is_terminal:
            screen.print(look())
            return
        try:
            with Live(look(), console=screen, auto_refresh=False, screen=True) as live:
                while True:
                    time.sleep(interval)
                    live.update(look(), refresh=True)
        except KeyboardInterrupt:
            return


def sessions(name: Name, qualifier: Qualifier = None, as_json: AsJson = False) -> None:
    """List a function's sessions."""
    with connect() as client:
        query = {"qualifier": qualifier} if qualifier else {}
        rows = client.list_all(function_path(name, "/sessions"), "sessions", query)
    if as_json:
        typer.echo(json.dumps({"sessions": rows}, indent=2))
    elif not rows:
        typer.echo(f"{name} has no sessions.", err=True)
    else:
        console().print(tables.sessions(rows, time.time()))


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=10000, help="How many of the last lines.")] = 100,
    request: Annotated[str | None, typer.Option("--request", help="Only this request's lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a function wrote."""
    query = {"lines": str(lines)}
    if follow:
        query["follow"] = "1"
    if request:
        query["requestId"] = request
    with connect() as client:
        path = f"/roost/functions/{quote(name, safe='')}/logs"
        try:
            with client.stream("GET", path, query=query, streaming=True) as reply:
                for record in _records(reply.iter_lines()):
                    typer.echo(json.dumps(record) if as_json else _line(record))
        except KeyboardInterrupt:
            return


def _records(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise Failed("The server sent a log line that is not JSON.") from error
        if isinstance(record, dict):
            yield record


def _line(record: dict[str, Any]) -> str:
    instance = clean(str(record.get("instance") or "-"))
    return f"{clock(record.get('time'))} {instance} {clean(str(record.get('text', ''))).rstrip()}"
