"""Commands that act on functions: deploy, invoke, chat, delete."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from roost.sdk import sessions
from roost.sdk.chat import Conversation, Event
from roost.sdk.client import Client, Server, function_path
from roost.sdk.deploy import Deployed, Deployer, Overrides
from roost.sdk.errors import CliError, Failed, UsageError
from roost.sdk.terminal import clean, size

Name = Annotated[str, typer.Argument(metavar="NAME", help="The function's name.")]
Qualifier = Annotated[str | None, typer.Option("--qualifier", help="A version or an alias [default: LATEST].")]


@contextlib.contextmanager
def connect() -> Iterator[Client]:
    """A client of the server that the environment names."""
    with Client(Server.from_environment(os.environ)) as client:
        yield client


def deploy(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", exists=True, file_okay=False, help="Folders with a roost.toml.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Another name than roost.toml says.")] = None,
    session_affinity: Annotated[
        str | None,
        typer.Option("--session-affinity", help="none, header, cookie, mcp-sse or mcp-http, instead of roost.toml's."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="An environment variable; repeatable.")
    ] = None,
) -> None:
    """Create a function from each folder, or update it. Goes on after one that fails."""
    if name is not None and len(directories) > 1:
        raise UsageError("--name goes with one folder.")
    overrides = Overrides(name=name, affinity=session_affinity, env=_environment(env or []))
    failed: list[str] = []
    with connect() as client:
        for directory in directories:
            try:
                _report(_deploy_one(client, directory, overrides))
            except CliError as error:
                if len(directories) == 1:
                    raise
                failed.append(str(directory))
                typer.echo(f"Error: {directory}: {clean(str(error))}", err=True)
    if failed:
        raise Failed(f"Not deployed: {', '.join(failed)}.")


def _environment(pairs: list[str]) -> dict[str, str]:
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--env takes KEY=VALUE, not {pair!r}.")
        values[key] = value
    return values


def _deploy_one(client: Client, directory: Path, overrides: Overrides) -> Deployed:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{directory.name}: reading")

        def say(line: str) -> None:
            progress.update(task, description=clean(f"{directory.name}: {line}"))

        return Deployer(client, os.environ, say).deploy(directory, overrides)


def _report(done: Deployed) -> None:
    verb = "Deployed" if done.created else "Updated"
    how = f"`roost chat {done.name}` or `roost invoke {done.name}`" if done.chat else f"`roost invoke {done.name}`"
    typer.echo(f"{verb} {done.name} ({size(done.package_bytes)}) at {done.url}; try {how}.")


def invoke(
    name: Name,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The event; @FILE reads a file [default: standard input].")
    ] = None,
    *,
    session: Annotated[str | None, typer.Option("--session", "-s", help="The session it belongs to.")] = None,
    qualifier: Qualifier = None,
    asynchronous: Annotated[
        bool, typer.Option("--async", help="Queue it and print the task's id instead of the reply.")
    ] = False,
    task_id: Annotated[
        str | None, typer.Option("--task-id", help="With --async: its id; the same id again is the same task.")
    ] = None,
    delay: Annotated[
        int | None, typer.Option("--delay", min=0, max=3600, help="With --async: seconds until it may begin.")
    ] = None,
    busy: Annotated[
        str | None,
        typer.Option("--busy", help="With --async: reject, enqueue or interrupt, when the session has work."),
    ] = None,
) -> None:
    """Call a function with an event and print its reply."""
    if not asynchronous and (task_id, delay, busy) != (None, None, None):
        raise UsageError("--task-id, --delay and --busy go with --async.")
    event = _event(data)
    headers = {"content-type": "application/octet-stream"}
    if asynchronous:
        headers["x-fc-invocation-type"] = "Async"
        headers |= {"x-fc-async-task-id": task_id} if task_id is not None else {}
        headers |= {"x-fc-async-delay": str(delay)} if delay is not None else {}
        headers |= {"x-roost-task-busy": busy} if busy is not None else {}
    query = {"qualifier": qualifier} if qualifier else {}
    with connect() as client:
        function = client.function(name) or {}
        if session:
            headers |= sessions.request_headers(function, session)
        path = function_path(name, "/invocations")
        with client.stream("POST", path, query=query, body=event, headers=headers, streaming=True) as reply:
            if asynchronous:
                reply.read()
                typer.echo(clean(reply.headers.get("x-fc-async-task-id", "")))
                return
            _print_reply(reply)
            given = sessions.reply_session(function, reply.headers)
            if sessions.was_restored(reply.headers):
                typer.echo(f"Note: {sessions.RESTORED}.", err=True)
        if given:
            typer.echo(f"session: {clean(given)}", err=True)


def _event(data: str | None) -> bytes:
    if data is None:
        return b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise UsageError(f"--data: {data[1:]} can't be read: {error.strerror}.") from error


def _print_reply(reply: httpx.Response) -> None:
    """To a pipe byte for byte; to a terminal as harmless text."""
    last = ""
    if not sys.stdout.isatty():
        for chunk in reply.iter_bytes():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        return
    for text in reply.iter_text():
        last = clean(text) or last
        typer.echo(clean(text), nl=False)
    if not last.endswith("\n"):
        typer.echo()


def chat(
    name: Name,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Go on with this session [default: a new one].")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model that the agent is asked to use.")] = None,
) -> None:
    """Talk to an agent. Ctrl-C stops an answer, Ctrl-D ends."""
    with connect() as client:
        function = client.function(name.partition(":")[0])
        if function is None:
            raise Failed(f"There is no function {name}; `roost ps` lists them.")
        if session is None and sessions.header_name(function):
            session = f"chat-{secrets.token_hex(4)}"
        headers = sessions.request_headers(function, session) if session else {}
        terminal = sys.stdin.isatty()
        if terminal:
            typer.echo(f"Talking to {name}. Ctrl-C stops an answer, Ctrl-D ends.", err=True)
        if session:
            typer.echo(f"session: {session} (come back with: roost chat {name} --session {session})", err=True)
        conversation = Conversation(client, name, headers, model)
        while (message := _ask(terminal)) is not None:
            if message.strip():
                _turn(conversation, message, terminal)


def _ask(terminal: bool) -> str | None:
    while True:
        try:
            return input("> " if terminal else "")
        except EOFError:
            if terminal:
                typer.echo(err=True)
            return None
        except KeyboardInterrupt:
            typer.echo(err=True)


def _turn(conversation: Conversation, message: str, terminal: bool) -> None:
    """One answer. On a terminal a failed one leaves the conversation open; in a pipe it ends the command."""
    last = "\n"

    def show(event: Event) -> None:
        nonlocal last
        if event.type == "tool":
            typer.secho(("" if last.endswith("\n") else "\n") + f"[{event.text}]", dim=True, err=True)
            last = "\n"
        elif event.type == "text" and event.text:
            typer.echo(event.text, nl=False)
            last = event.text

    try:
        conversation.turn(message, show)
    except KeyboardInterrupt:
        typer.echo("\n(stopped)", err=True)
        return
    except CliError as error:
        if not terminal:
            raise
        typer.echo(f"\nError: {clean(str(error))}", err=True)
        return
    if not last.endswith("\n"):
        typer.echo()


def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a function with its versions, aliases and sessions; named volumes stay."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {name}?", abort=True)
    with connect() as client:
        client.send("DELETE", function_path(name))
    typer.echo(f"Deleted {name}.")
