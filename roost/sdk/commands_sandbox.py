"""`roost sandbox`: made, listed, changed, ended."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from roost.sdk import checkpoints, tables
from roost.sdk.commands_functions import connect
from roost.sdk.commands_watch import AsJson, console
from roost.sdk.errors import CliError, Failed, UsageError
from roost.sdk.sandbox_api import SandboxApi
from roost.sdk.terminal import clean, clock

Id = Annotated[str, typer.Argument(metavar="ID", help="The sandbox's id, or enough of its beginning.")]
Env = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="An environment variable; repeatable.")
]
Lifetime = Annotated[
    int | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long it lives from now on.")
]

Now = Annotated[bool, typer.Option("--now", help="Interrupt cells that run, instead of waiting for them.")]
#: Of the reply to a rollback; its tokens are not to be printed.
_ROLLED_BACK = ("sandboxID", "checkpointID", "leftBehind", "notCopied")


@contextlib.contextmanager
def api() -> Iterator[SandboxApi]:
    with connect() as client:
        yield SandboxApi(client)


def when(now: bool) -> dict[str, str]:
    """The query that says what becomes of cells that run."""
    return {"when": "now"} if now else {}


def pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """KEY=VALUE, repeated. Raises UsageError."""
    values = {}
    for one in given or []:
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise UsageError(f"{option} takes KEY=VALUE, not {one!r}.")
        values[key] = value
    return values


def create(
    *,
    template: Annotated[str, typer.Option("--template", "-t", help="What it is made of.")] = "base",
    timeout: Lifetime = None,
    env: Env = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", metavar="KEY=VALUE", help="A label; repeatable.")
    ] = None,
    auto_pause: Annotated[
        bool, typer.Option("--auto-pause", help="When its time is over it is paused instead of killed.")
    ] = False,
    internet: Annotated[bool, typer.Option("--internet", help="Open the server's package indexes to it.")] = False,
    allow_out: Annotated[
        list[str] | None, typer.Option("--allow-out", metavar="RULE", help="What it may reach; repeatable.")
    ] = None,
    egress: Annotated[
        str | None, typer.Option("--egress", help="How: proxy, or transparent for programs that know none.")
    ] = None,
    taint: Annotated[
        str | None, typer.Option("--taint", help="What is asked of it by what it has read: off, audit or block.")
    ] = None,
    trusted: Annotated[
        list[str] | None, typer.Option("--trusted", metavar="RULE", help="A place nobody else writes to; repeatable.")
    ] = None,
    private: Annotated[
        list[str] | None, typer.Option("--private", metavar="RULE", help="A place nobody else may read; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a sandbox, and print its id."""
    if (trusted or private) and taint is None:
        raise UsageError("--trusted and --private say something with --taint audit or --taint block.")
    order: dict[str, Any] = {
        "templateID": template,
        "envVars": pairs("--env", env),
        "metadata": pairs("--metadata", metadata),
        "autoPause": auto_pause,
    }
    if timeout is not None:
        order["timeout"] = timeout
    if internet:
        order["allow_internet_access"] = True
    policy = None if taint is None else {"mode": taint, "trusted": trusted or [], "private": private or []}
    network: dict[str, Any] = {"allowOut": allow_out, "egress": egress, "taint": policy}
    if any(network.values()):
        order["network"] = {name: value for name, value in network.items() if value}
    with api() as sandboxes:
        made = sandboxes.create(order)
    typer.echo(json.dumps(made, indent=2) if as_json else clean(str(made.get("sandboxID", ""))))


def ls(as_json: AsJson = False) -> None:
    """List sandboxes, running and paused."""
    with api() as sandboxes:
        rows = sandboxes.all()
    if as_json:
        typer.echo(json.dumps({"sandboxes": rows}, indent=2))
    elif not rows:
        typer.echo("No sandboxes; `roost sandbox create` makes one.", err=True)
    else:
        console().print(tables.sandboxes(rows, time.time()))


def info(id: Id, as_json: AsJson = False) -> None:
    """Print what is known of a sandbox."""
    with api() as sandboxes:
        said = sandboxes.get(sandboxes.find(id))
    if as_json:
        typer.echo(json.dumps(said, indent=2))
    else:
        console().print(tables.sandbox(said, time.time()))


def logs(
    id: Id,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=1000, help="How many of the last lines.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Print what the sandbox's daemon and its start command wrote."""
    with api() as sandboxes:
        for entry in sandboxes.logs(sandboxes.find(id), lines):
            text = clean(str(entry.get("message", ""))).rstrip()
            typer.echo(json.dumps(entry) if as_json else f"{clock(entry.get('timestamp'))} {text}")


def kill(ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, or beginnings of them.")]) -> None:
    """End sandboxes, with their files. Goes on after one that fails."""
    failed: list[str] = []
    with api() as sandboxes:
        for given in ids:
            try:
                id = sandboxes.find(given)
                sandboxes.kill(id)
            except CliError as error:
                if len(ids) == 1:
                    raise
                failed.append(given)
                typer.echo(f"Error: {clean(str(error))}", err=True)
            else:
                typer.echo(f"Killed {id}.")
    if failed:
        raise Failed(f"Not killed: {', '.join(failed)}.")


def pause(
    id: Id,
    files_only: Annotated[bool, typer.Option("--files-only", help="Do not keep its memory: processes end.")] = False,
) -> None:
    """Pause a sandbox: nothing runs, its files and its memory stay."""
    with api() as sandboxes:
        found = sandboxes.find(id)
        sandboxes.post(found, "pause", {"memory": not files_only})
    typer.echo(f"Paused {found}; `roost sandbox resume {found}` brings it back.")


def resume(id: Id, timeout: Lifetime = None) -> None:
    """Bring a paused sandbox back, or give one that runs more time."""
    with api() as sandboxes:
        found = sandboxes.find(id)
        said = _mapping(sandboxes.post(found, "connect", {} if timeout is None else {"timeout": timeout}))
    files_alone = ", over its files: what ran in it before is gone" if said.get("restored") == "files" else ""
    typer.echo(f"{found} is running{files_alone}.")


def timeout(
    id: Id,
    seconds: Annotated[int, typer.Argument(metavar="SECONDS", min=0, help="How long it lives from now on.")],
) -> None:
    """Set how long a sandbox lives, counted from now."""
    with api() as sandboxes:
        found = sandboxes.find(id)
        sandboxes.post(found, "timeout", {"timeout": seconds})
    typer.echo(f"{found} has {seconds} s from now.")


def snapshot(
    id: Id,
    name: Annotated[str | None, typer.Option("--name", help="Make it a version of the template of this name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep a sandbox's files as a template for others, and print its id. The sandbox goes on."""
    body: dict[str, Any] = {} if name is None else {"name": name}
    with api() as sandboxes:
        said = _mapping(sandboxes.post(sandboxes.find(id), "snapshots", body))
    _tell_left_behind(said.get("leftBehind"))
    if as_json:
        typer.echo(json.dumps(said, indent=2))
    else:
        shown = clean(str(said.get("snapshotID", "")))
        typer.echo(shown)
        if sys.stderr.isatty():
            typer.echo(f"`roost sandbox create --template {shown}` makes a sandbox of it.", err=True)


def snapshots(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of this sandbox only.")] = None,
    as_json: AsJson = False,
) -> None:
    """List snapshots."""
    with api() as sandboxes:
        rows = sandboxes.snapshots(None if id is None else sandboxes.find(id))
    if as_json:
        typer.echo(json.dumps({"snapshots": rows}, indent=2))
    elif not rows:
        typer.echo("No snapshots; `roost sandbox snapshot ID` makes one.", err=True)
    else:
        console().print(tables.snapshots(rows))


def fork(
    id: Id,
    *,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 1,
    timeout: Lifetime = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="As the sandbox was at this checkpoint: its id or label.")
    ] = None,
    now: Now = False,
    as_json: AsJson = False,
) -> None:
    """Make new sandboxes with the files of this one, and print their ids."""
    body: dict[str, Any] = {"count": count} if timeout is None else {"count": count, "timeout": timeout}
    with api() as sandboxes:
        found = sandboxes.find(id)
        if checkpoint is not None:
            body["checkpointID"] = checkpoints.named(sandboxes.checkpoints(found), checkpoint)
        results = sandboxes.post(found, "fork", body, when(now))
    if not isinstance(results, list):
        raise Failed("The server answered with JSON of another shape; is it Roost?")
    if as_json:
        typer.echo(json.dumps({"results": results}, indent=2))
    failed, left_behind = 0, None
    for result in map(_mapping, results):
        if made := _mapping(result.get("sandbox")):
            left_behind = made.get("leftBehind")
            if not as_json:
                typer.echo(clean(str(made.get("sandboxID", ""))))
        else:
            failed += 1
            typer.echo(f"Error: {clean(str(_mapping(result.get('error')).get('message', 'no reason')))}", err=True)
    _tell_left_behind(left_behind)
    if failed:
        raise Failed(f"{failed} of {count} sandboxes could not be made.")


def checkpoint(
    id: Id,
    label: Annotated[str, typer.Option("--label", help="A name for it.")] = "",
    now: Now = False,
    as_json: AsJson = False,
) -> None:
    """Keep a sandbox as it is, variables and files, to go back to, and print the checkpoint's id."""
    with api() as sandboxes:
        said = _mapping(sandboxes.post(sandboxes.find(id), "checkpoints", {"label": label}, when(now)))
    _tell_left_behind(said.get("leftBehind"))
    typer.echo(json.dumps(said, indent=2) if as_json else clean(str(said.get("checkpointID", ""))))


def rollback(
    id: Id,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Its id or label.")],
    now: Now = False,
    as_json: AsJson = False,
) -> None:
    """Have a sandbox as it was at a checkpoint. Its id stays; what runs in it is ended."""
    with api() as sandboxes:
        found = sandboxes.find(id)
        wanted = checkpoints.named(sandboxes.checkpoints(found), checkpoint)
        said = _mapping(sandboxes.post(found, "rollback", {"checkpointID": wanted}, when(now)))
    _tell_left_behind(said.get("leftBehind"))
    if as_json:
        typer.echo(json.dumps({name: said.get(name) for name in _ROLLED_BACK}, indent=2))
    else:
        typer.echo(f"{found} is as it was at {wanted}.")


def tree(id: Id, as_json: AsJson = False) -> None:
    """Print the checkpoints of a sandbox as a tree; `*` is where it is."""
    with api() as sandboxes:
        found = sandboxes.find(id)
        rows = sandboxes.checkpoints(found)
    if as_json:
        typer.echo(json.dumps({"checkpoints": rows}, indent=2))
    elif not rows:
        typer.echo(f"No checkpoints; `roost sandbox checkpoint {found}` makes one.", err=True)
    else:
        for line in checkpoints.drawn(rows):
            typer.echo(line)


def _tell_left_behind(what: object) -> None:
    """Of what a copy of a sandbox has not, as the server names it."""
    if isinstance(what, list) and what:
        typer.echo(f"Not copied: {clean(', '.join(str(one) for one in what))}.", err=True)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
