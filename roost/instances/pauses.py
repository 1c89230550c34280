"""Sessions asleep on disk: pause, resume, and the end of a session's own instance."""

from __future__ import annotations

import asyncio
import logging

from roost.instances.background import Background
from roost.instances.roster import Roster
from roost.instances.sessions import Key, SessionBook
from roost.model.errors import Conflict, RoostError
from roost.model.instance import State, StopReason
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

    async def pause(self, session: Session) -> Session:
        """Keep the files on disk, free memory and processes. Raises Conflict when it can't be paused now."""
        instance = self._roster.pinned.get(session.key)
        if instance is not None and instance.session is None:
            raise Conflict("A session that shares its instance can't be paused; use SESSION_EXCLUSIVE isolation.")
        return await asyncio.shield(self._background.spawn(self._pause(session)))

    async def _pause(self, session: Session) -> Session:
        session = await self._book.move(session, SessionState.PAUSING)
        instance = self._roster.pinned.get(session.key)
        try:
            if instance is not None and instance.usable:
                async with asyncio.timeout(_PAUSE_TIMEOUT):
                    await instance.pause()
        except TimeoutError:
            self._book.put_back(session.key, SessionState.ACTIVE)
            await self._book.persist(session.key)
            raise Conflict(f"Session {session.id} is busy; it was not paused.", code="SessionBusy") from None
        except RoostError as error:
            log.info("session %s: its instance ended while it was paused: %s", session.id, error.message)
        try:
            return await self._book.move(session, SessionState.PAUSED)
        finally:
            self._book.put_back(session.key, SessionState.ACTIVE)  # if it could not be stored

    async def resume(self, session: Session) -> Session:
        """Wake it. Its instance keeps its id; memory is not restored by a driver that can't. Raises Conflict."""
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
            if instance is not None and instance.state is State.PAUSED:
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
