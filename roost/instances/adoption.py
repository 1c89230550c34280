"""Instances that outlived an earlier server: taken over, or ended if they can't be owned."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Protocol

from roost.instances.roster import Roster, Specs
from roost.instances.sessions import SessionBook
from roost.isolation.driver import Room
from roost.model.errors import AccessDenied, NotFound, RoostError
from roost.model.function import Runtime
from roost.model.session import SessionState

log = logging.getLogger(__name__)


class Sandboxes(Protocol):
    """The rooms that are no function's."""

    def adopt(self, about: Mapping[str, Any], room: Room) -> bool:
        """Own the room from now on. False: it can't be owned."""
        ...


class Adoption:
    """Runs once, before the server takes requests."""

    def __init__(self, *, specs: Specs, book: SessionBook, roster: Roster, sandboxes: Sandboxes | None = None) -> None:
        self._sandboxes = sandboxes
        self._specs = specs
        self._book = book
        self._roster = roster

    async def run(self, *, unsettled: Container[str] = ()) -> int:
        """Take over instances that outlived an earlier server; end those that can't be owned. How many were adopted.

        `unsettled`: ids of those whose requests must be over before they are up.
        """
        self._roster.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        adopted: set[str] = set()
        folders: set[str] = set()
        for file in sorted(self._roster.run_dir.glob("*/handle.json")):
            try:
                if id := await self._adopt_one(_read_handle(file), unsettled):
                    adopted.add(id)
                    folders.add(file.parent.name)
            except (RoostError, OSError, LookupError, TypeError, AttributeError) as error:
                log.warning("%s: what it tells of is not adopted: %s", file, error)
        try:
            await self._roster.around.driver.sweep(frozenset(adopted))
        except RoostError as error:  # a room that does not end keeps no server from starting
            log.warning("something of the server before is left: %s", error.message)
        for directory in self._roster.run_dir.iterdir():
            if directory.name not in folders:
                shutil.rmtree(directory, ignore_errors=True)
        return len(adopted)

    async def _adopt_one(self, handle: dict[str, Any], unsettled: Container[str]) -> str:
        about = handle.get("instance", {})
        room = await self._roster.around.driver.recover(handle["room"]) if about else None
        if room is None:
            return ""
        if about.get("runtime") == Runtime.SANDBOX:
            if self._sandboxes is not None and self._sandboxes.adopt(about, room):
                return str(about["id"])
            await room.destroy()
            return ""
        with contextlib.suppress(NotFound, AccessDenied):
            spec = self._specs.resolve(about["account"], about["function"], about["version"])
            session = self._book.find((spec.account, spec.name, about["session"])) if about["session"] else None
            free = session is None or session.key not in self._roster.pinned
            if spec.revision == about["revision"] and bool(session) == bool(about["session"]) and free:
                instance = self._roster.add(self._roster.pool(spec), about["id"], spec, session)
                for known in [session] if session else self._book.list(spec.account, spec.name):
                    # The files of a session's own instance are in use there, whatever was noted of it since.
                    if session or (known.instance_id == instance.id and known.state is SessionState.ACTIVE):
                        self._roster.pin(known.key, instance)
                if session is not None and session.state is SessionState.PAUSED:
                    instance.pause_once_up(memory=True)
                self._roster.run(instance, adopt=room, unsettled=instance.id in unsettled)
                return instance.id
        await room.destroy()
        return ""


def _read_handle(file: Path) -> dict[str, Any]:
    """What `Instance` wrote; {} when the server was killed in the middle of writing it."""
    try:
        handle = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return handle if isinstance(handle, dict) else {}
