"""The sessions of this server: which exist, in what state, and until when. Durable in the store, read from memory."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from roost.model.errors import Conflict, NotFound, RoostError
from roost.model.function import FunctionSpec
from roost.model.session import Session, SessionState, check_session_id, check_session_transition
from roost.telemetry.rounds import going_on

Key = tuple[str, str, str]

#: How stale the stored time of last use may be: a restarted server lets a session live this much longer, no more.
TOUCH_INTERVAL = 30.0
#: How exact that time is in memory: a record made anew for every request would cost more than the rest of its session.
_USE_GRAIN = 0.1
#: How long an ended session's id is remembered, so that it can be refused when reuse is disabled.
TOMBSTONE_SECONDS = 24 * 3600.0
#: Ended sessions remembered at most; the one that ended first is forgotten first.
MAX_TOMBSTONES = 100_000


class SessionStore(Protocol):
    """Where sessions are kept."""

    async def put(self, session: Session) -> None: ...

    async def delete(self, account: str, function: str, id: str) -> None: ...

    async def list_all(self) -> Iterable[Session]: ...


def new_session_id() -> str:
    """128 random bits, letters and digits only."""
    return secrets.token_hex(16)


class SessionBook:
    """All sessions by (account, function, id). `ended(session)` is called once when one expires or is deleted.

    `idle(session)` is called when one that is to be paused after its idle timeout has reached it.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        clock: Callable[[], float],
        ended: Callable[[Session], Awaitable[None]],
        idle: Callable[[Session], Coroutine[Any, Any, None]],
        max_tombstones: int = MAX_TOMBSTONES,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ended = ended
        self._idle = idle
        self._max_tombstones = max_tombstones
        self._sessions: dict[Key, Session] = {}
        self._stored_use: dict[Key, float] = {}
        self._in_use: dict[Key, int] = {}  # requests under way

    async def load(self) -> None:
        """Read all from the store. A session that was on its way when the server ended is put where it was safe."""
        for session in await self._store.list_all():
            state = {SessionState.PAUSING: SessionState.ACTIVE, SessionState.RESUMING: SessionState.PAUSED}
            settled = replace(session, state=state.get(session.state, session.state))
            self._sessions[session.key] = settled
            self._stored_use[session.key] = session.last_used

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, account: str, function: str, id: str) -> Session:
        """Raises NotFound."""
        session = self._sessions.get((account, function, id))
        if session is None:
            raise NotFound(f"Session {id} of function {function} does not exist.", code="SessionNotFound")
        return session

    def find(self, key: Key) -> Session | None:
        """The session, if it exists and has not expired."""
        session = self._sessions.get(key)
        return None if session is None or session.state is SessionState.EXPIRED else session

    def remembers(self, session: Session) -> bool:
        """Whether a record of it is kept: it is alive or has expired, but was not deleted."""
        current = self._sessions.get(session.key)
        return current is not None and current.created == session.created

    def list(self, account: str, function: str) -> list[Session]:
        """Of one function, oldest first."""
        mine = (s for s in self._sessions.values() if s.account == account and s.function == function)
        return sorted(mine, key=lambda s: (s.created, s.id))

    # --- writing -----------------------------------------------------------------------------------------------

    async def create(self, spec: FunctionSpec, qualifier: str, id: str, fields: Mapping[str, Any]) -> Session:
        """A new session, durable when it returns. Raises as `open`."""
        return await self.save(self.open(spec, qualifier, id, fields))

    def open(self, spec: FunctionSpec, qualifier: str, id: str, fields: Mapping[str, Any]) -> Session:
        """A new session in memory (`persist` stores it); `fields` override what the function's policy says.

        Raises InvalidArgument for an illegal id, Conflict if it is taken or may not be used again.
        """
        id = check_session_id(id) if id else new_session_id()
        old = self._sessions.get((spec.account, spec.name, id))
        if old is not None and old.state is not SessionState.EXPIRED:
            raise Conflict(f"Session {id} of function {spec.name} exists already.", code="SessionAlreadyExists")
        if old is not None and old.disable_id_reuse:
            raise Conflict(f"Session ID {id} was used before and can't be used again.", code="SessionIdReuseDisabled")
        now = self._clock()
        policy = spec.sessions
        session = Session(
            account=spec.account,
            function=spec.name,
            qualifier=qualifier,
            id=id,
            affinity=policy.affinity,
            created=now,
            modified=now,
            last_used=now,
            ttl_s=policy.ttl_s,
            idle_timeout_s=policy.idle_timeout_s,
            disable_id_reuse=policy.disable_id_reuse,
        )
        session = replace(session, **fields)
        self._sessions[session.key] = session
        return session

    def discard(self, session: Session) -> None:
        """Take back `open`: nothing came of it."""
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]

    def assign(self, session: Session, instance_id: str) -> Session:
        """Note in memory which instance the session is pinned to (`persist` stores it). Raises NotFound."""
        assigned = replace(self.get(*session.key), instance_id=instance_id, last_used=self._clock())
        self._sessions[session.key] = assigned
        return assigned

    async def persist(self, key: Key) -> None:
        """Make what memory says of the session durable."""
        session = self._sessions.get(key)
        if session is not None:
            await self.save(session)

    async def save(self, session: Session) -> Session:
        """Visible at once, durable when it returns; taken back if the store refuses it."""
        before = self._sessions.get(session.key)
        self._sessions[session.key] = session
        try:
            await self._store.put(session)
        except RoostError:
            if self._sessions.get(session.key) is session:  # it may have moved on, or be gone
                if before is None:
                    del self._sessions[session.key]
                else:
                    self._sessions[session.key] = before
            raise
        if session.key in self._sessions:
            self._stored_use[session.key] = session.last_used
        return session

    async def change(self, session: Session, fields: Mapping[str, Any]) -> Session:
        """Replace fields of the session as it is now. Raises NotFound if it was deleted meanwhile."""
        return await self.save(replace(self.get(*session.key), **fields, modified=self._clock()))

    async def move(self, session: Session, state: SessionState) -> Session:
        """A checked change of state. Raises Conflict, or NotFound if it was deleted meanwhile."""
        check_session_transition(self.get(*session.key), state)
        return await self.change(session, {"state": state})

    def put_back(self, key: Key, state: SessionState) -> None:
        """A change of state did not succeed. Memory only: it is what a restarted server makes of the stored state."""
        session = self._sessions.get(key)
        if session is not None and session.state in (SessionState.PAUSING, SessionState.RESUMING):
            self._sessions[key] = replace(session, state=state)

    def enter(self, key: Key) -> None:
        """A request begins: until `leave`, the session is not idle."""
        self._in_use[key] = self._in_use.get(key, 0) + 1

    def leave(self, key: Key) -> None:
        """A request that had entered is over."""
        left = self._in_use.pop(key) - 1
        if left:
            self._in_use[key] = left
        self.touch(key)

    def in_use(self, key: Key) -> int:
        """Requests that have entered."""
        return self._in_use.get(key, 0)

    def touch(self, key: Key) -> None:
        """The session is in use. Memory only; `sweep` stores it now and then."""
        session = self._sessions.get(key)
        if session is not None and (now := self._clock()) - session.last_used >= _USE_GRAIN:
            self._sessions[key] = replace(session, last_used=now)

    async def end(self, session: Session, *, forget: bool) -> None:
        """Expire it (`forget=False`, the id is remembered for a while) or delete it."""
        if forget:
            await self._forget(session.key)
        elif session.state is not SessionState.EXPIRED:
            await self.save(replace(session, state=SessionState.EXPIRED, modified=self._clock()))
        await self._ended(session)

    async def _forget(self, key: Key) -> None:
        """Gone from memory at once, from the store when it returns; still there if the store refuses it."""
        session = self._sessions.pop(key, None)
        try:
            await self._store.delete(*key)
        except RoostError:
            if session is not None:
                self._sessions.setdefault(key, session)
            raise
        if key not in self._sessions:
            self._stored_use.pop(key, None)

    async def forget_function(self, account: str, function: str) -> None:
        """The function is gone: so are its sessions."""
        await _all(self.end(session, forget=True) for session in self.list(account, function))

    # --- time --------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Expire what is due, drop old tombstones, store times of last use."""
        now = self._clock()
        await _all(work for session in list(self._sessions.values()) if (work := self._due(session, now)))
        tombstones = [session for session in self._sessions.values() if session.state is SessionState.EXPIRED]
        if (over := len(tombstones) - self._max_tombstones) > 0:
            first = sorted(tombstones, key=lambda session: session.modified)[:over]
            await _all(self._forget(session.key) for session in first)

    def _due(self, session: Session, now: float) -> Coroutine[Any, Any, object] | None:
        if session.state is SessionState.EXPIRED:
            return self._forget(session.key) if now - session.modified > TOMBSTONE_SECONDS else None
        if now >= (replace(session, last_used=now) if session.key in self._in_use else session).expires_at():
            if session.auto_pause and now < session.created + session.ttl_s:
                return self._idle(session) if session.state is SessionState.ACTIVE else None
            return self.end(session, forget=False)
        if session.last_used - self._stored_use.get(session.key, 0.0) > TOUCH_INTERVAL:
            return self.save(session)
        return None

    async def run(self, interval: float = 1.0) -> None:
        """Sweep for ever; a failing store is reported and tried again."""
        while True:
            await asyncio.sleep(interval)
            with going_on("sessions can't be stored"):
                await self.sweep()


async def _all(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Do them all, one that fails or waits holds up no other. Raises the first failure at the end."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
