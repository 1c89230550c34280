"""`roost tasks watch` and `attach`: what a task does, from its beginning to its end."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import typer

from roost.sdk.client import Client
from roost.sdk.errors import Failed, Unreachable
from roost.sdk.sse import EventTooLarge, events_of
from roost.sdk.terminal import clean, clock

#: How long a server that went away is waited for, and between two tries, in seconds.
PATIENCE_S = 60.0
PAUSE_S = 0.5


@dataclass(kw_only=True)
class Screen:
    """Output goes to standard output as it is, the rest to standard error, or, `as_json`, everything in lines of JSON
    to standard output. `last` is the id of the last event, `end` the task when it has ended."""

    output_only: bool = False
    as_json: bool = False
    last: str = ""
    end: dict[str, Any] | None = None
    _line_open: bool = False

    def show(self, name: str, about: dict[str, Any]) -> None:
        if name == "end":
            self.end = about
        if self.as_json:
            typer.echo(json.dumps({"event": name, **about}))
        elif name == "output":
            text = str(about.get("data", ""))
            self._line_open = not text.endswith("\n")
            typer.echo(clean(text) if sys.stdout.isatty() else text, nl=False)
        elif not self.output_only and name in ("state", "progress", "cut"):
            self._say(name, about)

    def close(self) -> None:
        if self._line_open and sys.stdout.isatty():
            typer.echo()

    def _say(self, name: str, about: dict[str, Any]) -> None:
        if self._line_open:
            typer.echo(err=True)
            self._line_open = False
        if name == "state":
            said = f"{clean(str(about.get('status'))):<10} {clean(str(about.get('detail') or ''))}"
        elif name == "progress":
            said = f"{'progress':<10} {clean(json.dumps(about.get('progress')))}"
        else:
            said = "what was put out from here on was too much to be kept"
        typer.echo(f"{clock(float(about.get('timestamp') or 0) / 1000)}  {said}".rstrip(), err=True)


def watch(client: Client, path: str, screen: Screen) -> None:
    """Returns when the task has succeeded; Ctrl-C leaves it as it is. Raises Failed when it ended otherwise."""
    try:
        _follow(client, path, screen)
    except KeyboardInterrupt:
        return
    finally:
        screen.close()
    end = screen.end or {}
    if end.get("status") != "Succeeded":
        more = " ".join(str(end.get(name) or "") for name in ("status", "taskErrorMessage")).strip()
        raise Failed(f"Task {clean(str(end.get('taskId')))}: {clean(more)}")


def _follow(client: Client, path: str, screen: Screen) -> None:
    """To the end."""
    deadline = time.monotonic() + PATIENCE_S
    while screen.end is None:
        try:
            headers = {"last-event-id": screen.last} if screen.last else None
            with client.stream("GET", path, headers=headers, streaming=True) as reply:
                for event in events_of(reply.iter_bytes()):
                    screen.show(event.name, _object(event.data))
                    screen.last = event.id
                    deadline = time.monotonic() + PATIENCE_S
        except EventTooLarge as error:
            raise Failed(f"The server sent {error}.") from error
        except Unreachable:
            # It may be starting anew: what is missing comes then. One that never answered is another matter.
            if not screen.last or time.monotonic() > deadline:
                raise
        if screen.end is None:
            time.sleep(PAUSE_S)


def _object(data: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Failed("The server sent an event that is not JSON.") from error
    return value if isinstance(value, dict) else {}
