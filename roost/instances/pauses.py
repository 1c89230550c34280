"""Sessions asleep, in memory or on disk: pause, resume, and the end of a session's own instance."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from roost.instances.background import Background
from roost.instances.roster import Roster
from roost.instances.sessions import Key, SessionBook
from roost.model.errors import Conflict, RoostError
from roost.model.instance import StopReason
from roost.model.session import Session, SessionState, check_session_transition

log = logging.getLogger(__name__)

_PAUSE_TIMEOUT = 30.0


class Pauses:
    """Changes of a session's state that move its instance too. Each runs in a task of its own: a caller that goes away
    leaves no session halfway."""

    def __init__(self, *, book: SessionBook, roster: Roster, background: Background, stop_grace: float) -> None:
        self._book = book
        self._roster = roster
        self._background = background
        self._stop_grace = stop_grace
        self._resuming: dict[Key, asyncio.Task[Session]] = {}

    async def pause(self, session: Session, *, memory: bool = True) -> Session:
        """Keep its files and, with `memory`, what its instance has in memory, which then stands still until it is
        resumed, or until the server needs its place.

        Raises Conflict when it can't be paused now, Unavailable when its instance does not freeze.
        """
        if self._shares(session):
            raise Conflict("A session that shares its instance can't be paused; use SESSION_EXCLUSIVE isolation.")
        return await asyncio.shield(self._background.spawn(self._pause(session, memory)))

    def in_memory(self, session: Session) -> bool:
        """Whether its instance is paused with memory and processes."""
        instance = self._roster.pinned.get(session.key)
        return instance is not None and instance.paused_in_memory

    async def idle(self, session: Session) -> None:
        """It was not used for its idle timeout and is to be paused then, not to expire. One that is busy again is not;
        one that can't be paused expires after all."""
        if self._shares(session):
            await self._book.end(session, forget=False)
            return
        with contextlib.suppress(Conflict):
            await self.pause(session)

    def _shares(self, session: Session) -> bool:
        instance = self._roster.pinned.get(session.key)
        return instance is not None and instance.session is None

    async def _pause(self, session: Session, memory: bool) -> Session:
        session = await self._book.move(session, SessionState.PAUSING)
        instance = self._roster.pinned.get(session.key)
        try:
            if instance is not None and instance.usable:
                async with asyncio.timeout(_PAUSE_TIMEOUT):
                    await instance.pause(memory=memory)
        except TimeoutError:
            await self._stays_active(session)
            raise Conflict(f"Session {session.id} is busy; it was not paused.", code="SessionBusy") from None
        except RoostError as error:
            if instance is not None and instance.usable:
                await self._stays_active(session)
                raise
            log.info("session %s: its instance ended while it was paused: %s", session.id, error.message)
        try:
            return await self._book.move(session, SessionState.PAUSED)
        finally:
            self._book.put_back(session.key, SessionState.ACTIVE)  # if it could not be stored

    async def _stays_active(self, session: Session) -> None:
        self._book.put_back(session.key, SessionState.ACTIVE)
        await self._book.persist(session.key)

    async def resume(self, session: Session) -> Session:
        """Wake it. Its instance keeps its id. Raises Conflict."""
        check_session_transition(session, SessionState.RESUMING)
        return await self.resumed(session)

    async def resumed(self, session: Session) -> Session:
        """The session, resumed once for all who ask."""
        task = self._resuming.get(session.key)
        if task is None:
            task = self._resuming[session.key] = self._background.spawn(self._resume(session))
            task.add_done_callback(lambda _: self._resuming.pop(session.key))
        return await asyncio.shield(task)

    async def _resume(self, session: Session) -> Session:
        try:
            session = await self._book.move(session, SessionState.RESUMING)
            instance = self._roster.pinned.get(session.key)
            if instance is not None and instance.paused:
                await instance.resume()
            return await self._book.move(session, SessionState.ACTIVE)
        finally:
            self._book.put_back(session.key, SessionState.PAUSED)  # if it did not come so far

    async def ended(self, session: Session) -> None:
        """It expired or was deleted: its own instance ends too."""
        instance = self._roster.pinned.pop(session.key, None)
        if instance is None:
            return
        instance.sessions.discard(session.key)
        if instance.session is not None or instance.spec.exclusive:
            instance.stop(StopReason.SESSION_ENDED, grace=self._stop_grace)
            await instance.stopped.wait()
